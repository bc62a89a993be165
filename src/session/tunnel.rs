//! A tunnel from its first notification to its last goodbye, on one node.
//!
//! The endpoint that waited is called the first, the one that came to it the second. When they are
//! on different nodes, each node runs the tunnel of its own endpoint, with a bridge as the other
//! leg.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::Instrument;

use super::claim::Claim;
use super::origin::Origin;
use super::own_offer::OwnOffer;
use super::own_registration::OwnRegistration;
use super::registry::Partner;
use super::{Session, Shared};
use crate::cluster::{Bridged, Incoming, Refusal};
use crate::ids::OfferId;
use crate::observability::metrics::{Stage, Step};
use crate::observability::trace::Ended;
use crate::observability::{
    Endpoint, Fact, Invariant, Kind, Telemetry, TunnelEnd, TunnelFacts, TunnelGuard,
};
use crate::protocol::{Action, Close, PairingKey, Profile};
use crate::relay::{self, Report, Side, close_leg};
use crate::trace_parent::TraceParent;
use crate::transport::Leg;

/// Runs the tunnel of an endpoint that has waited and the partner that was handed to it.
pub(super) async fn run_for_owner(
    first: Box<Session>,
    partner: Partner,
    offer: Box<OwnOffer>,
    shared: &Arc<Shared>,
) {
    match partner {
        // Each in a box of its own, as they differ in size.
        Partner::Here(second) => run_local(first, second, offer, shared).boxed().await,
        Partner::There(bridge) => run_bridged(first, bridge, offer, shared).boxed().await,
    }
}

async fn run_local(
    mut first: Box<Session>,
    mut second: Box<Session>,
    mut offer: Box<OwnOffer>,
    shared: &Arc<Shared>,
) {
    let Some(profile) = first.profile() else { return };
    let Some(profile_of_second) = second.profile() else { return };
    let (id, setup) = (offer.offer.id, offer.setup.place());
    let tracer = &shared.telemetry.tracer;
    if let Some(asked) = second.claimed {
        tracer.asked(setup, second.trace.place(), asked);
    }
    let since = Instant::now();
    let introduced = async {
        offer.establish()?;
        first.introduce(&profile_of_second, shared).await?;
        second.introduce(&profile, shared).await
    };
    let introduced = introduced.await;
    tracer.introduced(setup, since);
    let outcome = introduced.map(|()| Kind::Local).map_err(Close::class);
    offer.setup.ends(id, second.trace.place(), outcome);
    match introduced {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Local,
                first: first.as_endpoint(profile),
                second: second.as_endpoint(profile_of_second),
            };
            first.record_established(setup, since, shared);
            second.record_established(setup, since, shared);
            second.record_setup_time(shared);
            let tunnel = Tunnel::begin(facts, setup, &first.origin, shared);
            let legs = Legs { first: &mut *first.leg, second: &mut *second.leg };
            tunnel.run(legs, Held::ByOwner(offer)).await;
        }
        Err(close) => {
            drop(offer);
            first.trace.ends(Ended::Closed(close));
            second.trace.ends(Ended::Closed(close));
            let span = first.origin.span();
            let (first, second) = (&mut *first.leg, &mut *second.leg);
            refuse(id, close, first, Some(second), shared).instrument(span).await;
        }
    }
}

async fn run_bridged(
    mut first: Box<Session>,
    bridge: Box<Incoming>,
    mut offer: Box<OwnOffer>,
    shared: &Arc<Shared>,
) {
    let Some(profile) = first.profile() else { return };
    let (id, setup) = (offer.offer.id, offer.setup.place());
    let Incoming { profile: profile_of_second, node, attaching, answer, .. } = *bridge;
    let tracer = &shared.telemetry.tracer;
    let since = Instant::now();
    let introduced = async {
        offer.establish()?;
        first.introduce(&profile_of_second, shared).await
    };
    let introduced = introduced.await;
    tracer.introduced(setup, since);
    attaching.ends(tracer, introduced.err().map(Close::class));
    let outcome = introduced.map(|()| Kind::Bridged).map_err(Close::class);
    offer.setup.ends(id, attaching.second, outcome);
    match introduced {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Bridged,
                first: first.as_endpoint(profile.clone()),
                second: Endpoint::There { node, profile: profile_of_second },
            };
            first.record_established(setup, since, shared);
            let tunnel = Tunnel::begin(facts, setup, &first.origin, shared);
            let mut second = answer.accept(&profile);
            let legs = Legs { first: &mut *first.leg, second: &mut *second };
            tunnel.run(legs, Held::ByOwner(offer)).await;
        }
        Err(close) => {
            drop(offer);
            first.trace.ends(Ended::Closed(close));
            let is_loop = close == Close::Loop;
            answer.refuse(if is_loop { Refusal::Loop } else { Refusal::Taken });
            let span = first.origin.span();
            refuse(id, close, &mut *first.leg, None, shared).instrument(span).await;
        }
    }
}

