//! From the first message to the partner: drives the [`Endpoint`](crate::protocol::Endpoint) of a
//! connection by what comes from its leg, the authenticator, the rendezvous, other nodes and the
//! clock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::enrolment::{self, Enrolled};
use super::registry::{NotWaiting, Partner};
use super::stage::{Claim, Coming, Event, Stage, poll_event};
use super::tunnel::profile_of;
use super::{Entry, Party, Shared, error_chain, note_no_bridge, note_refusal, send};
use crate::auth;
use crate::cluster::client::BridgeError;
use crate::cluster::{Bridged, Refusal};
use crate::observability::metrics::{self, Step};
use crate::observability::trace::{Bridging, Ended, Setup};
use crate::observability::{Occurrence, Telemetry};
use crate::printable::Printable;
use crate::protocol::{Action, Close, PairingKey, Role, Token, TunnelProxyError, Verdict};
use crate::relay::close_leg;
use crate::rendezvous::{Answer, Home, Offer, Waiting};
use crate::transport::End;
use crate::turn::Turn;

/// Between two tries to reach the node of a partner, with up to half of it taken off at random.
const RETRY: Duration = Duration::from_secs(1);
/// In a cluster, a key that has just been freed on one node may still be taken for another: an
/// endpoint that comes back at once is not to be turned away for that.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// What a negotiation leads to.
pub(super) enum Outcome {
    /// The connection is over, or somebody else's.
    Over,
    /// The connection is over, but a partner of this node had just been handed over to it.
    Orphan(Box<Party>),
    /// The partner came here.
    Met { first: Box<Party>, partner: Partner, entry: Box<Entry> },
    /// The partner was fetched from its node.
    Bridged { party: Box<Party>, bridged: Bridged, claim: Claim },
    /// It is registered with the tunnel proxy.
    Enrolled { party: Box<Party>, enrolled: Enrolled },
}

