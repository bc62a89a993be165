//! The endpoints of this node that wait for a partner, by their offers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Party;
use crate::ids::OfferId;

/// Hands a partner over to the session that waits for it.
#[derive(Default)]
pub(super) struct Registry {
    waiting: Mutex<HashMap<OfferId, oneshot::Sender<Box<Party>>>>,
}

impl Registry {
    /// The partner of this offer will come here.
    pub(super) fn register(&self, offer: OfferId) -> oneshot::Receiver<Box<Party>> {
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(offer, sender);
        receiver
    }

    /// Gives `partner` to the session behind `offer`, or back if that is gone.
    ///
    /// The lock is held over the sending: when [`Registry::withdraw`] finds nothing, the partner
    /// is already in the channel.
    pub(super) fn hand_over(&self, offer: OfferId, partner: Box<Party>) -> Result<(), Box<Party>> {
        let mut waiting = self.waiting();
        match waiting.remove(&offer) {
            Some(sender) => sender.send(partner),
            None => Err(partner),
        }
    }

    /// Nobody can be handed over any more. False if somebody has been.
    pub(super) fn withdraw(&self, offer: OfferId) -> bool {
        self.waiting().remove(&offer).is_some()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<OfferId, oneshot::Sender<Box<Party>>>> {
        // Each change is a single step: what a panicking thread left behind is in order.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
