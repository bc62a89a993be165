//! From the first message to the partner: drives the [`Endpoint`](crate::protocol::Endpoint) of a
//! connection by what comes from its leg, the authenticator, the rendezvous and the clock.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep_until};
use tracing::{debug, info, warn};

use super::{Entry, Party, Shared, error_chain, send};
use crate::auth;
use crate::protocol::{Action, Chunk, Close, PairingKey, Verdict};
use crate::relay::close_leg;
use crate::rendezvous::{Answer, Offer};
use crate::transport::{End, Leg};

/// What a negotiation leads to.
pub(super) enum Outcome {
    /// The connection is over, or somebody else's.
    Over,
    /// The connection is over, but a partner had just been handed over to it.
    Orphan(Box<Party>),
    /// Both endpoints are here.
    Paired { first: Box<Party>, second: Box<Party>, entry: Entry },
}

/// What is being waited for besides the client.
enum Stage {
    Greeting,
    Authenticating(BoxFuture<'static, auth::Verdict>),
    Offering { entry: Entry, partner: Partner, answer: BoxFuture<'static, Answer> },
    Waiting { entry: Entry, partner: Partner },
}

type Partner = oneshot::Receiver<Box<Party>>;

enum Event {
    /// The leg can take another message of ours.
    Room,
    Received(Chunk),
    Ended(End),
    Verdict(auth::Verdict),
    Answer(Answer),
    Partner(Box<Party>),
    Deadline,
    Draining,
}

/// Serves a connection until it has a partner or is over. It may have waited before, elsewhere.
pub(super) async fn negotiate(mut party: Box<Party>, shared: &Arc<Shared>) -> Outcome {
    let mut stage = match party.endpoint.offer() {
        Some((key, _)) => offer(key, shared),
        None => Stage::Greeting,
    };
    let mut draining = pin!(shared.lifecycle.draining());
    let mut timer = pin!(sleep_until(Instant::now().into()));
    // Whether the endpoint may have something to say.
    let mut busy = true;
    loop {
        if let Some(deadline) = party.endpoint.deadline() {
            timer.as_mut().reset(deadline.into());
        }
        let event = poll_fn(|cx| {
            if draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Draining);
            }
            poll_event(cx, &mut *party.leg, &mut stage, timer.as_mut(), busy)
        });
        match event.await {
            Event::Room => match party.endpoint.poll_action() {
                None => busy = false,
                Some(Action::Send(message)) => send(&mut *party.leg, message).await,
                Some(Action::Authenticate(token)) => {
                    let verdict = Arc::clone(&shared.authenticator).authenticate(token);
                    stage = Stage::Authenticating(verdict);
                }
                Some(Action::Offer(key)) => {
                    party.ticket.authenticated();
                    stage = offer(key, shared);
                }
                Some(Action::Close(close)) => return over(party, stage, Some(close), shared).await,
            },
            Event::Received(chunk) => {
                party.endpoint.receive(&chunk);
                busy = true;
            }
            Event::Verdict(verdict) => {
                stage = Stage::Greeting;
                party.endpoint.authenticated(Instant::now(), told(verdict));
                busy = true;
            }
            Event::Answer(answer) => match (answer, stage) {
                (Answer::Wait, Stage::Offering { entry, partner, .. }) => {
                    debug!("waiting for the other endpoint");
                    stage = Stage::Waiting { entry, partner };
                }
                (Answer::Claimed(waiting), Stage::Offering { entry, .. }) => {
                    let key = entry.offer.key;
                    drop(entry);
                    match shared.registry.hand_over(waiting.id, party) {
                        Ok(()) => return Outcome::Over,
                        // It left between its offer and our claim.
                        Err(given_back) => {
                            party = given_back;
                            shared.rendezvous.release(key, waiting.id);
                            stage = offer(key, shared);
                        }
                    }
                }
                (Answer::Taken, Stage::Offering { .. }) => {
                    stage = Stage::Greeting;
                    party.endpoint.close(Close::Taken);
                    busy = true;
                }
                (_, other) => stage = other,
            },
            Event::Partner(second) => {
                if let Stage::Waiting { entry, .. } | Stage::Offering { entry, .. } = stage {
                    return Outcome::Paired { first: party, second, entry };
                }
                return Outcome::Orphan(second);
            }
            Event::Deadline => {
                party.endpoint.handle_timeout(Instant::now());
                if let Some(close) = say_the_last(&mut party).await {
                    return over(party, stage, Some(close), shared).await;
                }
            }
            Event::Draining => return over(party, stage, Some(Close::Draining), shared).await,
            Event::Ended(End::Fault(close)) => {
                return over(party, stage, Some(close), shared).await;
            }
            Event::Ended(End::Left | End::Failed) => return over(party, stage, None, shared).await,
            Event::Ended(End::Lost(error)) => {
                debug!(%error, "connection lost");
                return withdraw(stage, shared);
            }
        }
    }
}

