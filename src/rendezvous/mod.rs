//! Where endpoints with the same key find each other: the [`Rendezvous`] trait and its rules.
//! [`MemoryRendezvous`] serves one node.
//!
//! An entry belongs to the offer that made it. It is *waiting* until a second offer claims it, and
//! *standing* from then until it is released; meanwhile further offers of its key are turned away.
//! Whoever releases names the offer, so that nobody removes what another one has put there since.

mod memory;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::ids::OfferId;
use crate::protocol::PairingKey;

pub use memory::MemoryRendezvous;

/// An endpoint's wish to be paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What both endpoints have in common.
    pub key: PairingKey,
    /// New for each offer.
    pub id: OfferId,
}

/// What becomes of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody is there; the offer is kept until it is claimed or released.
    Wait,
    /// This offer was waiting and is now claimed: the two belong together.
    Claimed(OfferId),
    /// Two endpoints have this key already.
    Taken,
}

/// Decides, in one atomic step, which two offers belong together.
pub trait Rendezvous: Send + Sync {
    /// Puts an offer up.
    fn offer(self: Arc<Self>, offer: Offer) -> BoxFuture<'static, Answer>;

    /// Frees the key, if its entry was made by this offer: it waits no more, or its tunnel has
    /// ended. Takes effect as soon as possible, without waiting.
    fn release(&self, offer: Offer);
}
