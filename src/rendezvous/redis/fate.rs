//! The fate of an offer in an entry of another node: the lease of that node shows whether it runs, and
//! the node itself answers whether it still has the offer.
//!
//! A node without a lease is dead. So is a node with an overdue lease and an address that refuses
//! connections: its process has ended, while a frozen or overloaded one still accepts them or does
//! not answer. Everything else is unknown, and the endpoint waits until the fate is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::scripts::Owner;
use super::{Core, Unanswered};
use crate::ids::OfferId;
use crate::lock::lock;
use crate::rendezvous::{Neighbours, OfferState, RemoteNode, Report};

/// Queries of one node at once. More wait: if it does not answer, they need not be sent.
const QUERIES_AT_ONCE: usize = 8;
/// How long all offers of a node share its fate without another query.
const REMEMBERED: Duration = Duration::from_millis(250);
/// Nodes that are remembered; beyond that, those that nothing is asked about are forgotten.
const MAX_NODES: usize = 256;
/// How much later than usual a lease may be refreshed.
const LATE: Duration = Duration::from_millis(500);

/// The fate of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its node is dead.
    Dead,
    /// Its node does not have it any more.
    Gone,
    /// It waits for a partner, or is registered.
    Waiting,
    /// It has a partner.
    Paired,
    /// Its node runs, and cannot be queried: there is no bridge.
    Alive,
    /// Its node runs, and its release does not know the query.
    Unable,
    /// Nothing is known, yet.
    Unknown,
}

/// The lease of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// Refreshed in time.
    Fresh,
    /// Still there, but it should have been refreshed.
    Overdue,
    /// There is none.
    Gone,
}

/// The nodes that were queried, and how to query them.
#[derive(Default)]
pub(super) struct Neighbourhood {
    neighbours: OnceLock<Arc<dyn Neighbours>>,
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

struct Node {
    queries: Semaphore,
    /// The fate of all its offers, and since when it is known.
    shared_fate: Mutex<Option<(Instant, Fate)>>,
}

impl Neighbourhood {
    /// Enables queries of other nodes from now on.
    pub(super) fn set(&self, neighbours: Arc<dyn Neighbours>) {
        self.neighbours.get_or_init(|| neighbours);
    }

    /// Whether nodes can be queried.
    pub(super) fn is_set(&self) -> bool {
        self.neighbours.get().is_some()
    }

    fn node(&self, id: &str) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get(id) {
            return Arc::clone(node);
        }
        if nodes.len() >= MAX_NODES {
            nodes.retain(|_, node| Arc::strong_count(node) > 1);
        }
        let (queries, shared_fate) = (Semaphore::new(QUERIES_AT_ONCE), Mutex::default());
        let node = Arc::new(Node { queries, shared_fate });
        nodes.insert(id.into(), Arc::clone(&node));
        node
    }
}

impl Node {
    fn remembered(&self) -> Option<Fate> {
        let (since, fate) = (*self.shared_fate())?;
        (since.elapsed() < REMEMBERED).then_some(fate)
    }

    fn remember(&self, fate: Fate) {
        *self.shared_fate() = Some((Instant::now(), fate));
    }

    fn shared_fate(&self) -> MutexGuard<'_, Option<(Instant, Fate)>> {
        lock(&self.shared_fate)
    }
}

impl Core {
    /// The fate of the offer of an entry of another node.
    pub(super) async fn fate(&self, owner: &Owner, address: &str) -> Result<Fate, Unanswered> {
        let node = self.neighbourhood.node(&owner.node);
        if let Some(fate) = node.remembered() {
            return Ok(fate);
        }
        // The semaphore is never closed.
        let _place = node.queries.acquire().await.ok();
        if let Some(fate) = node.remembered() {
            return Ok(fate);
        }
        let remote = RemoteNode { id: owner.node.as_str().into(), address: address.into() };
        let fate = self.find_fate(remote, owner.offer).await?;
        match fate {
            Fate::Dead | Fate::Unknown => node.remember(fate),
            Fate::Gone | Fate::Waiting | Fate::Paired | Fate::Alive | Fate::Unable => {}
        }
        Ok(fate)
    }

    async fn find_fate(&self, node: RemoteNode, offer: OfferId) -> Result<Fate, Unanswered> {
        let lease = self.lease_of(node.id.as_str()).await?;
        if lease == Lease::Gone {
            return Ok(if self.is_sure() { Fate::Dead } else { Fate::Unknown });
        }
        let Some(neighbours) = self.neighbourhood.neighbours.get() else { return Ok(Fate::Alive) };
        Ok(match Arc::clone(neighbours).query(node, offer).await {
            Report::Known(OfferState::Waiting) => Fate::Waiting,
            Report::Known(OfferState::Paired) => Fate::Paired,
            Report::Known(OfferState::Gone) => Fate::Gone,
            // Whatever has kept its lease from being refreshed: no process is there that did it.
            Report::Refused if lease == Lease::Overdue => Fate::Dead,
            Report::Replaced if lease == Lease::Overdue && self.is_sure() => Fate::Dead,
            Report::Refused | Report::Replaced | Report::Silent => Fate::Unknown,
            Report::Unable => Fate::Unable,
        })
    }

    /// The lease of another node, as Redis has it.
    pub(super) async fn lease_of(&self, node: &str) -> Result<Lease, Unanswered> {
        let call = self.scripts.left(node);
        let asked =
            self.link.ask("alive", async |connection| call.invoke_async::<u64>(connection).await);
        let left = Duration::from_millis(asked.await?);
        let late = self.pace.refresh + LATE.min(self.pace.refresh / 4);
        Ok(if left.is_zero() {
            Lease::Gone
        } else if left < self.pace.lease.saturating_sub(late) {
            Lease::Overdue
        } else {
            Lease::Fresh
        })
    }
}
