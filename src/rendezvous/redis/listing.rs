//! The state of this node without Redis: the registrations of its endpoints, and the changes that
//! must still be written to Redis.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::verify::Made;
use crate::ids::OfferId;
use crate::rendezvous::{Holder, Home, Registration, Role};

/// Errands kept for Redis. Beyond that, registrations are written again later, and entries of closed
/// ones are found when their UUIDs are used again, or expire.
const MAX_ERRANDS: usize = 65_536;
/// Registrations that one question mentions. Any but the last few are not in Redis any more.
const MAX_GONE: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Listing {
    own: BTreeMap<OfferId, Own>,
    /// The gateways that Redis has confirmed.
    gateways: BTreeMap<Uuid, OfferId>,
    errands: VecDeque<Errand>,
    /// The errands that are being run.
    taken: Vec<Errand>,
    /// Removals that were dropped because the queue was full.
    dropped: u64,
}

struct Own {
    registration: Registration,
    lost: CancellationToken,
    /// When it was last written to Redis; `None`: Redis has not confirmed it yet.
    asserted: Option<Instant>,
    /// There was no room for the errand to write it again.
    owed: bool,
}

/// A change that must be written to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// This registration is gone.
    Unregister(Uuid, OfferId),
    /// This registration is there.
    Assert(OfferId),
}

impl Listing {
    /// Adds a registration, if it is not there. The returned token is cancelled when it is lost.
    pub(super) fn enter(&mut self, registration: &Registration) -> CancellationToken {
        let own = self.own.entry(registration.id).or_insert_with(|| Own {
            registration: *registration,
            lost: CancellationToken::new(),
            asserted: None,
            owed: false,
        });
        own.lost.clone()
    }

    /// Redis has the registration. Returns false if it has been unregistered since.
    pub(super) fn confirm(&mut self, registration: &Registration) -> bool {
        let Registration { uuid, role, id, .. } = *registration;
        let Some(own) = self.own.get_mut(&id) else {
            self.errand(Errand::Unregister(uuid, id));
            return false;
        };
        own.asserted = Some(Instant::now());
        if role == Role::Gateway {
            self.gateways.insert(uuid, id);
        }
        true
    }

    /// The UUID belongs to another registration. The holder until now is notified.
    pub(super) fn lose(&mut self, id: OfferId) {
        if let Some(own) = self.remove(id)
            && own.asserted.is_some()
        {
            own.lost.cancel();
        }
    }

    /// Whether a registration is one of this node that is not gone.
    pub(super) fn has(&self, id: OfferId) -> bool {
        self.own.contains_key(&id)
    }

    /// A registration of this node.
    pub(super) fn get(&self, id: OfferId) -> Option<Registration> {
        self.own.get(&id).map(|own| own.registration)
    }

    /// The gateway with this UUID if it is on this node.
    pub(super) fn gateway(&self, uuid: &Uuid) -> Option<Holder> {
        let id = *self.gateways.get(uuid)?;
        Some(Holder { id, role: Role::Gateway, home: Home::Here })
    }

    /// A registration is gone, whether of this node or of another one. Its endpoint, if it is still
    /// here, is notified.
    pub(super) fn unregister(&mut self, uuid: Uuid, id: OfferId) {
        if let Some(own) = self.remove(id) {
            own.lost.cancel();
        }
        self.errand(Errand::Unregister(uuid, id));
    }

    /// Registrations of this UUID that are gone, but perhaps not in Redis yet.
    pub(super) fn released(&self, uuid: &Uuid) -> Vec<OfferId> {
        let errands = self.errands.iter().rev().chain(&self.taken);
        errands
            .filter_map(|errand| match errand {
                Errand::Unregister(it, id) if it == uuid => Some(*id),
                Errand::Unregister(..) | Errand::Assert(_) => None,
            })
            .take(MAX_GONE)
            .collect()
    }

    /// Registrations that were written this long ago must be written again.
    pub(super) fn assert_older_than(&mut self, age: Duration) {
        let (now, room) = (Instant::now(), MAX_ERRANDS.saturating_sub(self.errands.len()));
        let mut due = Vec::new();
        for (id, own) in &mut self.own {
            if let Some(asserted) = &mut own.asserted
                && (own.owed || now.saturating_duration_since(*asserted) >= age)
            {
                own.owed = due.len() >= room;
                if !own.owed {
                    *asserted = now;
                    due.push(*id);
                }
            }
        }
        for id in due {
            self.errand(Errand::Assert(id));
        }
    }

    /// Redis does not have the entry of this registration: it must be put back.
    pub(super) fn is_lost(&mut self, id: OfferId) {
        if self.own.get(&id).is_some_and(|own| own.asserted.is_some()) {
            self.errand(Errand::Assert(id));
        }
    }

    /// The next entries to be verified, as many as `group_of` all of them. `last` is where they
    /// begin and will begin.
    pub(super) fn made_after(
        &self,
        last: &mut Option<OfferId>,
        group_of: fn(usize) -> usize,
    ) -> Vec<Made> {
        let begin = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.own.range((begin, Bound::Unbounded));
        let group: Vec<_> = next.take(group_of(self.own.len())).collect();
        *last = group.last().map(|(id, _)| **id);
        let confirmed = group.into_iter().filter(|(_, own)| own.asserted.is_some());
        confirmed.map(|(id, own)| Made::Uuid(own.registration.uuid, *id)).collect()
    }

    /// Everything of this node ends.
    pub(super) fn release_all(&mut self) {
        let all: Vec<_> = self.own.values().map(|own| own.registration).collect();
        for it in all {
            self.unregister(it.uuid, it.id);
        }
    }

    /// The next errands. They are kept until [`Listing::done`].
    pub(super) fn errands(&mut self, count: usize) -> Vec<Errand> {
        let count = count.min(self.errands.len());
        self.taken = self.errands.drain(..count).collect();
        self.taken.clone()
    }

    /// The errands that were taken are done, but for these, which come up again.
    pub(super) fn done(&mut self, failed: Vec<Errand>) {
        self.taken.clear();
        self.errands.extend(failed);
    }

    /// The task that ran errands was cut off: all are to be run again.
    pub(super) fn start_over(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        self.errands.extend(taken);
    }

    /// Errands that wait, and ends that there was no room for.
    pub(super) fn backlog(&self) -> (usize, u64) {
        (self.errands.len() + self.taken.len(), self.dropped)
    }

    /// Whether there are errands to run.
    pub(super) fn has_errands(&self) -> bool {
        !self.errands.is_empty()
    }

    fn remove(&mut self, id: OfferId) -> Option<Own> {
        let own = self.own.remove(&id)?;
        let uuid = own.registration.uuid;
        if self.gateways.get(&uuid) == Some(&id) {
            self.gateways.remove(&uuid);
        }
        Some(own)
    }

    fn errand(&mut self, errand: Errand) {
        if self.errands.len() < MAX_ERRANDS {
            self.errands.push_back(errand);
        } else {
            self.dropped += 1;
        }
    }
}
