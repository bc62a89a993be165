//! From the first message to the partner: drives the [`Endpoint`](crate::protocol::Endpoint) of a
//! connection by the events of its leg, the authenticator, the rendezvous, other nodes and the clock.
//!
//! [`Negotiation::run`] waits for an event and dispatches it. What an event does is in `registering`
//! (tokens and registrations), `pairing` (offers, claims and bridges) and `closing`.

mod closing;
mod pairing;
mod registering;
mod stage;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use self::stage::{Event, Input, Stage, poll_event};
use super::claim::Claim;
use super::enrolment::Enrolled;
use super::own_offer::OwnOffer;
use super::registry::Partner;
use super::{Session, Shared};
use crate::cluster::Bridged;
use crate::protocol::{Action, Chunk, Close};
use crate::turn::Turn;

/// What a negotiation leads to.
pub(super) enum Outcome {
    /// The connection is closed, or was handed over to the session of its partner.
    Over,
    /// The connection is closed, but an endpoint of this node had just been handed over to it.
    Orphan(Box<Session>),
    /// The partner has arrived at this session.
    Paired { first: Box<Session>, partner: Partner, offer: Box<OwnOffer> },
    /// The partner is on another node, and bridged.
    Bridged { session: Box<Session>, bridged: Bridged, claim: Claim },
    /// It is registered with the tunnel proxy.
    Enrolled { session: Box<Session>, enrolled: Enrolled },
}

/// What follows from an event: the negotiation goes on, or has led to something.
type Step<'a> = ControlFlow<Outcome, Negotiation<'a>>;

/// A session without a partner.
pub(super) struct Negotiation<'a> {
    session: Box<Session>,
    stage: Stage,
    input: Input,
    /// A key that was taken has been offered a second time, see `pairing`.
    has_looked_twice: bool,
    turn: Turn,
    shared: &'a Arc<Shared>,
}

impl<'a> Negotiation<'a> {
    /// Begins one. An endpoint that lost the partner it was handed over to is offered again.
    pub(super) fn new(session: Box<Session>, shared: &'a Arc<Shared>) -> Self {
        let key = session.endpoint.offer().map(|(key, _)| key);
        let mut negotiation = Self {
            session,
            stage: Stage::Greeting,
            input: Input { has_actions: true, is_finished: false },
            // Only in a cluster may another node still have what this one has freed.
            has_looked_twice: shared.peers.is_none(),
            turn: Turn::new(),
            shared,
        };
        if let Some(key) = key {
            negotiation.offer(key);
        }
        negotiation
    }

    /// Runs it until the session has a partner or is over.
    pub(super) async fn run(mut self) -> Outcome {
        let mut leaving = pin!(leave(self.session.ticket.displaced(), self.shared));
        let mut timer = pin!(sleep_until(Instant::now().into()));
        loop {
            self.turn.next().await;
            if let Some(deadline) = self.session.endpoint.deadline() {
                timer.as_mut().reset(deadline.into());
            }
            self.session.gauge.enter(self.stage.label());
            let event = poll_fn(|cx| {
                if let Poll::Ready(event) = leaving.as_mut().poll(cx) {
                    return Poll::Ready(event);
                }
                let Self { session, stage, input, .. } = &mut self;
                poll_event(cx, &mut *session.leg, stage, timer.as_mut(), *input)
            });
            let event = event.await;
            // A client that has broken a rule must not get a partner.
            if event.brings_partner()
                && let Some(close) = self.session.send_remaining().await
            {
                return self.deny_partner(event, close).await;
            }
            match self.handle(event).await {
                ControlFlow::Continue(next) => self = next,
                ControlFlow::Break(outcome) => return outcome,
            }
        }
    }

    async fn handle(mut self, event: Event) -> Step<'a> {
        match event {
            Event::Room => return self.take_action().await,
            Event::Received(chunk) => self.receive(&chunk),
            Event::Finished => self.finish_input(),
            Event::Verdict(verdict) => return ControlFlow::Continue(self.apply_verdict(&verdict)),
            Event::Answer(answer) => return self.apply_answer(answer),
            Event::EntryLost => self.restore_entry(),
            Event::Bridge(result) => return self.apply_bridge(result),
            Event::Registered(result) => return self.apply_registration(result).await,
            Event::Retry => self.offer_again(),
            Event::Partner(partner) => return ControlFlow::Break(self.accept_partner(partner)),
            Event::Deadline => return self.handle_timeout().await,
            Event::Draining => {
                return ControlFlow::Break(self.close(Some(Close::Draining)).await);
            }
            Event::Displaced => return ControlFlow::Break(self.make_room().await),
            Event::Ended(end) => return ControlFlow::Break(self.end(end).await),
        }
        ControlFlow::Continue(self)
    }

    /// Takes the next action of the endpoint, if it has one.
    async fn take_action(mut self) -> Step<'a> {
        match self.session.endpoint.poll_action() {
            // A client that ends its direction before it has a tunnel wants none. It may have ended
            // both, which looks the same. It still gets its answers.
            None if self.input.is_finished && !self.stage.owes_an_answer() => {
                return ControlFlow::Break(self.close(None).await);
            }
            None => self.input.has_actions = false,
            Some(Action::Send(message)) => {
                self.session.ticket.is_heard();
                self.turn.spend_answer(message.len());
                self.session.send(message).await;
            }
            Some(Action::Authenticate(token)) => self.authenticate(token, None),
            Some(Action::Offer(key)) => self.offer(key),
            Some(Action::Register { role, token }) => {
                return ControlFlow::Continue(self.register(role, token));
            }
            Some(Action::Close(close)) => {
                return ControlFlow::Break(self.close(Some(close)).await);
            }
        }
        ControlFlow::Continue(self)
    }

    fn receive(&mut self, chunk: &Chunk) {
        self.turn.spend(chunk.data.len());
        self.session.endpoint.receive(chunk);
        self.input.has_actions = true;
    }

    fn finish_input(&mut self) {
        self.session.endpoint.finished();
        self.input = Input { has_actions: true, is_finished: true };
    }

    async fn handle_timeout(mut self) -> Step<'a> {
        self.session.endpoint.handle_timeout(Instant::now());
        match self.session.send_remaining().await {
            Some(close) => ControlFlow::Break(self.close(Some(close)).await),
            None => ControlFlow::Continue(self),
        }
    }

    /// Takes the stage out, and leaves [`Stage::Greeting`].
    fn take_stage(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Greeting)
    }
}

/// Completes when the connection has to leave, whatever it does.
async fn leave(displaced: CancellationToken, shared: &Shared) -> Event {
    tokio::select! {
        () = shared.lifecycle.draining() => Event::Draining,
        () = displaced.cancelled() => Event::Displaced,
    }
}
