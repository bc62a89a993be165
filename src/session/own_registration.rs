//! What an endpoint of this node has registered: its UUID's place in the directory, until it is
//! dropped.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::probe::Listed;
use crate::ids::OfferId;
use crate::rendezvous::Registration;

/// The registration of an endpoint of this node. Its UUID is released when it is dropped.
pub(super) struct OwnRegistration {
    pub(super) registration: Registration,
    lost: CancellationToken,
    pub(super) shared: Arc<Shared>,
    /// A rival that registers has this holder queried for a sign of life.
    listed: Listed,
}

impl OwnRegistration {
    /// Makes one that the directory does not know yet; `listed` has its leg probed for rivals.
    pub(super) fn new(registration: Registration, listed: Listed, shared: &Arc<Shared>) -> Self {
        let lost = CancellationToken::new();
        Self { registration, lost, shared: Arc::clone(shared), listed }
    }

    /// The directory has the registration, and cancels this when it has lost it.
    pub(super) fn is_registered(&mut self, lost: CancellationToken) {
        self.lost = lost;
    }

    pub(super) fn id(&self) -> OfferId {
        self.registration.id
    }

    /// Done when the UUID is no longer registered for this endpoint.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Done when the endpoint has been silent for too long to keep its UUID from a rival.
    pub(super) async fn silent(&self) {
        self.listed.silent().await;
    }
}

impl Drop for OwnRegistration {
    fn drop(&mut self) {
        self.shared.directory.unregister(self.registration.uuid, self.registration.id);
    }
}
