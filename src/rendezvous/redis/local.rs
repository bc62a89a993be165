//! The state of this node without Redis: the entries of its endpoints, and the changes that must still
//! be written to Redis.
//!
//! Of its own entries the node knows more than Redis: which are released, and which tunnels are
//! established. As long as Redis does not answer, endpoints of this node are paired from here.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::scripts::Told;
use super::verify::Made;
use crate::ids::OfferId;
use crate::protocol::PairingKey;
use crate::rendezvous::{Answer, Home, Offer, RemoteNode, Waiting};

/// Errands kept for Redis. Beyond that, tunnels are written later, and released entries are found
/// when their keys are used again, or expire.
const MAX_ERRANDS: usize = 65_536;

/// Released offers that one question mentions. Any but the last few are not in Redis any more.
const MAX_GONE: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Local {
    entries: BTreeMap<PairingKey, Entry>,
    /// The offers of this node that are not released, and whether they may have a place in Redis.
    offers: BTreeMap<OfferId, bool>,
    errands: BTreeMap<PairingKey, Errands>,
    /// The keys with errands that are not being run; each once.
    queue: VecDeque<PairingKey>,
    errand_count: usize,
    /// Releases that were dropped because the queue was full.
    dropped: u64,
}

/// The errands of one key, in this order.
#[derive(Default)]
struct Errands {
    all: Vec<Errand>,
    /// The number of errands from the front that are being run.
    taken: usize,
}

struct Entry {
    offer: Offer,
    state: State,
    /// Notified when an endpoint of this node has claimed it.
    claimed: Option<Arc<Notify>>,
    /// Notified when Redis has lost this entry.
    lost: Option<Arc<Notify>>,
}

enum State {
    Waiting,
    Standing {
        claimer: Option<OfferId>,
        /// When its errand was added; `None`: there was no room, and it is owed.
        asserted: Option<Instant>,
    },
}

/// A change that must be written to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// This offer is released.
    Release(OfferId, Role),
    /// A tunnel is established.
    Stand,
}

/// The place that an offer may have in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Owner,
    Claimer,
    Either,
}

/// A tunnel with its first endpoint on this node.
#[derive(Clone, Copy)]
pub(super) struct Tunnel {
    pub(super) offer: Offer,
    /// Unknown if it came from another node.
    pub(super) claimer: Option<OfferId>,
}

/// The decision about an offer without Redis.
pub(super) enum Alone {
    Answer(Answer),
    /// The offer waits; notified when an endpoint of this node has claimed it.
    Waiting(Arc<Notify>),
}

impl Local {
    /// Adds an offer. Returns true if it was there already.
    pub(super) fn enter(&mut self, offer: &Offer) -> bool {
        match self.offers.entry(offer.id) {
            Slot::Vacant(slot) => {
                slot.insert(false);
                false
            }
            Slot::Occupied(_) => true,
        }
    }

    /// Redis is being queried with this offer, so that it may have an entry there from now on.
    pub(super) fn ask(&mut self, offer: &Offer) {
        if let Some(perhaps_there) = self.offers.get_mut(&offer.id) {
            *perhaps_there = true;
        }
    }

    /// Whether an offer is one of this node that is not released.
    pub(super) fn has(&self, offer: OfferId) -> bool {
        self.offers.contains_key(&offer)
    }

    /// The answer to an offer that needs no query: a tunnel with its key is established here.
    pub(super) fn known(&mut self, offer: &Offer) -> Option<Answer> {
        let perhaps_there = self.offers.get(&offer.id) == Some(&true);
        let answer = self.beside_tunnel(offer)?;
        if perhaps_there && answer == Answer::Taken {
            self.errand(offer.key, Errand::Release(offer.id, Role::Either));
        }
        Some(answer)
    }

    /// Decides without Redis.
    pub(super) fn alone(&mut self, offer: &Offer) -> Alone {
        if let Some(answer) = self.known(offer) {
            return Alone::Answer(answer);
        }
        match self.entries.get(&offer.key) {
            Some(entry) if entry.offer.id != offer.id => return Alone::Answer(self.claim(offer)),
            Some(_) => {}
            None => self.insert(offer),
        }
        let claimed = self.entries.get_mut(&offer.key).map(|entry| &mut entry.claimed);
        Alone::Waiting(claimed.map(signal).unwrap_or_default())
    }

