//! Where a connection without a partner is on its way, and what can happen to it there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::time::Sleep;

use super::Entry;
use super::enrolment::{Enrolled, Enrolling};
use super::registry::Partner;
use crate::auth;
use crate::cluster::Bridged;
use crate::cluster::client::BridgeError;
use crate::ids::OfferId;
use crate::observability::metrics;
use crate::observability::trace::Bridging;
use crate::protocol::{Chunk, PairingKey, Role, TunnelProxyError};
use crate::rendezvous::{Answer, Offer, Rendezvous};
use crate::trace_parent::TraceParent;
use crate::transport::{End, Leg};

/// What is being waited for besides the client.
pub(super) enum Stage {
    Greeting,
    Authenticating {
        verdict: BoxFuture<'static, auth::Verdict>,
        since: Instant,
        /// What it wants to be registered as, if that is what it shows a token for.
        role: Option<Role>,
    },
    Registering {
        enrolling: Enrolling,
        role: &'static str,
    },
    Offering {
        entry: Box<Entry>,
        partner: Coming,
        answer: BoxFuture<'static, Answer>,
        epoch: watch::Receiver<u64>,
        since: Instant,
    },
    Waiting {
        entry: Box<Entry>,
        partner: Coming,
        lost: BoxFuture<'static, ()>,
        since: Instant,
    },
    Bridging {
        claim: Claim,
        call: BoxFuture<'static, Result<Bridged, BridgeError>>,
        bridging: Bridging,
    },
    Retrying {
        key: PairingKey,
        pause: Pin<Box<Sleep>>,
    },
}

pub(super) type Coming = oneshot::Receiver<Partner>;

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

/// What can happen to a connection that has no partner yet.
pub(super) enum Event {
    /// The leg can take another message of ours.
    Room,
    Received(Chunk),
    /// The client sends nothing more, and waits for what it has asked for.
    Finished,
    Ended(End),
    Verdict(auth::Verdict),
    Answer(Answer),
    Partner(Partner),
    /// The rendezvous may have lost the entry.
    EntryLost,
    Bridge(Result<Bridged, BridgeError>),
    Registered(Result<Enrolled, TunnelProxyError>),
    Retry,
    Deadline,
    Draining,
    /// It has to make room for others.
    Displaced,
}

impl Event {
    /// Whether the endpoint would be given a partner by it, or the prospect of one.
    pub(super) fn brings_partner(&self) -> bool {
        matches!(self, Self::Partner(_) | Self::Answer(_) | Self::Bridge(_))
    }
}

/// What happens next. Ready with [`Event::Room`] as long as the endpoint is `busy`.
pub(super) fn poll_event(
    cx: &mut Context<'_>,
    leg: &mut dyn Leg,
    stage: &mut Stage,
    timer: Pin<&mut Sleep>,
    (busy, finished): (bool, bool),
) -> Poll<Event> {
    if let Poll::Ready(event) = stage.poll(cx) {
        return Poll::Ready(event);
    }
    if timer.poll(cx).is_ready() {
        return Poll::Ready(Event::Deadline);
    }
    if let Poll::Ready(end) = leg.poll_health(cx) {
        return Poll::Ready(Event::Ended(end));
    }
    // No room for an answer: then nothing more is read that would need one.
    if let Err(end) = ready!(leg.poll_ready(cx)) {
        return Poll::Ready(Event::Ended(end));
    }
    if busy {
        return Poll::Ready(Event::Room);
    }
    if let Poll::Ready(Err(end)) = leg.poll_flush(cx) {
        return Poll::Ready(Event::Ended(end));
    }
    if finished {
        return Poll::Pending;
    }
    leg.poll_recv(cx).map(|received| match received {
        Ok(chunk) => Event::Received(chunk),
        Err(End::Finished) => Event::Finished,
        Err(end) => Event::Ended(end),
    })
}

impl Stage {
    /// Whether the client has asked for something and has not been told yet what came of it.
    pub(super) fn owes_an_answer(&self) -> bool {
        matches!(self, Self::Authenticating { .. } | Self::Registering { .. })
    }

    pub(super) fn label(&self) -> metrics::Stage {
        match self {
            Self::Greeting => metrics::Stage::Greeting,
            Self::Authenticating { .. } => metrics::Stage::Authenticating,
            Self::Registering { .. } => metrics::Stage::Registering,
            Self::Offering { .. } => metrics::Stage::Offering,
            Self::Waiting { .. } => metrics::Stage::Waiting,
            Self::Bridging { .. } | Self::Retrying { .. } => metrics::Stage::Bridging,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self {
            Self::Greeting => Poll::Pending,
            Self::Authenticating { verdict, .. } => verdict.poll_unpin(cx).map(Event::Verdict),
            Self::Registering { enrolling, .. } => enrolling.poll_unpin(cx).map(Event::Registered),
            Self::Offering { answer, partner, .. } => match poll_partner(partner, cx) {
                Poll::Pending => answer.poll_unpin(cx).map(Event::Answer),
                ready @ Poll::Ready(_) => ready,
            },
            Self::Waiting { partner, lost, .. } => match poll_partner(partner, cx) {
                Poll::Pending => lost.poll_unpin(cx).map(|()| Event::EntryLost),
                ready @ Poll::Ready(_) => ready,
            },
            Self::Bridging { call, .. } => call.poll_unpin(cx).map(Event::Bridge),
            Self::Retrying { pause, .. } => pause.poll_unpin(cx).map(|()| Event::Retry),
        }
    }
}

fn poll_partner(partner: &mut Coming, cx: &mut Context<'_>) -> Poll<Event> {
    // The sender is only dropped by whoever takes it out, and that is us.
    match ready!(partner.poll_unpin(cx)) {
        Ok(partner) => Poll::Ready(Event::Partner(partner)),
        Err(_) => Poll::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Token;
    use crate::rendezvous::{MemoryRendezvous, Waiting};

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