/// Serves a connection until it has a partner or is over. It may have waited before, elsewhere.
pub(super) async fn negotiate(mut party: Box<Party>, shared: &Arc<Shared>) -> Outcome {
    let mut stage = match party.endpoint.offer() {
        Some((key, _)) => offer(key, &party, shared),
        None => Stage::Greeting,
    };
    let mut leaving = pin!(leaving(party.ticket.displaced(), shared));
    let mut timer = pin!(sleep_until(Instant::now().into()));
    // Whether the endpoint may have something to say, and whether its client has.
    let (mut busy, mut finished) = (true, false);
    let mut looked_twice = shared.peers.is_none();
    let mut turn = Turn::new();
    loop {
        turn.next().await;
        if let Some(deadline) = party.endpoint.deadline() {
            timer.as_mut().reset(deadline.into());
        }
        party.gauge.enter(stage.label());
        let event = poll_fn(|cx| {
            if let Poll::Ready(event) = leaving.as_mut().poll(cx) {
                return Poll::Ready(event);
            }
            poll_event(cx, &mut *party.leg, &mut stage, timer.as_mut(), (busy, finished))
        });
        let event = event.await;
        // A client that has broken a rule must not get a partner.
        if event.brings_partner()
            && let Some(close) = say_the_last(&mut party).await
        {
            return turned_away(party, stage, event, close, shared).await;
        }
        match event {
            Event::Room => match party.endpoint.poll_action() {
                // Whoever ends its direction before it has a tunnel wants none: it may as well
                // have ended altogether, which looks the same. It still gets its answers.
                None if finished && !stage.owes_an_answer() => {
                    return over(party, stage, None, shared).await;
                }
                None => busy = false,
                Some(Action::Send(message)) => answer(&mut party, message, &mut turn).await,
                Some(Action::Authenticate(token)) => {
                    stage = authenticate(token, None, &mut party, shared);
                }
                Some(Action::Offer(key)) => stage = offer(key, &party, shared),
                Some(Action::Register { role, token }) => {
                    (party, stage) = register(party, role, token, shared);
                }
                Some(Action::Close(close)) => return over(party, stage, Some(close), shared).await,
            },
            Event::Received(chunk) => {
                turn.spend(chunk.data.len());
                party.endpoint.receive(&chunk);
                busy = true;
            }
            Event::Finished => {
                party.endpoint.finished();
                (busy, finished) = (true, true);
            }
            Event::Verdict(verdict) => {
                busy = true;
                (party, stage) = judged(party, stage, &verdict, shared);
            }
            Event::Answer(answer) => {
                busy = true;
                match answered(party, stage, answer, &mut looked_twice, shared) {
                    Next::Stage(same, next) => (party, stage) = (same, next),
                    Next::Outcome(outcome) => return outcome,
                }
            }
            Event::EntryLost => stage = put_up_again(&mut party, stage, shared),
            Event::Bridge(result) => {
                busy = true;
                let Stage::Bridging { claim, bridging, .. } = stage else { continue };
                shared.telemetry.metrics.step(Step::Bridge, bridging.began().elapsed());
                stage = match result {
                    Ok(bridged) => return joined(party, bridged, claim),
                    Err(error) => not_bridged(&mut party, claim, &error, shared),
                };
            }
            Event::Registered(result) => {
                busy = true;
                let refused = result.as_ref().err().copied();
                stage = answer_registration(&mut party, &stage, refused, shared);
                // What is refused is closed when that has been said.
                if let Ok(enrolled) = result {
                    return registered(party, enrolled, shared).await;
                }
            }
            Event::Retry => {
                let Stage::Retrying { key, .. } = stage else { continue };
                stage = offer(key, &party, shared);
            }
            Event::Partner(partner) => return met(party, stage, partner, shared),
            Event::Deadline => {
                party.endpoint.handle_timeout(Instant::now());
                if let Some(close) = say_the_last(&mut party).await {
                    return over(party, stage, Some(close), shared).await;
                }
            }
            Event::Draining => return over(party, stage, Some(Close::Draining), shared).await,
            Event::Displaced => return gives_way(party, stage, shared).await,
            Event::Ended(end) => return ended(party, stage, end, shared).await,
        }
    }
}

/// Done when the connection has to leave, whatever it does.
async fn leaving(displaced: CancellationToken, shared: &Shared) -> Event {
    tokio::select! {
        () = shared.lifecycle.draining() => Event::Draining,
        () = displaced.cancelled() => Event::Displaced,
    }
}

async fn answer(party: &mut Party, message: String, turn: &mut Turn) {
    party.ticket.is_heard();
    turn.spend_answer(message.len());
    send(&mut *party.leg, message).await;
}

/// Has a token checked, for a registration if there is a role.
fn authenticate(token: Token, role: Option<Role>, party: &mut Party, shared: &Shared) -> Stage {
    party.ticket.shows(&token);
    let verdict = Arc::clone(&shared.authenticator).authenticate(token);
    Stage::Authenticating { verdict, since: Instant::now(), role }
}

/// Acts on what came of a token.
fn judged(
    mut party: Box<Party>,
    stage: Stage,
    verdict: &auth::Verdict,
    shared: &Arc<Shared>,
) -> (Box<Party>, Stage) {
    let Stage::Authenticating { since, role, .. } = stage else { return (party, stage) };
    note(verdict, since, &party, shared);
    let mut told = told(verdict);
    if let auth::Verdict::Accepted(user) = verdict
        && let Err(refusal) = party.ticket.is_verified(user)
    {
        note_refusal(refusal, party.client_addr, shared);
        told = Verdict::NoRoom;
    }
    let verdict = told;
    party.endpoint.authenticated(Instant::now(), verdict);
    match role {
        Some(role) if verdict == Verdict::Valid => register(party, role, None, shared),
        Some(_) | None => (party, Stage::Greeting),
    }
}

