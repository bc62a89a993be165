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
use tracing::field::display;
use tracing::{Instrument, info};

use super::enrolment::Place;
use super::origin::Origin;
use super::registry::Partner;
use super::stage::Claim;
use super::{Entry, Party, Shared, send};
use crate::cluster::{Bridged, Incoming, Refusal};
use crate::ids::OfferId;
use crate::observability::metrics::{Stage, Step};
use crate::observability::trace::Ended;
use crate::observability::{
    Endpoint, EventKind, Invariant, Kind, Occurrence, Telemetry, TunnelFacts, TunnelGuard,
    TunnelRecord,
};
use crate::protocol::{Action, Close, PairingKey, Profile};
use crate::relay::{self, Report, Side, close_leg};
use crate::trace_parent::TraceParent;
use crate::transport::Leg;

/// Runs the tunnel of an endpoint that has waited and the partner that was handed to it.
pub(super) async fn of_the_waiting(
    first: Box<Party>,
    partner: Partner,
    entry: Box<Entry>,
    shared: &Arc<Shared>,
) {
    match partner {
        // Each in a box of its own, as they differ in size.
        Partner::Here(second) => local(first, second, entry, shared).boxed().await,
        Partner::There(bridge) => to_there(first, bridge, entry, shared).boxed().await,
    }
}

async fn local(
    mut first: Box<Party>,
    mut second: Box<Party>,
    mut entry: Box<Entry>,
    shared: &Arc<Shared>,
) {
    let Some(profile) = profile_of(&first) else { return };
    let Some(profile_of_second) = profile_of(&second) else { return };
    let (id, setup) = (entry.offer.id, entry.setup.place());
    let tracer = &shared.telemetry.tracer;
    if let Some(asked) = second.claimed {
        tracer.asked(setup, second.trace.place(), asked);
    }
    let since = Instant::now();
    let told = async {
        entry.establish()?;
        introduce(&mut first, &profile_of_second, shared).await?;
        introduce(&mut second, &profile, shared).await
    };
    let told = told.await;
    tracer.introduced(setup, since);
    let outcome = told.map(|()| Kind::Local).map_err(Close::class);
    entry.setup.ends(id, second.trace.place(), outcome);
    match told {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Local,
                first: here(&first, profile),
                second: here(&second, profile_of_second),
            };
            established(&mut first, setup, since, shared);
            established(&mut second, setup, since, shared);
            took(&second, shared);
            let tunnel = begin(facts, setup, &first.origin, shared);
            run(tunnel, (&mut *first.leg, &mut *second.leg), Held::ByUs(entry), shared).await;
        }
        Err(close) => {
            drop(entry);
            first.trace.ends(Ended::Closed(close));
            second.trace.ends(Ended::Closed(close));
            let span = first.origin.span();
            let (first, second) = (&mut *first.leg, &mut *second.leg);
            refuse(id, close, first, Some(second), shared).instrument(span).await;
        }
    }
}

async fn to_there(
    mut first: Box<Party>,
    bridge: Box<Incoming>,
    mut entry: Box<Entry>,
    shared: &Arc<Shared>,
) {
    let Some(profile) = profile_of(&first) else { return };
    let (id, setup) = (entry.offer.id, entry.setup.place());
    let Incoming { profile: profile_of_second, node, attaching, answer, .. } = *bridge;
    let tracer = &shared.telemetry.tracer;
    let since = Instant::now();
    let told = async {
        entry.establish()?;
        introduce(&mut first, &profile_of_second, shared).await
    };
    let told = told.await;
    tracer.introduced(setup, since);
    attaching.ends(tracer, told.err().map(Close::class));
    let outcome = told.map(|()| Kind::Bridged).map_err(Close::class);
    entry.setup.ends(id, attaching.second, outcome);
    match told {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Bridged,
                first: here(&first, profile.clone()),
                second: Endpoint::There { node, profile: profile_of_second },
            };
            established(&mut first, setup, since, shared);
            let tunnel = begin(facts, setup, &first.origin, shared);
            let mut second = answer.accept(&profile);
            run(tunnel, (&mut *first.leg, &mut *second), Held::ByUs(entry), shared).await;
        }
        Err(close) => {
            drop(entry);
            first.trace.ends(Ended::Closed(close));
            let is_loop = close == Close::Loop;
            answer.refuse(if is_loop { Refusal::Loop } else { Refusal::Taken });
            let span = first.origin.span();
            refuse(id, close, &mut *first.leg, None, shared).instrument(span).await;
        }
    }
}

