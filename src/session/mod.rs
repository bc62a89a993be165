//! The way of one connection through the node, as one task: admission, handshake, negotiation,
//! tunnel.
//!
//! When two endpoints of this node are paired, the one that came second hands its whole `Party`
//! over to the task of the one that waited, which runs the tunnel; its own task ends.

mod admission;
mod app;
mod enrolment;
mod gateway;
mod negotiation;
mod origin;
mod probe;
mod registry;
mod stage;
mod tunnel;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use tracing::field::display;
use tracing::{Instrument, Span, debug, info, warn};

use self::admission::{Admission, Ticket};
use self::enrolment::{Enrolled, Hubs};
use self::gateway::Overflow;
use self::negotiation::{Outcome, negotiate};
use self::origin::Origin;
use self::probe::Probes;
use self::registry::{NotWaiting, Partner, Registry};
use crate::accept::Guest;
use crate::auth::Authenticator;
use crate::cluster::client::{BridgeError, Peers};
use crate::cluster::{self, Attach, Incoming, Life};
use crate::config::{Limits, Timeouts, TunnelProxy};
use crate::ids::{ClientAddr, ConnectionId, OfferId};
use crate::lifecycle::Lifecycle;
use crate::observability::metrics::{ConnectionGauge, Stage, Step};
use crate::observability::trace::{ConnectionTrace, Setup};
use crate::observability::{Invariant, Occurrence, Severity, Telemetry};
use crate::protocol::{Close, Endpoint, Rules, ServerInfo};
use crate::rendezvous::{Directory, Load, Offer, OfferState, Rendezvous, Secret};
use crate::transport::{AcceptError, Accepted, Leg, Refusal, Socket, Transport};

/// Connections that are told at once that there is no room. More are dropped without a word, as
/// telling them costs a TLS handshake each.
const REFUSALS_AT_ONCE: usize = 64;

/// Where a node listens for endpoints, as far as the sessions of those who come there must know.
pub struct Listener {
    /// How connections become legs.
    pub transport: Arc<dyn Transport>,
    /// Only programs on this machine can come here: it is on a loopback address, or a unix socket.
    pub is_local: bool,
}

/// What all sessions of a node share.
pub struct Shared {
    /// Who decides about tokens.
    pub authenticator: Arc<dyn Authenticator>,
    /// Where endpoints find each other.
    pub rendezvous: Arc<dyn Rendezvous>,
    /// Where registered UUIDs are known.
    pub directory: Arc<dyn Directory>,
    /// The way to other nodes, if there are any.
    pub peers: Option<Arc<Peers>>,
    /// Who this server is.
    pub server: Arc<ServerInfo>,
    /// The node's life.
    pub lifecycle: Lifecycle,
    /// What the node tells of itself.
    pub telemetry: Telemetry,
    timeouts: Timeouts,
    requests: u32,
    message_size: usize,
    admission: Arc<Admission>,
    refusals: Semaphore,
    registry: Registry,
    tunnel_proxy: TunnelProxy,
    overflow: Arc<Overflow>,
    hubs: Hubs,
    probes: Arc<Probes>,
}

impl Shared {
    /// Nobody is connected yet.
    pub fn new(
        authenticator: Arc<dyn Authenticator>,
        (rendezvous, directory): (Arc<dyn Rendezvous>, Arc<dyn Directory>),
        peers: Option<Arc<Peers>>,
        server: ServerInfo,
        (lifecycle, telemetry): (Lifecycle, Telemetry),
        (timeouts, limits, tunnel_proxy): (Timeouts, Limits, TunnelProxy),
    ) -> Self {
        let overflow = Overflow::new(tunnel_proxy.overflow);
        overflow.observe(&telemetry.metrics);
        let admission = Admission::new(limits.clone(), Arc::clone(&telemetry.metrics));
        Self {
            authenticator,
            rendezvous,
            directory,
            peers,
            server: Arc::new(server),
            lifecycle,
            telemetry,
            timeouts,
            requests: limits.requests,
            message_size: limits.message_size,
            admission,
            refusals: Semaphore::new(REFUSALS_AT_ONCE),
            registry: Registry::default(),
            tunnel_proxy,
            overflow,
            hubs: Hubs::default(),
            probes: Arc::default(),
        }
    }

