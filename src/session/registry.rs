//! The offers of this node's endpoints: those that wait can be given a partner, those that are
//! paired cannot any more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::Session;
use crate::cluster::Incoming;
use crate::ids::OfferId;
use crate::lock::lock;
use crate::protocol::PairingKey;
use crate::rendezvous::{Offer, OfferState, Secret};

/// The other end of a tunnel, as it is handed to the session that waits for it.
pub(super) enum Partner {
    /// An endpoint of this node, with all that belongs to it.
    Here(Box<Session>),
    /// An endpoint of another node, at the end of a bridge.
    There(Box<Incoming>),
}

/// Why an offer cannot be given a partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotWaiting {
    /// It is not here, or no more.
    Gone,
    /// It has a partner already.
    Paired,
    /// The other node does not know the offer's secret.
    WrongSecret,
}

enum State {
    Waiting { offer: Offer, partner: oneshot::Sender<Partner> },
    Paired,
}

/// Hands partners over to the sessions that wait for them.
#[derive(Default)]
pub(super) struct Registry {
    /// A tree, as it shrinks when many have left.
    offers: Mutex<BTreeMap<OfferId, State>>,
    /// The offers of this node that have a tunnel, by their keys. The tunnels of endpoints that came
    /// to another node's offer are not here: that node may give their key away before they end.
    established: Mutex<BTreeMap<PairingKey, OfferId>>,
}

impl Registry {
    /// The partner of this offer will come here.
    pub(super) fn register(&self, offer: Offer) -> oneshot::Receiver<Partner> {
        let (partner, receiver) = oneshot::channel();
        self.offers().insert(offer.id, State::Waiting { offer, partner });
        receiver
    }

    /// The offer with this id, if it waits and the secret is right.
    pub(super) fn waiting(&self, offer: OfferId, secret: Secret) -> Result<Offer, NotWaiting> {
        match self.offers().get(&offer) {
            None => Err(NotWaiting::Gone),
            Some(State::Paired) => Err(NotWaiting::Paired),
            Some(State::Waiting { offer, .. }) if offer.secret != secret => {
                Err(NotWaiting::WrongSecret)
            }
            Some(State::Waiting { offer, .. }) => Ok(*offer),
        }
    }

    /// What is known of an offer, `None` if it is not here.
    pub(super) fn state(&self, offer: OfferId) -> Option<OfferState> {
        self.offers().get(&offer).map(|state| match state {
            State::Waiting { .. } => OfferState::Waiting,
            State::Paired => OfferState::Paired,
        })
    }

    /// Gives `partner` to the session of `offer`, or back.
    ///
    /// The lock is held over the sending: when [`Registry::withdraw`] finds the offer paired, the
    /// partner is already in the channel.
    pub(super) fn hand_over(
        &self,
        offer: OfferId,
        partner: Partner,
    ) -> Result<(), (NotWaiting, Partner)> {
        let mut offers = self.offers();
        let Some(state) = offers.get_mut(&offer) else {
            return Err((NotWaiting::Gone, partner));
        };
        match state {
            State::Paired => Err((NotWaiting::Paired, partner)),
            State::Waiting { .. } => match std::mem::replace(state, State::Paired) {
                State::Waiting { partner: sender, .. } => {
                    sender.send(partner).map_err(|partner| (NotWaiting::Gone, partner))
                }
                State::Paired => Err((NotWaiting::Paired, partner)),
            },
        }
    }

    /// Forgets an offer. False if it had been given a partner.
    pub(super) fn withdraw(&self, offer: OfferId) -> bool {
        !matches!(self.offers().remove(&offer), Some(State::Paired))
    }

    /// The tunnel of an offer begins. An error if there is another one with its key.
    pub(super) fn establish(&self, offer: &Offer) -> Result<(), OfferId> {
        match self.established().entry(offer.key) {
            Slot::Occupied(slot) => Err(*slot.get()),
            Slot::Vacant(slot) => {
                slot.insert(offer.id);
                Ok(())
            }
        }
    }

    /// The tunnel of an offer ends. An error if its key has another tunnel, or none.
    pub(super) fn disestablish(&self, offer: &Offer) -> Result<(), Option<OfferId>> {
        match self.established().entry(offer.key) {
            Slot::Occupied(slot) if *slot.get() == offer.id => {
                slot.remove();
                Ok(())
            }
            Slot::Occupied(slot) => Err(Some(*slot.get())),
            Slot::Vacant(_) => Err(None),
        }
    }

    fn established(&self) -> MutexGuard<'_, BTreeMap<PairingKey, OfferId>> {
        lock(&self.established)
    }

    fn offers(&self) -> MutexGuard<'_, BTreeMap<OfferId, State>> {
        lock(&self.offers)
    }
}