/// Registers the endpoint with the tunnel proxy, once its token has been checked if it needs one.
fn register(
    mut party: Box<Party>,
    role: Role,
    token: Option<Token>,
    shared: &Arc<Shared>,
) -> (Box<Party>, Stage) {
    if let Some(token) = token {
        let stage = authenticate(token, Some(role), &mut party, shared);
        return (party, stage);
    }
    let label = match role {
        Role::Gateway(_) => "gateway",
        Role::App(_) => "app",
    };
    if let Err(refusal) = party.ticket.registers() {
        note_refusal(refusal, party.client_addr, shared);
        let error = TunnelProxyError::InternalServerError;
        enrolment::note(label, Some(error), shared);
        party.endpoint.registered(Err(error));
        return (party, Stage::Greeting);
    }
    let (party, enrolling) = enrolment::enrol(party, role, shared);
    (party, Stage::Registering { enrolling, role: label })
}

/// Has the endpoint answer that it is registered, or why it is `refused`.
fn answer_registration(
    party: &mut Party,
    stage: &Stage,
    refused: Option<TunnelProxyError>,
    shared: &Shared,
) -> Stage {
    if let Stage::Registering { role, .. } = stage {
        enrolment::note(role, refused, shared);
    }
    party.endpoint.registered(refused.map_or(Ok(()), Err));
    Stage::Greeting
}

/// Tells the endpoint that it is registered, before anything else can reach it.
async fn registered(mut party: Box<Party>, enrolled: Enrolled, shared: &Arc<Shared>) -> Outcome {
    match say_the_last(&mut party).await {
        Some(close) => over(party, Stage::Greeting, Some(close), shared).await,
        None => Outcome::Enrolled { party, enrolled },
    }
}

/// Puts the endpoint up for its partner. Registered first: the partner may come at once.
fn offer(key: PairingKey, party: &Party, shared: &Arc<Shared>) -> Stage {
    let setup = Setup::new(&shared.telemetry.tracer, party.trace.place());
    let offer = Offer::new(key, setup.place());
    let partner = shared.registry.register(offer);
    let entry = Box::new(Entry { offer, setup, shared: Arc::clone(shared), is_established: false });
    put_up(entry, partner, shared)
}

/// Puts an offer up, maybe again. What is lost from now on is noticed: also before the answer.
fn put_up(entry: Box<Entry>, partner: Coming, shared: &Arc<Shared>) -> Stage {
    let epoch = shared.rendezvous.epoch();
    let answer = Arc::clone(&shared.rendezvous).offer(entry.offer);
    Stage::Offering { entry, partner, answer, epoch, since: Instant::now() }
}

/// The rendezvous may have lost the entry of an endpoint that waits.
fn put_up_again(party: &mut Party, stage: Stage, shared: &Arc<Shared>) -> Stage {
    let Stage::Waiting { entry, partner, since, .. } = stage else { return stage };
    party.waited += since.elapsed();
    put_up(entry, partner, shared)
}

enum Next {
    Stage(Box<Party>, Stage),
    Outcome(Outcome),
}

