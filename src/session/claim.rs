//! What an endpoint of this node holds on an offer of another node, from the claim until the two are
//! joined or never will be.

use std::sync::Arc;

use crate::ids::OfferId;
use crate::protocol::PairingKey;
use crate::rendezvous::{Offer, Rendezvous};
use crate::trace_parent::TraceParent;

/// The claim of this endpoint on an offer of another node. Given back when dropped, unless it is
/// settled: no other endpoint can claim the offer until then.
pub(super) struct Claim {
    pub(super) key: PairingKey,
    pub(super) owner: OfferId,
    pub(super) claimer: OfferId,
    /// The bridge address of the other node.
    pub(super) address: Arc<str>,
    /// The set-up of the tunnel, as its first node calls it.
    pub(super) setup: Option<TraceParent>,
    rendezvous: Arc<dyn Rendezvous>,
    is_settled: bool,
}

impl Claim {
    pub(super) fn new(
        offer: &Offer,
        owner: OfferId,
        address: &str,
        setup: Option<TraceParent>,
        rendezvous: Arc<dyn Rendezvous>,
    ) -> Self {
        Self {
            key: offer.key,
            owner,
            claimer: offer.id,
            address: address.into(),
            setup,
            rendezvous,
            is_settled: false,
        }
    }

    /// The other node has joined the two, or has given the reason why it never will.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_settled {
            self.rendezvous.give_back(self.key, self.owner, self.claimer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Token;
    use crate::rendezvous::{Answer, MemoryRendezvous, Waiting};

    /// An offer that waits, and the claim of another one on it.
    async fn claim(rendezvous: &Arc<MemoryRendezvous>) -> (Offer, Claim) {
        let key = PairingKey::new(&Token::new("t"), None);
        let (owner, claimer) = (Offer::new(key, None), Offer::new(key, None));
        assert_eq!(Arc::clone(rendezvous).offer(owner).await, Answer::Wait);
        let answer = Arc::clone(rendezvous).offer(claimer).await;
        assert!(matches!(answer, Answer::Claimed(Waiting { id, .. }) if id == owner.id));
        let rendezvous = Arc::clone(rendezvous) as Arc<dyn Rendezvous>;
        (owner, Claim::new(&claimer, owner.id, "there:1", None, rendezvous))
    }

    #[tokio::test]
    async fn a_claim_is_given_back_when_its_session_panics() {
        let rendezvous = Arc::<MemoryRendezvous>::default();
        let (owner, claim) = claim(&rendezvous).await;
        let session = tokio::spawn(async move {
            let _claim = claim;
            panic!("as a session may, for a fault of ours");
        });
        assert!(session.await.is_err_and(|error| error.is_panic()));
        let next = Offer::new(owner.key, None);
        let answer = rendezvous.offer(next).await;
        assert!(matches!(answer, Answer::Claimed(Waiting { id, .. }) if id == owner.id));
    }

    #[tokio::test]
    async fn a_settled_claim_is_not_given_back() {
        let rendezvous = Arc::<MemoryRendezvous>::default();
        let (owner, mut claim) = claim(&rendezvous).await;
        claim.settle();
        drop(claim);
        assert_eq!(rendezvous.offer(Offer::new(owner.key, None)).await, Answer::Taken);
    }
}