    /// How long things may take.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Connections there are, and may be.
    pub fn connections(&self) -> (usize, usize) {
        self.admission.connections()
    }

    /// What the node is doing.
    pub fn load(&self) -> Load {
        Load {
            connections: self.admission.connections().0,
            tunnels: self.telemetry.tunnels.len(),
            draining: self.lifecycle.is_draining(),
        }
    }

    fn rules(&self, listener: &Listener) -> Rules {
        let TunnelProxy { enabled, token, backlog, .. } = self.tunnel_proxy;
        Rules {
            inactivity: self.timeouts.inactivity,
            authentication: self.timeouts.authentication,
            waiting: self.timeouts.waiting,
            requests: self.requests,
            tunnel_proxy: enabled.unwrap_or(listener.is_local),
            token_for_gateways: token.gateways(),
            token_for_apps: token.apps(),
            // Not all of the backlog, which is also for what does not count as it should.
            app_window: u32::try_from(backlog / 2).unwrap_or(u32::MAX),
        }
    }
}

/// A connection with all that belongs to it. Dropping it gives everything back.
pub(crate) struct Party {
    origin: Origin,
    client_addr: ClientAddr,
    leg: Box<dyn Leg>,
    endpoint: Endpoint,
    ticket: Ticket,
    gauge: ConnectionGauge,
    trace: ConnectionTrace,
    /// When the answer was asked for, and came, that led to its partner.
    claimed: Option<(Instant, Instant)>,
    /// How long it has waited for its partner, which is not the work of anybody.
    waited: Duration,
}

/// Serves one accepted connection until it is over.
pub async fn serve(guest: Guest, listener: Arc<Listener>, shared: Arc<Shared>) {
    // In a box of its own: its memory is free again when the tunnel stands.
    let welcome = welcome(guest, &listener, &shared).boxed();
    if let Some((party, span)) = welcome.await {
        run(party, span, &shared).await;
    }
}

/// Lets a connection in if there is room for it, and makes it one that can be talked to. What is
/// logged of it belongs to the span.
async fn welcome(guest: Guest, listener: &Listener, shared: &Shared) -> Option<(Box<Party>, Span)> {
    let Guest { socket, peer, since, visit, .. } = guest;
    // It is counted by other limits from now on.
    drop(visit);
    let client = listener.transport.client_of(peer);
    let origin = Origin {
        id: ConnectionId::next(),
        client_addr: client,
        proxy_addr: client.is_none().then_some(peer),
        trace: None,
    };
    let span = origin.span();
    let entering = async {
        match enter(client, shared) {
            Ok(ticket) => accept((origin, peer), listener, shared, (socket, since), ticket).await,
            Err(refusal) => {
                refuse(listener, shared, (socket, peer), refusal).await;
                None
            }
        }
    };
    let party = entering.instrument(span.clone()).await?;
    Some((party, span))
}

/// Lets a connection in, if there is room for it. A client that is not known yet is counted later.
fn enter(client: Option<ClientAddr>, shared: &Shared) -> Result<Ticket, Refusal> {
    if shared.lifecycle.is_draining() {
        return Err(Refusal::Draining);
    }
    shared.admission.enter(client)
}

