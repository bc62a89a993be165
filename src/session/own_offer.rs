//! What an endpoint of this node offers: its place in the registry and in the rendezvous, from the
//! first query until its tunnel has ended. The traces of its set-up belong to it.

use std::sync::Arc;

use super::Shared;
use crate::observability::Invariant;
use crate::observability::trace::Setup;
use crate::protocol::{Close, PairingKey};
use crate::rendezvous::Offer;
use crate::trace_parent::TraceParent;

/// An offer of an endpoint of this node. Its place in the rendezvous is released when it is dropped.
pub(super) struct OwnOffer {
    pub(super) offer: Offer,
    pub(super) setup: Setup,
    shared: Arc<Shared>,
    /// It has a tunnel, the only one of its key here.
    is_established: bool,
}

impl OwnOffer {
    /// Makes an offer. Its set-up is traced as part of this connection.
    pub(super) fn new(
        key: PairingKey,
        connection: Option<TraceParent>,
        shared: &Arc<Shared>,
    ) -> Box<Self> {
        let setup = Setup::new(&shared.telemetry.tracer, connection);
        let offer = Offer::new(key, setup.place());
        Box::new(Self { offer, setup, shared: Arc::clone(shared), is_established: false })
    }

    /// Notes that its tunnel begins. An error if its key has another tunnel on this node, which is
    /// a violated invariant.
    pub(super) fn establish(&mut self) -> Result<(), Close> {
        if let Err(other) = self.shared.registry.establish(&self.offer) {
            self.shared.telemetry.metrics.violated(
                Invariant::TwoLegsPerKey,
                format_args!("tunnel {} has the key of tunnel {other}, and ends", self.offer.id),
            );
            return Err(Close::Fault);
        }
        self.is_established = true;
        Ok(())
    }
}

impl Drop for OwnOffer {
    fn drop(&mut self) {
        if self.is_established
            && let Err(other) = self.shared.registry.disestablish(&self.offer)
        {
            self.shared.telemetry.metrics.violated(
                Invariant::ReleasedByOwner,
                format_args!("the entry of tunnel {} was that of {other:?}", self.offer.id),
            );
        }
        self.shared.registry.withdraw(self.offer.id);
        self.shared.rendezvous.release(self.offer.key, self.offer.id);
    }
}

#[cfg(test)]
#[path = "own_offer_tests.rs"]
mod tests;