/// Runs the tunnel of an endpoint with a partner on another node, which it has claimed.
pub(super) async fn run_for_claimer(
    mut second: Box<Session>,
    bridged: Bridged,
    claim: Claim,
    shared: &Arc<Shared>,
) {
    let Some(profile) = second.profile() else { return };
    let (key, id, setup) = (claim.key, claim.owner, claim.setup);
    let Bridged { leg: mut first, profile: profile_of_first, node } = bridged;
    let since = Instant::now();
    let introduced = second.introduce(&profile_of_first, shared).await;
    shared.telemetry.tracer.introduced(setup, since);
    match introduced {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Bridged,
                first: Endpoint::There { node, profile: profile_of_first },
                second: second.as_endpoint(profile),
            };
            second.record_established(setup, since, shared);
            second.record_setup_time(shared);
            let tunnel = Tunnel::begin(facts, setup, &second.origin, shared);
            let legs = Legs { first: &mut *first, second: &mut *second.leg };
            tunnel.run(legs, Held::ByOther(key)).await;
        }
        Err(close) => {
            second.trace.ends(Ended::Closed(close));
            let span = second.origin.span();
            let (first, second) = (&mut *first, &mut *second.leg);
            refuse(id, close, second, Some(first), shared).instrument(span).await;
        }
    }
}

impl Session {
    /// Returns this endpoint as one of a tunnel's two.
    pub(super) fn as_endpoint(&self, profile: Profile) -> Endpoint {
        Endpoint::Here { connection: self.origin.id, client_addr: self.client_addr, profile }
    }

    /// Notifies the endpoint of its partner, unless the two must not meet.
    async fn introduce(&mut self, other: &Profile, shared: &Shared) -> Result<(), Close> {
        self.endpoint.paired(other);
        self.leg.set_message_limit(shared.message_size);
        while let Some(action) = self.endpoint.poll_action() {
            match action {
                Action::Send(message) => self.send(message).await,
                Action::Close(close) => return Err(close),
                Action::Authenticate(_) | Action::Offer(_) | Action::Register { .. } => {
                    return Err(Close::Fault);
                }
            }
        }
        Ok(())
    }

    /// Records that the endpoint has its tunnel, of which it was notified since this time.
    pub(super) fn record_established(
        &mut self,
        setup: Option<TraceParent>,
        since: Instant,
        shared: &Shared,
    ) {
        self.gauge.enter(Stage::Tunnel);
        self.trace.ends(Ended::Paired(setup));
        shared.telemetry.metrics.step(Step::Introduce, since.elapsed());
    }

    /// Records how long the set-up took, for the endpoint that completed it.
    pub(super) fn record_setup_time(&self, shared: &Shared) {
        let total = self.trace.began().elapsed().saturating_sub(self.waited);
        shared.telemetry.metrics.step(Step::Total, total);
    }
}

async fn refuse(
    tunnel: OfferId,
    close: Close,
    one: &mut dyn Leg,
    other: Option<&mut dyn Leg>,
    shared: &Shared,
) {
    shared.telemetry.record(Fact::TunnelRefused { tunnel, close });
    let patience = shared.timeouts.close;
    tokio::join!(close_leg(one, Some(close), patience), async {
        if let Some(other) = other {
            close_leg(other, Some(close), patience).await;
        }
    });
}