    /// Combines the answer of Redis with the changes on this node since the query.
    pub(super) fn conclude(&mut self, offer: &Offer, told: Told, here: &str) -> Answer {
        if !self.offers.contains_key(&offer.id) {
            // Released while the answer was on its way: the endpoint has left.
            self.errand(offer.key, Errand::Release(offer.id, Role::Either));
            return Answer::Taken;
        }
        if let Some(answer) = self.beside_tunnel(offer) {
            // Redis does not know of this tunnel yet, and must not have another one.
            let errands: &[_] = match (&told, &answer) {
                (Told::Taken { .. }, _) | (Told::Wait, Answer::Wait) => &[],
                (_, Answer::Taken) => &[Errand::Release(offer.id, Role::Either), Errand::Stand],
                (_, Answer::Wait | Answer::Claimed(_)) => &[Errand::Stand],
            };
            for errand in errands {
                self.errand(offer.key, *errand);
            }
            return answer;
        }
        match told {
            Told::Wait => {
                let is_there = self.entries.get(&offer.key).map(|entry| entry.offer.id);
                // Another one that waits here without Redis learns of this one from Redis.
                if is_there != Some(offer.id) {
                    self.insert(offer);
                }
                Answer::Wait
            }
            Told::Claimed { owner, address, secret, trace } => {
                self.leave(offer);
                let home = if owner.node == here {
                    let owner = Offer { key: offer.key, id: owner.offer, secret, trace };
                    self.claimed(owner, offer.id);
                    Home::Here
                } else {
                    let node = RemoteNode { id: owner.node.as_str().into(), address };
                    Home::There { node, secret, trace }
                };
                Answer::Claimed(Waiting { id: owner.offer, home })
            }
            Told::Taken { .. } => {
                self.leave(offer);
                Answer::Taken
            }
        }
    }