/// What happens next. Ready with [`Event::Room`] as long as the endpoint is `busy`.
fn poll_event(
    cx: &mut Context<'_>,
    leg: &mut dyn Leg,
    stage: &mut Stage,
    timer: Pin<&mut Sleep>,
    busy: bool,
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
    leg.poll_recv(cx).map(|received| match received {
        Ok(chunk) => Event::Received(chunk),
        Err(end) => Event::Ended(end),
    })
}

impl Stage {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self {
            Self::Greeting => Poll::Pending,
            Self::Authenticating(verdict) => verdict.poll_unpin(cx).map(Event::Verdict),
            Self::Offering { answer, .. } => answer.poll_unpin(cx).map(Event::Answer),
            // The sender is only dropped by whoever takes it out, and that is us.
            Self::Waiting { partner, .. } => match ready!(partner.poll_unpin(cx)) {
                Ok(second) => Poll::Ready(Event::Partner(second)),
                Err(_) => Poll::Pending,
            },
        }
    }
}

/// Puts the endpoint up for its partner. Registered first: the partner may come at once.
fn offer(key: PairingKey, shared: &Arc<Shared>) -> Stage {
    let offer = Offer::new(key);
    let partner = shared.registry.register(offer.id);
    let entry = Entry { offer, shared: Arc::clone(shared) };
    let answer = Arc::clone(&shared.rendezvous).offer(offer);
    Stage::Offering { entry, partner, answer }
}

/// Logs a verdict and translates it for the protocol.
fn told(verdict: auth::Verdict) -> Verdict {
    match verdict {
        auth::Verdict::Accepted(user) => {
            info!(email = user.email, username = user.username, "authenticated");
            Verdict::Valid
        }
        auth::Verdict::Refused => {
            info!("token refused");
            Verdict::Invalid
        }
        auth::Verdict::Failed(failure) => {
            warn!(error = %error_chain(&failure), "a token could not be checked");
            match failure {
                auth::Failure::Timeout(_) => Verdict::Timeout,
                _ => Verdict::Unavailable,
            }
        }
    }
}

/// Sends what the endpoint still has to say; the reason for the close if there is one.
async fn say_the_last(party: &mut Party) -> Option<Close> {
    while let Some(action) = party.endpoint.poll_action() {
        match action {
            Action::Send(message) => send(&mut *party.leg, message).await,
            Action::Close(close) => return Some(close),
            Action::Authenticate(_) | Action::Offer(_) => {}
        }
    }
    None
}

/// Ends the connection. Its place in the rendezvous is free before the goodbye is said.
async fn over(
    mut party: Box<Party>,
    stage: Stage,
    close: Option<Close>,
    shared: &Arc<Shared>,
) -> Outcome {
    let outcome = withdraw(stage, shared);
    if let Some(close) = close {
        info!(reason = %close, "connection closed");
    } else {
        debug!("client left");
    }
    let patience = shared.timeouts.close;
    let closing = async move { close_leg(&mut *party.leg, close, patience).await };
    if matches!(outcome, Outcome::Orphan(_)) {
        // The partner must not wait for a goodbye that is none of its business.
        shared.lifecycle.spawn(closing);
    } else {
        closing.await;
    }
    outcome
}

/// Takes the endpoint out of the rendezvous. If a partner was handed over meanwhile, it comes out.
fn withdraw(stage: Stage, shared: &Arc<Shared>) -> Outcome {
    let (Stage::Offering { entry, mut partner, .. } | Stage::Waiting { entry, mut partner }) =
        stage
    else {
        return Outcome::Over;
    };
    if shared.registry.withdraw(entry.offer.id) {
        return Outcome::Over;
    }
    partner.try_recv().map_or(Outcome::Over, Outcome::Orphan)
}
