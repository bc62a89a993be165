//! The rendezvous of a node that is alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending, ready};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Answer, Directory, Holder, Home, Offer, Registered, Registration, Rendezvous, Role,
    Unavailable, Waiting,
};
use crate::ids::OfferId;
use crate::lock::lock;
use crate::protocol::PairingKey;

/// Entries in this process's memory: in trees, which shrink as the entries go, as a hash table does not.
pub struct MemoryRendezvous {
    entries: Mutex<BTreeMap<PairingKey, Entry>>,
    registered: Mutex<BTreeMap<Uuid, Own>>,
    /// Nothing is ever lost.
    epoch: watch::Sender<u64>,
}

impl Default for MemoryRendezvous {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            registered: Mutex::default(),
            epoch: watch::Sender::new(0),
        }
    }
}

struct Entry {
    owner: OfferId,
    state: State,
}

struct Own {
    registration: Registration,
    /// Cancelled when it is no longer registered.
    lost: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Claimed(OfferId),
    Standing,
}

impl MemoryRendezvous {
    /// The number of waiting and established keys, and of registered UUIDs.
    pub fn len(&self) -> usize {
        self.entries().len() + self.registered().len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PairingKey, Entry>> {
        lock(&self.entries)
    }

    fn registered(&self) -> MutexGuard<'_, BTreeMap<Uuid, Own>> {
        lock(&self.registered)
    }

    fn change(&self, key: PairingKey, owner: OfferId, from: State, to: State) {
        if let Some(entry) = self.entries().get_mut(&key)
            && entry.owner == owner
            && entry.state == from
        {
            entry.state = to;
        }
    }

    fn decide(&self, offer: Offer) -> Answer {
        match self.entries().entry(offer.key) {
            Slot::Vacant(slot) => {
                slot.insert(Entry { owner: offer.id, state: State::Waiting });
                Answer::Wait
            }
            Slot::Occupied(mut slot) => {
                let Entry { owner, state } = slot.get_mut();
                if *owner == offer.id {
                    return Answer::Wait;
                }
                if *state == State::Waiting {
                    *state = State::Claimed(offer.id);
                }
                if *state == State::Claimed(offer.id) {
                    Answer::Claimed(Waiting { id: *owner, home: Home::Here })
                } else {
                    Answer::Taken
                }
            }
        }
    }
}

impl Rendezvous for MemoryRendezvous {
    fn offer(self: Arc<Self>, offer: Offer) -> BoxFuture<'static, Answer> {
        ready(self.decide(offer)).boxed()
    }

    fn release(&self, key: PairingKey, offer: OfferId) {
        if let Slot::Occupied(slot) = self.entries().entry(key)
            && slot.get().owner == offer
        {
            slot.remove();
        }
    }

    fn give_back(&self, key: PairingKey, owner: OfferId, claimer: OfferId) {
        self.change(key, owner, State::Claimed(claimer), State::Waiting);
    }

    fn stands(&self, offer: Offer) -> bool {
        self.change(offer.key, offer.id, State::Waiting, State::Standing);
        // One entry per key: no other tunnel can have it.
        self.entries().get(&offer.key).is_none_or(|entry| entry.owner == offer.id)
    }

    fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    fn lost(&self, _: Offer, _: watch::Receiver<u64>) -> BoxFuture<'static, ()> {
        pending().boxed()
    }

    fn has(&self, offer: OfferId) -> bool {
        self.entries().values().any(|entry| entry.owner == offer)
    }
}

impl Directory for MemoryRendezvous {
    fn register(
        self: Arc<Self>,
        registration: Registration,
    ) -> BoxFuture<'static, Result<Registered, Unavailable>> {
        let mut registered = self.registered();
        let new = || Own { registration, lost: CancellationToken::new() };
        let holder = registered.entry(registration.uuid).or_insert_with(new);
        let answer = if holder.registration.id == registration.id {
            Registered::Yes { lost: holder.lost.clone() }
        } else {
            Registered::Conflict(here(holder))
        };
        ready(Ok(answer)).boxed()
    }

    fn find_gateway(
        self: Arc<Self>,
        uuid: Uuid,
    ) -> BoxFuture<'static, Result<Option<Holder>, Unavailable>> {
        let registered = self.registered();
        let found =
            registered.get(&uuid).filter(|own| own.registration.role == Role::Gateway).map(here);
        ready(Ok(found)).boxed()
    }

    fn unregister(&self, uuid: Uuid, id: OfferId) {
        if let Slot::Occupied(slot) = self.registered().entry(uuid)
            && slot.get().registration.id == id
        {
            slot.remove().lost.cancel();
        }
    }

    fn has(&self, id: OfferId) -> bool {
        self.registered().values().any(|own| own.registration.id == id)
    }
}

fn here(own: &Own) -> Holder {
    let Registration { id, role, .. } = own.registration;
    Holder { id, role, home: Home::Here }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Token;

    fn offer(token: &str) -> Offer {
        Offer::new(PairingKey::new(&Token::new(token), None), None)
    }

    fn claimed(offer: Offer) -> Answer {
        Answer::Claimed(Waiting { id: offer.id, home: Home::Here })
    }

    #[test]
    fn the_second_claims_and_the_third_is_turned_away() {
        let rendezvous = MemoryRendezvous::default();
        let (first, second, third) = (offer("t"), offer("t"), offer("t"));
        assert_eq!(rendezvous.decide(first), Answer::Wait);
        assert_eq!(rendezvous.decide(offer("other")), Answer::Wait);
        assert_eq!(rendezvous.decide(second), claimed(first));
        assert_eq!(rendezvous.decide(third), Answer::Taken);
        rendezvous.release(first.key, first.id);
        assert_eq!(rendezvous.decide(third), Answer::Wait);
    }

    #[test]
    fn only_the_owner_releases() {
        let rendezvous = MemoryRendezvous::default();
        let (first, second) = (offer("t"), offer("t"));
        assert_eq!(rendezvous.decide(first), Answer::Wait);
        rendezvous.release(second.key, second.id);
        assert_eq!(rendezvous.decide(second), claimed(first));
        rendezvous.release(second.key, second.id);
        assert_eq!(rendezvous.decide(offer("t")), Answer::Taken);
        rendezvous.release(first.key, first.id);
        assert!(rendezvous.is_empty());
    }
}