    /// Whether this offer is the owner of a tunnel of this key.
    pub(super) fn has_tunnel(&self, key: &PairingKey, owner: OfferId) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            entry.offer.id == owner && matches!(entry.state, State::Standing { .. })
        })
    }

    /// The signal that Redis has lost the entry of this offer, if it waits.
    pub(super) fn lost(&mut self, offer: &Offer) -> Option<Arc<Notify>> {
        let entry = self.entries.get_mut(&offer.key).filter(|entry| entry.offer.id == offer.id)?;
        Some(signal(&mut entry.lost))
    }

    /// Redis does not have the entry of this offer: it must be put back.
    pub(super) fn is_lost(&mut self, key: PairingKey, offer: OfferId) {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.offer.id == offer) else {
            return;
        };
        match entry.state {
            // Its session does it, as it may turn out to have a partner now.
            State::Waiting => {
                if let Some(lost) = &entry.lost {
                    lost.notify_one();
                }
            }
            State::Standing { .. } => self.errand(key, Errand::Stand),
        }
    }

    /// The next entries to be verified, as many as `group_of` all of them. `last` is where they
    /// begin and will begin.
    pub(super) fn made_after(
        &self,
        last: &mut Option<PairingKey>,
        group_of: fn(usize) -> usize,
    ) -> Vec<Made> {
        let begin = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.entries.range((begin, Bound::Unbounded));
        let group: Vec<_> = next.take(group_of(self.entries.len())).collect();
        *last = group.last().map(|(key, _)| **key);
        group.into_iter().map(|(key, entry)| Made::Pair(*key, entry.offer.id)).collect()
    }

    /// The endpoint of this offer is being joined from another node. The answer that it waits may
    /// still be on its way. False if another tunnel of its key is established here.
    pub(super) fn stands(&mut self, offer: &Offer) -> bool {
        if !self.offers.contains_key(&offer.id) {
            // Its endpoint has left, and its entry is being released.
            return true;
        }
        if let Some(Entry { offer: there, state: State::Standing { .. }, .. }) =
            self.entries.get(&offer.key)
        {
            return there.id == offer.id;
        }
        self.establish(offer, None);
        true
    }

    /// Frees the key if this offer made its entry, whether here or on another node.
    pub(super) fn release(&mut self, key: PairingKey, offer: OfferId) {
        if let Slot::Occupied(slot) = self.entries.entry(key)
            && slot.get().offer.id == offer
        {
            slot.remove();
            self.forget_stand(&key);
        }
        match self.offers.remove(&offer) {
            Some(true) => self.errand(key, Errand::Release(offer, Role::Either)),
            Some(false) => {}
            None => self.errand(key, Errand::Release(offer, Role::Owner)),
        }
    }

    /// The claim of this offer came to nothing: what it claimed waits again.
    pub(super) fn give_back(&mut self, key: PairingKey, owner: OfferId, claimer: OfferId) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.offer.id == owner
            && matches!(entry.state, State::Standing { claimer: Some(it), .. } if it == claimer)
        {
            entry.state = State::Waiting;
        }
        self.errand(key, Errand::Release(claimer, Role::Claimer));
    }

    /// Offers of this key that are gone, but perhaps not in Redis yet.
    pub(super) fn released(&self, key: &PairingKey) -> Vec<OfferId> {
        let errands = self.errands.get(key).into_iter().flat_map(|errands| &errands.all);
        errands
            .rev()
            .filter_map(|errand| match errand {
                Errand::Release(offer, _) => Some(*offer),
                Errand::Stand => None,
            })
            .take(MAX_GONE)
            .collect()
    }

    /// All tunnels must be written again: Redis may have lost them.
    pub(super) fn assert_all(&mut self) {
        self.assert_older_than(Duration::ZERO);
    }

    /// Tunnels written this long ago must be written again before they expire in Redis, and so must
    /// tunnels without room for an errand.
    pub(super) fn assert_older_than(&mut self, age: Duration) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, entry) in &mut self.entries {
            if let State::Standing { asserted, .. } = &mut entry.state
                && asserted.is_none_or(|at| now.saturating_duration_since(at) >= age)
            {
                *asserted = None;
                due.push(*key);
            }
        }
        for key in due {
            if !self.stand(key) {
                return;
            }
        }
    }

    /// The established tunnel of this key, if there is one, to be written to Redis.
    pub(super) fn tell(&mut self, key: &PairingKey) -> Option<Tunnel> {
        let entry = self.entries.get(key)?;
        let State::Standing { claimer, .. } = entry.state else { return None };
        let offer = entry.offer;
        self.ask(&offer);
        Some(Tunnel { offer, claimer })
    }

    /// The next keys with their errands, oldest first. They are kept until [`Local::done`].
    pub(super) fn errands(&mut self, keys: usize) -> Vec<(PairingKey, Vec<Errand>)> {
        let count = keys.min(self.queue.len());
        let mut next = Vec::with_capacity(count);
        for key in self.queue.drain(..count) {
            let Slot::Occupied(mut slot) = self.errands.entry(key) else { continue };
            if slot.get().all.is_empty() {
                slot.remove();
                continue;
            }
            slot.get_mut().taken = slot.get().all.len();
            next.push((key, slot.get().all.clone()));
        }
        next
    }

    /// So many of the errands of this key are done. The others are queued again.
    pub(super) fn done(&mut self, key: PairingKey, count: usize) {
        if let Slot::Occupied(mut slot) = self.errands.entry(key) {
            slot.get_mut().all.drain(..count);
            slot.get_mut().taken = 0;
            self.errand_count -= count;
            if slot.get().all.is_empty() {
                slot.remove();
            } else {
                self.queue.push_back(key);
            }
        }
    }

    /// The task that ran errands was cut off: all are to be run again.
    pub(super) fn start_over(&mut self) {
        self.queue = self.errands.keys().copied().collect();
        for errands in self.errands.values_mut() {
            errands.taken = 0;
        }
    }

    /// Errands that wait, and releases that there was no room for.
    pub(super) fn backlog(&self) -> (usize, u64) {
        (self.errand_count, self.dropped)
    }

    /// Whether there are errands to run.
    pub(super) fn has_errands(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Everything of this node ends: its entries are to be released.
    pub(super) fn release_all(&mut self) {
        let all: Vec<_> = self.entries.values().map(|entry| entry.offer).collect();
        for offer in all {
            self.release(offer.key, offer.id);
        }
    }

    /// The answer if a tunnel with this key is established here.
    fn beside_tunnel(&mut self, offer: &Offer) -> Option<Answer> {
        let entry = self.entries.get(&offer.key)?;
        let State::Standing { claimer, .. } = entry.state else { return None };
        let owner = entry.offer.id;
        if owner == offer.id {
            return Some(Answer::Wait);
        }
        self.offers.insert(offer.id, false);
        if claimer == Some(offer.id) {
            return Some(Answer::Claimed(Waiting { id: owner, home: Home::Here }));
        }
        Some(Answer::Taken)
    }

    /// Pairs two endpoints of this node, the waiting one and this one, and queues the errand for
    /// Redis.
    fn claim(&mut self, offer: &Offer) -> Answer {
        let Some(owner) = self.entries.get(&offer.key).map(|entry| entry.offer) else {
            return Answer::Taken;
        };
        self.claimed(owner, offer.id);
        self.offers.insert(offer.id, false);
        self.errand(offer.key, Errand::Stand);
        Answer::Claimed(Waiting { id: owner.id, home: Home::Here })
    }

    /// An offer of this node is claimed by another one of it.
    fn claimed(&mut self, owner: Offer, claimer: OfferId) {
        if self.offers.contains_key(&owner.id) {
            self.establish(&owner, Some(claimer));
        }
    }

    /// The entry of this offer is that of a tunnel, whether or not the answer that it waits has come.
    fn establish(&mut self, owner: &Offer, claimer: Option<OfferId>) {
        let is_there = self.entries.get(&owner.key).map(|entry| entry.offer.id);
        if is_there != Some(owner.id) {
            self.insert(owner);
        }
        if let Some(entry) = self.entries.get_mut(&owner.key) {
            entry.state = State::Standing { claimer, asserted: Some(Instant::now()) };
            if let Some(claimed) = &entry.claimed {
                claimed.notify_one();
            }
        }
    }

    fn insert(&mut self, offer: &Offer) {
        let entry = Entry { offer: *offer, state: State::Waiting, claimed: None, lost: None };
        self.entries.insert(offer.key, entry);
    }

    /// The offer has no entry of its own.
    fn leave(&mut self, offer: &Offer) {
        if let Slot::Occupied(slot) = self.entries.entry(offer.key)
            && slot.get().offer.id == offer.id
        {
            slot.remove();
        }
        self.offers.insert(offer.id, false);
    }

    /// Adds the errand to write the tunnel of this key. False if there is no room; then it is owed.
    fn stand(&mut self, key: PairingKey) -> bool {
        let is_added = self.push(key, Errand::Stand);
        if let Some(Entry { state: State::Standing { asserted, .. }, .. }) =
            self.entries.get_mut(&key)
        {
            *asserted = is_added.then(Instant::now);
        }
        is_added
    }

    /// Drops the errand to write a tunnel that has ended.
    fn forget_stand(&mut self, key: &PairingKey) {
        let Some(errands) = self.errands.get_mut(key) else { return };
        let (before, mut index) = (errands.all.len(), 0);
        let taken = errands.taken;
        errands.all.retain(|errand| {
            index += 1;
            index <= taken || *errand != Errand::Stand
        });
        self.errand_count -= before - errands.all.len();
    }

    fn errand(&mut self, key: PairingKey, errand: Errand) {
        match errand {
            Errand::Stand => {
                // Without room it is owed.
                let _is_added = self.stand(key);
            }
            Errand::Release(..) => {
                // Without room, a node that finds the entry asks this node about it.
                if !self.push(key, errand) {
                    self.dropped += 1;
                }
            }
        }
    }

    /// Adds an errand that is not the last one of its key already. False if there is no room.
    fn push(&mut self, key: PairingKey, errand: Errand) -> bool {
        if self.errand_count >= MAX_ERRANDS {
            return false;
        }
        let errands = match self.errands.entry(key) {
            Slot::Vacant(slot) => {
                self.queue.push_back(key);
                slot.insert(Errands::default())
            }
            Slot::Occupied(slot) => slot.into_mut(),
        };
        if errands.all[errands.taken..].last() != Some(&errand) {
            errands.all.push(errand);
            self.errand_count += 1;
        }
        true
    }
}

fn signal(slot: &mut Option<Arc<Notify>>) -> Arc<Notify> {
    Arc::clone(slot.get_or_insert_default())
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