async fn accept(
    (origin, peer): (Origin, ClientAddr),
    listener: &Listener,
    shared: &Shared,
    (socket, since): (Socket, Instant),
    mut ticket: Ticket,
) -> Option<Box<Party>> {
    let Telemetry { metrics, tracer, .. } = &shared.telemetry;
    let transport = listener.transport.label();
    let mut gauge = metrics.connection(transport);
    let began = Instant::now();
    let displaced = ticket.displaced();
    let mut admit = |client| {
        if origin.proxy_addr.is_some() {
            Span::current().record("client_addr", display(client));
        }
        ticket.comes_from(client).inspect_err(|refusal| note_refusal(*refusal, client, shared))
    };
    let accepted = listener.transport.accept(socket, peer, &mut admit);
    let accepted = timeout_at((since + shared.timeouts.handshake).into(), accepted);
    let accepted = tokio::select! {
        accepted = accepted => accepted,
        () = displaced.cancelled() => {
            debug!("a connection had to give way before its handshake was done");
            metrics.handshake_failed("displaced");
            return None;
        }
    };
    match accepted {
        Ok(Ok(Accepted { leg, client_addr, trace_parent, tls })) => {
            let whose = (origin.id, client_addr);
            let trace = tracer.upgraded(whose, transport, trace_parent, began, tls);
            if let Some(place) = trace.place() {
                Span::current().record("trace_id", display(place.trace_id()));
            }
            debug!("connected");
            metrics.step(Step::Handshake, began.elapsed());
            gauge.enter(Stage::Greeting);
            let server = Arc::clone(&shared.server);
            let endpoint = Endpoint::new(server, shared.rules(listener), Instant::now());
            let (claimed, waited) = (None, Duration::ZERO);
            let origin = Origin { client_addr: Some(client_addr), trace: trace.place(), ..origin };
            Some(Box::new(Party {
                origin,
                client_addr,
                leg,
                endpoint,
                ticket,
                gauge,
                trace,
                claimed,
                waited,
            }))
        }
        // That has been told.
        Ok(Err(AcceptError::Refused(_))) => None,
        Ok(Err(error)) => {
            debug!(error = %error_chain(&error), "handshake failed");
            metrics.handshake_failed(error.label());
            None
        }
        Err(_) => {
            debug!(after = ?shared.timeouts.handshake, "handshake took too long");
            metrics.handshake_failed("timeout");
            None
        }
    }
}

async fn refuse(
    listener: &Listener,
    shared: &Shared,
    (socket, peer): (Socket, ClientAddr),
    refusal: Refusal,
) {
    note_refusal(refusal, listener.transport.client_of(peer).unwrap_or(peer), shared);
    if let Ok(_place) = shared.refusals.try_acquire() {
        let mut admit = |_| Err(refusal);
        let refused = listener.transport.accept(socket, peer, &mut admit);
        match timeout(shared.timeouts.handshake, refused).await {
            Ok(Err(AcceptError::Refused(_)) | Ok(_)) | Err(_) => {}
            Ok(Err(error)) => debug!(error = %error_chain(&error), "could not say so"),
        }
    }
}

fn note_refusal(refusal: Refusal, client: ClientAddr, shared: &Shared) {
    shared.telemetry.metrics.connection_refused(refusal.label());
    let refused = Occurrence::refused("connection refused", refusal.to_string());
    if shared.telemetry.recurs(&refused.from(client.ip())) {
        info!(reason = %refusal, "connection refused");
    }
}

/// Negotiates and relays. A partner that came just as this endpoint left is served on.
///
/// Each way on is in a box, so that a connection takes no more memory than its own way needs.
async fn run(party: Box<Party>, span: Span, shared: &Arc<Shared>) {
    let mut next = Some((party, span));
    while let Some((party, span)) = next.take() {
        match negotiate(party, shared).boxed().instrument(span).await {
            Outcome::Over => {}
            Outcome::Orphan(partner) => {
                let span = partner.origin.span();
                next = Some((partner, span));
            }
            Outcome::Met { first, partner, entry } => {
                tunnel::of_the_waiting(first, partner, entry, shared).await;
            }
            Outcome::Bridged { party, bridged, claim } => {
                tunnel::of_the_claiming(party, bridged, claim, shared).boxed().await;
            }
            Outcome::Enrolled { party, enrolled: Enrolled::Gateway(enrolled) } => {
                let span = party.origin.span();
                gateway::serve(party, enrolled, shared).instrument(span).boxed().await;
            }
            Outcome::Enrolled { party, enrolled: Enrolled::App(attachment) } => {
                app::serve(party, *attachment, shared).boxed().await;
            }
        }
    }
}

/// An offer of this node's, given back when dropped.
struct Entry {
    offer: Offer,
    setup: Setup,
    shared: Arc<Shared>,
    /// It has a tunnel, the only one of its key here.
    is_established: bool,
}

