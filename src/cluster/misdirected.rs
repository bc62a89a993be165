//! Which nodes are missed under their own address: another node answers there, as with a cloned
//! machine, the name of a load balancer, or 127.0.0.1 in `bridge.advertise`.
//!
//! Both nodes log it, once, and operators see it in the list of the nodes. Nothing else depends on
//! it: who is refused by the wrong node gives its claim back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::warn;

use super::wire::name_of;
use crate::ids::NodeId;
use crate::lock::lock;
use crate::observability::{EventKind, Journal};
use crate::rendezvous::RemoteNode;

/// Cases that are remembered; of more, nothing is logged or shown.
const MAX_CASES: usize = 64;
/// A case that has not been seen for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_hours(1);
/// After its restart, a node is missed as what it was before until its old lease is over. What lasts
/// longer is another node of the same name.
const RESTART: Duration = Duration::from_secs(15);

/// See the module.
pub struct Misdirections {
    /// The id of this node.
    here: NodeId,
    journal: Arc<Journal>,
    cases: Mutex<BTreeMap<Case, Seen>>,
}

/// A node that was missed, and who has missed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    meant: NodeId,
    /// The name of the node that called this one, in place of that one; `None`: this node called.
    caller: Option<String>,
}

struct Seen {
    first: Instant,
    last: Instant,
    what: String,
    logged: bool,
}

impl Misdirections {
    /// Creates it for the node with this id.
    pub fn new(here: NodeId, journal: Arc<Journal>) -> Arc<Self> {
        Arc::new(Self { here, journal, cases: Mutex::default() })
    }

    /// Notes that this node has called `meant`, and who has answered.
    pub(super) fn answered(&self, meant: &RemoteNode, by: &NodeId) {
        if meant.id == *by {
            return self.reached(&meant.id);
        }
        let (address, other, name) = (&meant.address, by.name(), meant.id.name());
        let what = format!(
            "{address:?}, the address of node {name:?}, leads to node {other:?}: check \
             bridge.advertise of {name:?}"
        );
        self.note(Case { meant: meant.id.clone(), caller: None }, by, what);
    }

    /// Notes that the node of this name has called this one at this address, but meant another one.
    pub(super) fn called(&self, meant: &NodeId, caller: &str, address: &str) {
        let (here, name) = (self.here.name(), meant.name());
        let what = format!(
            "node {caller:?} has called node {here:?} at {address:?} and meant node {name:?}: check \
             bridge.advertise of {name:?}"
        );
        let case = Case { meant: meant.clone(), caller: Some(caller.to_owned()) };
        self.note(case, &self.here, what);
    }

    /// Notes that this node has reached the node that it meant.
    pub(super) fn reached(&self, meant: &NodeId) {
        let mut cases = self.lock();
        if !cases.is_empty() {
            cases.remove(&Case { meant: meant.clone(), caller: None });
        }
    }

    /// The fault in the address of the node with this id, if one is known.
    pub fn of(&self, node: &str) -> Option<String> {
        let cases = self.lock();
        let mut seen = cases.iter().filter(|(case, _)| case.meant.as_str() == node);
        seen.find_map(|(_, seen)| seen.logged.then(|| seen.what.clone()))
    }

    fn note(&self, case: Case, found: &NodeId, what: String) {
        let now = Instant::now();
        let is_restart = found.name() == case.meant.name();
        let mut cases = self.lock();
        cases.retain(|_, seen| now - seen.last < FORGET_AFTER);
        if cases.len() >= MAX_CASES && !cases.contains_key(&case) {
            return;
        }
        let new = || Seen { first: now, last: now, what, logged: false };
        let seen = cases.entry(case).or_insert_with(new);
        seen.last = now;
        if !seen.logged && (!is_restart || now - seen.first > RESTART) {
            seen.logged = true;
            warn!("{}", seen.what);
            self.journal.note(EventKind::Trouble, seen.what.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Case, Seen>> {
        lock(&self.cases)
    }
}

/// The name of a node, from an id that another one sent.
pub(super) fn node_of(id: &str) -> NodeId {
    NodeId::from(name_of(id))
}