/// What a tunnel holds in the rendezvous or the directory until it has ended.
pub(super) enum Held {
    /// The offer of the endpoint that waited on this node.
    ByOwner(Box<OwnOffer>),
    /// Nothing: the other node holds the offer of its endpoint.
    ByOther(PairingKey),
    /// The UUID of an app of this node.
    Uuid(OwnRegistration),
    /// Nothing: the app's node holds its UUID.
    Nothing,
}

impl Held {
    /// Completes when the app has lost its UUID. In a box: a tunnel without one has no need of this
    /// memory.
    fn lost(&self) -> BoxFuture<'_, ()> {
        match self {
            Self::Uuid(own) => own.lost().boxed(),
            Self::ByOwner(_) | Self::ByOther(_) | Self::Nothing => pending().boxed(),
        }
    }
}

/// The two ends of a tunnel.
pub(super) struct Legs<'a> {
    pub(super) first: &'a mut dyn Leg,
    pub(super) second: &'a mut dyn Leg,
}

/// An established tunnel, with its place in its trace.
pub(super) struct Tunnel<'a> {
    guard: TunnelGuard,
    setup: Option<TraceParent>,
    /// The connection that its log lines name.
    origin: &'a Origin,
    shared: &'a Shared,
}

impl<'a> Tunnel<'a> {
    /// Lists a tunnel as established, and records it.
    pub(super) fn begin(
        facts: TunnelFacts,
        setup: Option<TraceParent>,
        origin: &'a Origin,
        shared: &'a Shared,
    ) -> Self {
        let span = &origin.span_of_tunnel(facts.id, setup);
        shared.telemetry.record(Fact::TunnelEstablished { facts: &facts, span });
        let Telemetry { metrics, tunnels, .. } = &shared.telemetry;
        Self { guard: tunnels.begin(facts, metrics), setup, origin, shared }
    }

    /// Relays until the tunnel ends, and records what it did.
    pub(super) async fn run(mut self, legs: Legs<'_>, held: Held) {
        let Legs { first, second } = legs;
        let patience = self.shared.timeouts.close;
        let ended = self.relay(Legs { first: &mut *first, second: &mut *second }, &held).await;
        if let Some(breach) = ended.breach() {
            self.shared.telemetry.metrics.violated(
                Invariant::DeliveredAsAccepted,
                format_args!("tunnel {}: {breach}", self.id()),
            );
        }
        self.release(held, &ended);
        // In a box: an established tunnel has no need of this memory.
        let report = relay::finish(first, second, ended, patience).boxed().await;
        self.guard.record().meter.set(report.forth, report.back);
        self.guard.ends(report.reason);
        let span = self.origin.span_of_tunnel(self.id(), self.setup);
        span.in_scope(|| self.record_end(&report));
    }

    async fn relay(&self, legs: Legs<'_>, held: &Held) -> relay::Ended {
        let unwanted = self.guard.is_unwanted();
        // Pinned here, as it would be moved twice further down and take its memory each time.
        let mut stop = pin!(async {
            tokio::select! {
                () = self.shared.lifecycle.over() => Close::Draining,
                () = unwanted => Close::Dismissed,
                () = held.lost() => Close::AlreadyRegistered,
            }
        });
        let (meter, patience) = (&self.guard.record().meter, self.shared.timeouts.close);
        relay::flow(legs.first, legs.second, meter, stop.as_mut(), patience).await
    }

    /// Frees what the tunnel holds, before the closes are sent: an endpoint may return at once.
    fn release(&self, held: Held, ended: &relay::Ended) {
        match held {
            Held::ByOwner(offer) => drop(offer),
            Held::Uuid(own) => drop(own),
            // The owner's node may be dead, and would keep the key until its lease expires.
            Held::ByOther(key) if ended.has_lost(Side::First) => {
                self.shared.rendezvous.release(key, self.id());
            }
            Held::ByOther(_) | Held::Nothing => {}
        }
    }

    fn id(&self) -> OfferId {
        self.guard.record().facts.id
    }

    fn record_end(&self, report: &Report) {
        self.shared.telemetry.record(Fact::TunnelEnded(TunnelEnd {
            record: self.guard.record(),
            setup: self.setup,
            since: self.guard.began(),
            reason: report.reason,
            ended_by: &report.ended_by,
            forth: report.forth,
            back: report.back,
        }));
    }
}