impl Entry {
    /// Its tunnel begins, unless there is one of its key already.
    fn establish(&mut self) -> Result<(), Close> {
        if let Err(other) = self.shared.registry.establish(&self.offer) {
            self.shared.telemetry.metrics.violated(
                Invariant::TwoLegsPerKey,
                format_args!("tunnel {} has the key of tunnel {other}, and ends", self.offer.id),
            );
            return Err(Close::Fault);
        }
        self.is_established = true;
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_established
            && let Err(other) = self.shared.registry.disestablish(&self.offer)
        {
            self.shared.telemetry.metrics.violated(
                Invariant::ReleasedByOwner,
                format_args!("the entry of tunnel {} was that of {other:?}", self.offer.id),
            );
        }
        self.shared.registry.withdraw(self.offer.id);
        self.shared.rendezvous.release(self.offer.key, self.offer.id);
    }
}

impl Attach for Shared {
    fn attach(self: Arc<Self>, offer: OfferId, secret: Secret, mut bridge: Incoming) {
        let app = bridge.app.take();
        let bridge = Box::new(bridge);
        if let Some(app) = app {
            let serving = app::serve_bridged((offer, secret), app, bridge, Arc::clone(&self));
            return self.lifecycle.spawn(serving);
        }
        let attaching = bridge.attaching;
        let handed_over = match self.registry.waiting(offer, secret) {
            Ok(offer) if self.rendezvous.stands(offer) => {
                self.registry.hand_over(offer.id, Partner::There(bridge))
            }
            Ok(_) => Err((NotWaiting::Paired, Partner::There(bridge))),
            Err(why) => Err((why, Partner::There(bridge))),
        };
        if let Err((why, Partner::There(bridge))) = handed_over {
            let refusal = match why {
                NotWaiting::Gone => cluster::Refusal::Gone,
                NotWaiting::Paired => cluster::Refusal::Taken,
                NotWaiting::WrongSecret => cluster::Refusal::Denied,
            };
            let refused = Occurrence::refused("a bridge was refused", refusal.to_string());
            if self.telemetry.recurs(&refused) {
                info!(tunnel = %offer, %refusal, "a bridge was refused");
            }
            attaching.ends(&self.telemetry.tracer, Some(refusal.label()));
            bridge.answer.refuse(refusal);
        }
    }

    fn probe(self: Arc<Self>, registration: OfferId, secret: Secret) -> BoxFuture<'static, Life> {
        async move { self.probes.ask(registration, Some(secret)).await }.boxed()
    }

    fn query(&self, id: OfferId) -> OfferState {
        match self.registry.state(id) {
            Some(state) => state,
            // Its partner came before the answer of the rendezvous, or it is on its way elsewhere.
            None if self.rendezvous.has(id) => OfferState::Paired,
            None if self.directory.has(id) => OfferState::Waiting,
            None => OfferState::Gone,
        }
    }
}

/// Puts a message of ours into the leg's buffer. That it cannot be sent shows when the leg is read
/// or flushed next.
async fn send(leg: &mut dyn Leg, message: String) {
    std::future::poll_fn(|cx| {
        let chunk = crate::protocol::Chunk::text(message.clone());
        let _shows_later = leg.send(cx, chunk);
        std::task::Poll::Ready(())
    })
    .await;
}

/// Records that there is no bridge to a node: one warning per node, however many endpoints try to
/// get there and however often.
fn note_no_bridge(address: &str, offer: OfferId, error: &BridgeError, shared: &Shared) {
    let node_addr = address.escape_debug().to_string();
    let occurrence = Occurrence::trouble("no bridge to another node", node_addr.clone());
    let occurrence = Occurrence { severity: Severity::Info, ..occurrence };
    let error = error_chain(error);
    if shared.telemetry.recurs(&occurrence) {
        warn!(node_addr, %offer, error, "no bridge to another node");
    } else {
        debug!(node_addr, %offer, error, "no bridge to another node");
    }
}

/// An error with its causes, in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// How long a connection may take for what, at most; for whoever waits for all of them.
pub fn longest_goodbye(timeouts: &Timeouts) -> Duration {
    // A goodbye, and the end of the connection below it.
    timeouts.close * 2
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod entry_tests;
