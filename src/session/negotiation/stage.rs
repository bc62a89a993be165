//! Where a connection without a partner is on its way, and what can happen to it there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::time::Sleep;

use crate::auth;
use crate::cluster::Bridged;
use crate::cluster::client::BridgeError;
use crate::observability::metrics;
use crate::observability::trace::Bridging;
use crate::protocol::{Chunk, PairingKey, Role, TunnelProxyError};
use crate::rendezvous::Answer;
use crate::session::claim::Claim;
use crate::session::enrolment::{Enrolled, Enrolling};
use crate::session::own_offer::OwnOffer;
use crate::session::registry::Partner;
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
        offer: Box<OwnOffer>,
        partner: PartnerReceiver,
        answer: BoxFuture<'static, Answer>,
        epoch: watch::Receiver<u64>,
        since: Instant,
    },
    Waiting {
        offer: Box<OwnOffer>,
        partner: PartnerReceiver,
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

/// Receives the partner of an offer from the session or the bridge that brings it.
pub(super) type PartnerReceiver = oneshot::Receiver<Partner>;

/// What is still expected of the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    /// The endpoint may have actions to take.
    pub(super) has_actions: bool,
    /// The client sends nothing more.
    pub(super) is_finished: bool,
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

/// Returns what happens next: [`Event::Room`] as long as the endpoint has actions and the leg takes
/// their messages.
pub(super) fn poll_event(
    cx: &mut Context<'_>,
    leg: &mut dyn Leg,
    stage: &mut Stage,
    timer: Pin<&mut Sleep>,
    input: Input,
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
    // Without room for an answer, nothing is read that would need one.
    if let Err(end) = ready!(leg.poll_ready(cx)) {
        return Poll::Ready(Event::Ended(end));
    }
    if input.has_actions {
        return Poll::Ready(Event::Room);
    }
    if let Poll::Ready(Err(end)) = leg.poll_flush(cx) {
        return Poll::Ready(Event::Ended(end));
    }
    if input.is_finished {
        return Poll::Pending;
    }
    leg.poll_recv(cx).map(|received| match received {
        Ok(chunk) => Event::Received(chunk),
        Err(End::Finished) => Event::Finished,
        Err(end) => Event::Ended(end),
    })
}

impl Stage {
    /// Whether the client has sent a request that is not answered yet.
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

fn poll_partner(partner: &mut PartnerReceiver, cx: &mut Context<'_>) -> Poll<Event> {
    // The sender is dropped only when this session takes its offer out of the registry.
    match ready!(partner.poll_unpin(cx)) {
        Ok(partner) => Poll::Ready(Event::Partner(partner)),
        Err(_) => Poll::Pending,
    }
}