/// Acts on what the rendezvous says.
fn answered(
    mut party: Box<Party>,
    stage: Stage,
    answer: Answer,
    looked_twice: &mut bool,
    shared: &Arc<Shared>,
) -> Next {
    let Stage::Offering { entry, mut partner, epoch, since, .. } = stage else {
        return Next::Stage(party, stage);
    };
    let Telemetry { metrics, tracer, .. } = &shared.telemetry;
    let asked = (since, Instant::now());
    metrics.step(Step::Claim, since.elapsed());
    if answer == Answer::Wait {
        debug!(tunnel = %entry.offer.id, "waiting for the other endpoint");
        tracer.asked(entry.setup.place(), None, asked);
        let lost = shared.rendezvous.lost(entry.offer, epoch);
        let since = asked.1;
        return Next::Stage(party, Stage::Waiting { entry, partner, lost, since });
    }
    let offer = entry.offer;
    if !shared.registry.withdraw(offer.id)
        && let Ok(partner) = partner.try_recv()
    {
        // Somebody was quicker than the rendezvous; a claim of ours is not needed.
        if let Answer::Claimed(waiting) = answer {
            shared.rendezvous.give_back(offer.key, waiting.id, offer.id);
        }
        return Next::Outcome(Outcome::Met { first: party, partner, entry });
    }
    match answer {
        Answer::Claimed(Waiting { id, home: Home::Here }) => {
            party.claimed = Some(asked);
            match shared.registry.hand_over(id, Partner::Here(party)) {
                // It left between its offer and our claim.
                Err((NotWaiting::Gone, Partner::Here(party))) => {
                    shared.rendezvous.release(offer.key, id);
                    let stage = self::offer(offer.key, &party, shared);
                    Next::Stage(party, stage)
                }
                // Its tunnel stands; the key is not ours to free.
                Err((_, Partner::Here(mut party))) => {
                    party.endpoint.close(Close::Taken);
                    Next::Stage(party, Stage::Greeting)
                }
                Ok(()) | Err((_, Partner::There(_))) => Next::Outcome(Outcome::Over),
            }
        }
        Answer::Claimed(Waiting { id, home: Home::There { node, secret, trace } }) => {
            let rendezvous = Arc::clone(&shared.rendezvous);
            let claim = Claim::new(&offer, id, &node.address, trace, rendezvous);
            tracer.asked(trace, party.trace.place(), asked);
            let bridging = Bridging::new(tracer, trace, party.trace.place());
            let (shared, profile) = (Arc::clone(shared), profile_of(&party));
            let its = bridging.clone();
            let call = async move {
                match (&shared.peers, profile) {
                    (Some(peers), Some(profile)) => {
                        peers.bridge(&node, (id, secret), (&profile, None), &its).await
                    }
                    _ => Err(BridgeError::Address(node.address)),
                }
            };
            Next::Stage(party, Stage::Bridging { claim, call: call.boxed(), bridging })
        }
        Answer::Taken if !std::mem::replace(looked_twice, true) => {
            Next::Stage(party, retry(offer.key, SECOND_LOOK))
        }
        Answer::Taken | Answer::Wait => {
            party.endpoint.close(Close::Taken);
            Next::Stage(party, Stage::Greeting)
        }
    }
}

/// The partner has come to the endpoint that was put up.
fn met(mut party: Box<Party>, stage: Stage, partner: Partner, shared: &Shared) -> Outcome {
    match stage {
        Stage::Waiting { entry, since, .. } => {
            party.waited += since.elapsed();
            entry.setup.waited(since);
            shared.telemetry.metrics.waited(party.waited);
            Outcome::Met { first: party, partner, entry }
        }
        Stage::Offering { entry, .. } => Outcome::Met { first: party, partner, entry },
        Stage::Greeting
        | Stage::Authenticating { .. }
        | Stage::Registering { .. }
        | Stage::Bridging { .. }
        | Stage::Retrying { .. } => Outcome::Over,
    }
}

/// The endpoint has been joined to its partner on another node.
fn joined(party: Box<Party>, bridged: Bridged, mut claim: Claim) -> Outcome {
    claim.settle();
    Outcome::Bridged { party, bridged, claim }
}

/// What to do when the partner cannot be fetched.
fn not_bridged(
    party: &mut Party,
    mut claim: Claim,
    error: &BridgeError,
    shared: &Arc<Shared>,
) -> Stage {
    match error {
        BridgeError::Refused(Refusal::Gone) => {
            claim.settle();
            shared.rendezvous.release(claim.key, claim.owner);
        }
        BridgeError::Refused(Refusal::Taken) => {
            claim.settle();
            party.endpoint.close(Close::Taken);
            return Stage::Greeting;
        }
        BridgeError::Refused(Refusal::Loop) => {
            claim.settle();
            party.endpoint.close(Close::Loop);
            return Stage::Greeting;
        }
        // Another node than the owner's cannot know whether the owner still waits.
        BridgeError::Refused(Refusal::Denied | Refusal::Version(_) | Refusal::WrongNode)
        | BridgeError::Address(_)
        | BridgeError::Unreachable(_)
        | BridgeError::Call(_)
        | BridgeError::Timeout
        | BridgeError::Answer => note_no_bridge(&claim.address, claim.owner, error, shared),
    }
    retry(claim.key, RETRY)
}