/// Runs the tunnel of an endpoint whose partner was fetched from another node.
pub(super) async fn of_the_claiming(
    mut second: Box<Party>,
    bridged: Bridged,
    claim: Claim,
    shared: &Arc<Shared>,
) {
    let Some(profile) = profile_of(&second) else { return };
    let (key, id, setup) = (claim.key, claim.owner, claim.setup);
    let Bridged { leg: mut first, profile: profile_of_first, node } = bridged;
    let since = Instant::now();
    let told = introduce(&mut second, &profile_of_first, shared).await;
    shared.telemetry.tracer.introduced(setup, since);
    match told {
        Ok(()) => {
            let facts = TunnelFacts {
                id,
                kind: Kind::Bridged,
                first: Endpoint::There { node, profile: profile_of_first },
                second: here(&second, profile),
            };
            established(&mut second, setup, since, shared);
            took(&second, shared);
            let tunnel = begin(facts, setup, &second.origin, shared);
            run(tunnel, (&mut *first, &mut *second.leg), Held::ByOther(key), shared).await;
        }
        Err(close) => {
            second.trace.ends(Ended::Closed(close));
            let span = second.origin.span();
            let (first, second) = (&mut *first, &mut *second.leg);
            refuse(id, close, second, Some(first), shared).instrument(span).await;
        }
    }
}

/// What the other endpoint has to know of a waiting one.
pub(super) fn profile_of(party: &Party) -> Option<Profile> {
    party.endpoint.offer().map(|(_, profile)| profile.clone())
}

pub(super) fn here(party: &Party, profile: Profile) -> Endpoint {
    Endpoint::Here { connection: party.origin.id, client_addr: party.client_addr, profile }
}

/// Tells an endpoint of its partner, unless the two must not meet.
async fn introduce(party: &mut Party, other: &Profile, shared: &Shared) -> Result<(), Close> {
    party.endpoint.paired(other);
    party.leg.set_message_limit(shared.message_size);
    while let Some(action) = party.endpoint.poll_action() {
        match action {
            Action::Send(message) => send(&mut *party.leg, message).await,
            Action::Close(close) => return Err(close),
            Action::Authenticate(_) | Action::Offer(_) | Action::Register { .. } => {
                return Err(Close::Fault);
            }
        }
    }
    Ok(())
}

/// The endpoint of this node has its tunnel.
pub(super) fn established(
    party: &mut Party,
    setup: Option<TraceParent>,
    since: Instant,
    shared: &Shared,
) {
    party.gauge.enter(Stage::Tunnel);
    party.trace.ends(Ended::Paired(setup));
    shared.telemetry.metrics.step(Step::Introduce, since.elapsed());
}

/// How long the set-up took, for the endpoint whose coming completed it.
pub(super) fn took(second: &Party, shared: &Shared) {
    let total = second.trace.began().elapsed().saturating_sub(second.waited);
    shared.telemetry.metrics.step(Step::Total, total);
}

async fn refuse(
    tunnel: OfferId,
    close: Close,
    one: &mut dyn Leg,
    other: Option<&mut dyn Leg>,
    shared: &Shared,
) {
    if shared.telemetry.recurs(&Occurrence::refused("tunnel refused", close.class())) {
        info!(%tunnel, reason = %close, "tunnel refused");
    }
    shared.telemetry.metrics.connection_closed(close.class());
    let patience = shared.timeouts.close;
    tokio::join!(close_leg(one, Some(close), patience), async {
        if let Some(other) = other {
            close_leg(other, Some(close), patience).await;
        }
    });
}

/// Whose entry in the rendezvous a tunnel has.
pub(super) enum Held {
    /// Our endpoint waited for it.
    ByUs(Box<Entry>),
    /// The other node's endpoint did.
    ByOther(PairingKey),
    /// It has none; our endpoint has registered a UUID.
    Uuid(Place),
    /// Neither.
    ByNobody,
}

