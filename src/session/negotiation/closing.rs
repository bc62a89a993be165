//! How a session without a partner ends, and what becomes of its place in the rendezvous.

use std::sync::Arc;

use super::stage::{Event, Stage};
use super::{Negotiation, Outcome};
use crate::cluster::{Bridged, Refusal};
use crate::observability::{ConnectionEnd, Fact, metrics};
use crate::protocol::Close;
use crate::relay::close_leg;
use crate::rendezvous::Answer;
use crate::session::claim::Claim;
use crate::session::registry::Partner;
use crate::session::{Session, Shared};
use crate::transport::End;

impl Negotiation<'_> {
    /// The connection has ended, or must be closed for what its leg has found.
    pub(super) async fn end(self, end: End) -> Outcome {
        match end {
            End::Fault(close) | End::Closed(close) => self.close(Some(close)).await,
            End::Left | End::Finished | End::Failed => self.close(None).await,
            End::Lost(error) => {
                let Self { mut session, stage, shared, .. } = self;
                session.record_end(ConnectionEnd::Lost(&error), shared);
                withdraw(stage, "lost", shared)
            }
        }
    }

    /// Closes the connection; without a reason if the client has left. Its place in the rendezvous is
    /// free before the close is sent.
    pub(super) async fn close(mut self, close: Option<Close>) -> Outcome {
        let outcome = withdraw(self.take_stage(), close.map_or("left", Close::class), self.shared);
        self.close_connection(close, outcome).await
    }

    /// Closes a connection that makes room for others. Beyond a number at once, they are dropped
    /// without a reason: to send one to each of many takes the room that they are to make.
    pub(super) async fn make_room(self) -> Outcome {
        let close = Close::NoRoom;
        if let Ok(_place) = self.shared.refusals.try_acquire() {
            return self.close(Some(close)).await;
        }
        let Self { mut session, stage, shared, .. } = self;
        session.record_end(ConnectionEnd::Dropped(close), shared);
        withdraw(stage, close.class(), shared)
    }

    /// Closes an endpoint at the moment in which it would get its partner, which is free again.
    pub(super) async fn deny_partner(mut self, event: Event, close: Close) -> Outcome {
        if let (Event::Answer(Answer::Claimed(waiting)), Stage::Offering { offer, .. }) =
            (&event, &self.stage)
        {
            self.shared.rendezvous.give_back(offer.offer.key, waiting.id, offer.offer.id);
        }
        match (event, self.take_stage()) {
            (Event::Partner(partner), stage) => {
                withdraw(stage, close.class(), self.shared);
                self.close_connection(Some(close), free_partner(partner)).await
            }
            (Event::Bridge(Ok(bridged)), Stage::Bridging { claim, .. }) => {
                leave_bridge(bridged, claim, self.shared);
                self.close(Some(close)).await
            }
            (_, stage) => {
                self.stage = stage;
                self.close(Some(close)).await
            }
        }
    }

    /// Closes the connection of an endpoint that has left the rendezvous.
    async fn close_connection(self, close: Option<Close>, outcome: Outcome) -> Outcome {
        let Self { mut session, shared, .. } = self;
        session.gauge.enter(metrics::Stage::Greeting);
        session.record_end(close.map_or(ConnectionEnd::Left, ConnectionEnd::Closed), shared);
        let patience = shared.timeouts.close;
        let closing = async move { close_leg(&mut *session.leg, close, patience).await };
        if matches!(outcome, Outcome::Orphan(_)) {
            // The partner does not wait until this client has answered the close.
            shared.lifecycle.spawn(closing);
        } else {
            closing.await;
        }
        outcome
    }
}

impl Session {
    fn record_end(&mut self, end: ConnectionEnd<'_>, shared: &Shared) {
        let (client, trace) = (self.client_addr.ip(), &mut self.trace);
        shared.telemetry.record(Fact::ConnectionEnded { end, client, trace });
    }
}

/// Takes the endpoint out of the rendezvous. Returns the partner that was handed over to it before.
fn withdraw(stage: Stage, why: &'static str, shared: &Arc<Shared>) -> Outcome {
    let (offer, mut partner) = match stage {
        Stage::Offering { offer, partner, .. } | Stage::Waiting { offer, partner, .. } => {
            (offer, partner)
        }
        // The call of a bridge goes on without it, and its claim is given back.
        Stage::Bridging { .. }
        | Stage::Greeting
        | Stage::Authenticating { .. }
        | Stage::Registering { .. }
        | Stage::Retrying { .. } => return Outcome::Over,
    };
    offer.setup.ends(offer.offer.id, None, Err(why));
    if shared.registry.withdraw(offer.offer.id) {
        return Outcome::Over;
    }
    partner.try_recv().map_or(Outcome::Over, free_partner)
}

/// Frees an endpoint that was handed over to one that ends: it waits again.
fn free_partner(partner: Partner) -> Outcome {
    match partner {
        Partner::Here(partner) => Outcome::Orphan(partner),
        Partner::There(bridge) => {
            bridge.answer.refuse(Refusal::Gone);
            Outcome::Over
        }
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