fn retry(key: PairingKey, pause: Duration) -> Stage {
    let pause = pause.mul_f64(rand::random_range(0.5..1.0));
    Stage::Retrying { key, pause: Box::pin(sleep(pause)) }
}

fn note(verdict: &auth::Verdict, since: Instant, party: &Party, shared: &Shared) {
    let metrics = &shared.telemetry.metrics;
    let result = verdict.label();
    let failed = matches!(verdict, auth::Verdict::Failed(_));
    metrics.authenticated(result, since.elapsed());
    metrics.step(Step::Authenticate, since.elapsed());
    party.trace.authenticated(since, result, failed);
    let from = party.client_addr.ip();
    match verdict {
        auth::Verdict::Accepted(user) => {
            let shown = |text: &String| Printable::name(text).to_string();
            let (email, username) = (user.email.as_ref(), user.username.as_ref());
            info!(email = email.map(shown), username = username.map(shown), "authenticated");
        }
        auth::Verdict::Refused => {
            let refused = Occurrence::refused("token refused", "not valid").from(from);
            if shared.telemetry.recurs(&refused) {
                info!("token refused");
            }
        }
        auth::Verdict::Failed(failure) => {
            let failed = Occurrence::trouble("a token could not be checked", result).from(from);
            if shared.telemetry.recurs(&failed) {
                warn!(error = %error_chain(failure), "a token could not be checked");
            }
        }
    }
}

/// Translates a verdict for the protocol.
fn told(verdict: &auth::Verdict) -> Verdict {
    match verdict {
        auth::Verdict::Accepted(_) => Verdict::Valid,
        auth::Verdict::Refused => Verdict::Invalid,
        auth::Verdict::Failed(auth::Failure::Timeout(_)) => Verdict::Timeout,
        auth::Verdict::Failed(
            auth::Failure::Busy
            | auth::Failure::Unreachable(_)
            | auth::Failure::Status(_)
            | auth::Failure::Answer(_),
        ) => Verdict::Unavailable,
    }
}

/// Sends what the endpoint still has to say; the reason for the close if there is one.
async fn say_the_last(party: &mut Party) -> Option<Close> {
    while let Some(action) = party.endpoint.poll_action() {
        match action {
            Action::Send(message) => send(&mut *party.leg, message).await,
            Action::Close(close) => return Some(close),
            Action::Authenticate(_) | Action::Offer(_) | Action::Register { .. } => {}
        }
    }
    None
}

/// The endpoint has ended the connection, or must be given up.
async fn ended(mut party: Box<Party>, stage: Stage, end: End, shared: &Arc<Shared>) -> Outcome {
    match end {
        End::Fault(close) | End::Closed(close) => over(party, stage, Some(close), shared).await,
        End::Left | End::Finished | End::Failed => over(party, stage, None, shared).await,
        End::Lost(error) => {
            debug!(%error, "connection lost");
            shared.telemetry.metrics.connection_closed("lost");
            party.trace.ends(Ended::Lost);
            withdraw(stage, "lost", shared)
        }
    }
}

/// Ends the connection. Its place in the rendezvous is free before the goodbye is said.
async fn over(
    party: Box<Party>,
    stage: Stage,
    close: Option<Close>,
    shared: &Arc<Shared>,
) -> Outcome {
    let outcome = withdraw(stage, close.map_or("left", Close::class), shared);
    end(party, close, outcome, shared).await
}