impl Held {
    /// Done when our endpoint has lost the UUID that it has registered. In a box: a tunnel without
    /// one has no need of this memory.
    fn lost(&self) -> BoxFuture<'_, ()> {
        match self {
            Self::Uuid(place) => place.lost().boxed(),
            Self::ByUs(_) | Self::ByOther(_) | Self::ByNobody => pending().boxed(),
        }
    }
}

/// A tunnel with its place in its trace, and whose lines those about it are.
pub(super) struct Standing<'a> {
    guard: TunnelGuard,
    setup: Option<TraceParent>,
    origin: &'a Origin,
}

/// Begins a tunnel. What is logged of it is logged of this connection.
pub(super) fn begin<'a>(
    facts: TunnelFacts,
    setup: Option<TraceParent>,
    origin: &'a Origin,
    shared: &Shared,
) -> Standing<'a> {
    let (tunnel, kind) = (facts.id, facts.kind.label());
    let second = match &facts.second {
        Endpoint::Here { connection, .. } => Some(display(connection)),
        Endpoint::There { .. } => None,
    };
    let span = origin.span_of_tunnel(tunnel, setup);
    info!(parent: &span, kind, second, "tunnel established");
    let Telemetry { metrics, journal, tunnels, .. } = &shared.telemetry;
    journal.note(EventKind::Tunnel, format!("tunnel {tunnel} established, {kind}"));
    Standing { guard: tunnels.begin(facts, metrics), setup, origin }
}

/// Relays until the tunnel ends, and says what it did.
pub(super) async fn run(
    tunnel: Standing<'_>,
    (first, second): (&mut dyn Leg, &mut dyn Leg),
    held: Held,
    shared: &Shared,
) {
    let Standing { mut guard, setup, origin } = tunnel;
    let patience = shared.timeouts.close;
    let record = guard.record();
    let ended = {
        let unwanted = guard.is_unwanted();
        // Pinned here, as it would be moved twice further down and take its memory each time.
        let mut stop = pin!(async {
            tokio::select! {
                () = shared.lifecycle.over() => Close::Draining,
                () = unwanted => Close::Dismissed,
                () = held.lost() => Close::AlreadyRegistered,
            }
        });
        relay::flow(first, second, &record.meter, stop.as_mut(), patience).await
    };
    if let Some(breach) = ended.breach() {
        let id = record.facts.id;
        let metrics = &shared.telemetry.metrics;
        metrics.violated(Invariant::DeliveredAsAccepted, format_args!("tunnel {id}: {breach}"));
    }
    // The key is free before the goodbyes are said: an endpoint may come back at once.
    match held {
        Held::ByUs(entry) => drop(entry),
        Held::Uuid(place) => drop(place),
        // Its node may be dead, and the key is not to be taken until its lease is over.
        Held::ByOther(key) if ended.has_lost(Side::First) => {
            shared.rendezvous.release(key, record.facts.id);
        }
        Held::ByOther(_) | Held::ByNobody => {}
    }
    // In a box: a tunnel that stands has no need of this memory.
    let report = relay::finish(first, second, ended, patience).boxed().await;
    record.meter.set(report.forth, report.back);
    guard.ends(report.reason);
    let record = guard.record();
    let span = origin.span_of_tunnel(record.facts.id, setup);
    span.in_scope(|| say(&report, record, guard.began(), setup, shared));
}

/// The one line that sums a tunnel up, and its span.
fn say(
    report: &Report,
    tunnel: &TunnelRecord,
    since: Instant,
    setup: Option<TraceParent>,
    shared: &Shared,
) {
    let TunnelFacts { id, kind, .. } = tunnel.facts;
    info!(
        kind = kind.label(),
        generation = tunnel.facts.generation(),
        reason = %report.reason,
        ended_by = ?report.ended_by,
        bytes_forth = report.forth.bytes,
        bytes_back = report.back.bytes,
        messages_forth = report.forth.messages,
        messages_back = report.back.messages,
        duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        "tunnel ended"
    );
    let Telemetry { journal, tracer, .. } = &shared.telemetry;
    let moved = report.forth.bytes + report.back.bytes;
    let text = format!("tunnel {id} ended after {moved} bytes: {}", report.reason);
    journal.note(EventKind::Tunnel, text);
    tracer.tunnel(setup, tunnel, since, report.reason);
}