/// Says goodbye to the endpoint, which has left the rendezvous.
async fn end(
    mut party: Box<Party>,
    close: Option<Close>,
    outcome: Outcome,
    shared: &Arc<Shared>,
) -> Outcome {
    let label = close.map_or("left", Close::class);
    shared.telemetry.metrics.connection_closed(label);
    party.gauge.enter(metrics::Stage::Greeting);
    if let Some(close) = close {
        let closed = Occurrence::refused("connection closed", label);
        if shared.telemetry.recurs(&closed.from(party.client_addr.ip())) {
            info!(reason = %close, "connection closed");
        }
        party.trace.ends(Ended::Closed(close));
    } else {
        debug!("client left");
        party.trace.ends(Ended::Left);
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

/// Closes a connection that makes room for others. To say so to all of many would take the room that
/// they are to make.
async fn gives_way(mut party: Box<Party>, stage: Stage, shared: &Arc<Shared>) -> Outcome {
    let close = Close::NoRoom;
    if let Ok(_place) = shared.refusals.try_acquire() {
        return over(party, stage, Some(close), shared).await;
    }
    shared.telemetry.metrics.connection_closed(close.class());
    party.trace.ends(Ended::Closed(close));
    withdraw(stage, close.class(), shared)
}

/// Takes the endpoint out of the rendezvous. If a partner was handed over meanwhile, it comes out.
fn withdraw(stage: Stage, why: &'static str, shared: &Arc<Shared>) -> Outcome {
    let (entry, mut partner) = match stage {
        Stage::Offering { entry, partner, .. } | Stage::Waiting { entry, partner, .. } => {
            (entry, partner)
        }
        // Its set-up goes on without it, and its claim is given back.
        Stage::Bridging { .. }
        | Stage::Greeting
        | Stage::Authenticating { .. }
        | Stage::Registering { .. }
        | Stage::Retrying { .. } => {
            return Outcome::Over;
        }
    };
    entry.setup.ends(entry.offer.id, None, Err(why));
    if shared.registry.withdraw(entry.offer.id) {
        return Outcome::Over;
    }
    partner.try_recv().map_or(Outcome::Over, without_partner)
}

/// What becomes of the endpoint that was handed over to one that ends: it waits again.
fn without_partner(partner: Partner) -> Outcome {
    match partner {
        Partner::Here(partner) => Outcome::Orphan(partner),
        Partner::There(bridge) => {
            bridge.answer.refuse(Refusal::Gone);
            Outcome::Over
        }
    }
}

/// Closes an endpoint at the moment in which it would get its partner, which is free again.
async fn turned_away(
    party: Box<Party>,
    stage: Stage,
    event: Event,
    close: Close,
    shared: &Arc<Shared>,
) -> Outcome {
    if let (Event::Answer(Answer::Claimed(waiting)), Stage::Offering { entry, .. }) =
        (&event, &stage)
    {
        shared.rendezvous.give_back(entry.offer.key, waiting.id, entry.offer.id);
    }
    match (event, stage) {
        (Event::Partner(partner), stage) => {
            withdraw(stage, close.class(), shared);
            end(party, Some(close), without_partner(partner), shared).await
        }
        (Event::Bridge(Ok(bridged)), Stage::Bridging { claim, .. }) => {
            leave_bridge(bridged, claim, shared);
            over(party, Stage::Greeting, Some(close), shared).await
        }
        (_, stage) => over(party, stage, Some(close), shared).await,
    }
}

/// Ends a tunnel that the other node's endpoint has been notified of.
fn leave_bridge(bridged: Bridged, mut claim: Claim, shared: &Shared) {
    claim.settle();
    let Bridged { mut leg, .. } = bridged;
    let patience = shared.timeouts.close;
    shared.lifecycle.spawn(async move {
        close_leg(&mut *leg, Some(Close::OtherLost), patience).await;
    });
}
