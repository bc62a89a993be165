//! The way of one connection through the node, as one task: admission, handshake, negotiation,
//! tunnel.
//!
//! When two endpoints of this node are paired, the one that came second hands its whole `Session`
//! over to the task of the one that waited, which runs the tunnel; its own task ends.

mod admission;
mod app;
mod arrival;
mod attach;
mod claim;
mod enrolment;
mod gateway;
mod negotiation;
mod origin;
mod own_offer;
mod own_registration;
mod probe;
mod registry;
mod tunnel;

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tracing::{Instrument, Span};

use self::admission::{Admission, Ticket};
use self::arrival::{Arrival, Welcomed};
use self::enrolment::Enrolled;
use self::gateway::{Hubs, Overflow};
use self::negotiation::{Negotiation, Outcome};
use self::origin::Origin;
use self::probe::Probes;
use self::registry::Registry;
use crate::accept::Guest;
use crate::auth::Authenticator;
use crate::cluster::client::Peers;
use crate::config::{Limits, Timeouts, TunnelProxy};
use crate::ids::ClientAddr;
use crate::lifecycle::Lifecycle;
use crate::observability::metrics::ConnectionGauge;
use crate::observability::trace::ConnectionTrace;
use crate::observability::{Fact, Telemetry};
use crate::protocol::{Action, Chunk, Close, Endpoint, Profile, Rules, ServerInfo};
use crate::rendezvous::{Directory, Load, Rendezvous};
use crate::transport::{Leg, Refusal, Transport};

/// Connections that are answered at the same time that there is no room. More are dropped without an
/// answer, which costs a TLS handshake each.
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
    /// Makes the state of a node without connections.
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

/// The session of one connection, with all that belongs to it. Dropping it gives everything back.
pub(crate) struct Session {
    origin: Origin,
    client_addr: ClientAddr,
    leg: Box<dyn Leg>,
    endpoint: Endpoint,
    ticket: Ticket,
    gauge: ConnectionGauge,
    trace: ConnectionTrace,
    /// When the answer was asked for, and came, that led to its partner.
    claimed: Option<(Instant, Instant)>,
    /// How long it has waited for its partner. It is no part of the set-up time.
    waited: Duration,
}

impl Session {
    /// Puts a message of the node into the leg's buffer. That it cannot be sent shows when the leg is
    /// read or flushed next.
    async fn send(&mut self, message: String) {
        poll_fn(|cx| {
            let chunk = Chunk::text(message.clone());
            let _shows_later = self.leg.send(cx, chunk);
            Poll::Ready(())
        })
        .await;
    }

    /// Sends the messages that the endpoint still has. Returns the reason if it closes the connection.
    async fn send_remaining(&mut self) -> Option<Close> {
        while let Some(action) = self.endpoint.poll_action() {
            match action {
                Action::Send(message) => self.send(message).await,
                Action::Close(close) => return Some(close),
                Action::Authenticate(_) | Action::Offer(_) | Action::Register { .. } => {}
            }
        }
        None
    }

    /// Returns what the other endpoint is to know of this one, once it has been offered.
    fn profile(&self) -> Option<Profile> {
        self.endpoint.offer().map(|(_, profile)| profile.clone())
    }
}

/// Serves one accepted connection until it is over.
pub async fn serve(guest: Guest, listener: Arc<Listener>, shared: Arc<Shared>) {
    // In a box of its own: its memory is free again when the tunnel is established.
    let accepting = Arrival::new(guest, &listener, &shared).accept().boxed();
    if let Some(Welcomed { session, span }) = accepting.await {
        run(session, span, &shared).await;
    }
}

impl Shared {
    fn record_refusal(&self, refusal: Refusal, client: ClientAddr) {
        let (label, client) = (refusal.label(), client.ip());
        self.telemetry.record(Fact::ConnectionRefused { label, reason: &refusal, client });
    }
}

/// Negotiates and relays. A partner that came just as this endpoint left is served on.
///
/// Each way on is in a box, so that a connection takes no more memory than its own way needs.
async fn run(session: Box<Session>, span: Span, shared: &Arc<Shared>) {
    let mut next = Some((session, span));
    while let Some((session, span)) = next.take() {
        match Negotiation::new(session, shared).run().boxed().instrument(span).await {
            Outcome::Over => {}
            Outcome::Orphan(partner) => {
                let span = partner.origin.span();
                next = Some((partner, span));
            }
            Outcome::Paired { first, partner, offer } => {
                tunnel::run_for_owner(first, partner, offer, shared).await;
            }
            Outcome::Bridged { session, bridged, claim } => {
                tunnel::run_for_claimer(session, bridged, claim, shared).boxed().await;
            }
            Outcome::Enrolled { session, enrolled: Enrolled::Gateway(enrolled) } => {
                let span = session.origin.span();
                gateway::serve(session, enrolled, shared).instrument(span).boxed().await;
            }
            Outcome::Enrolled { session, enrolled: Enrolled::App(attachment) } => {
                app::serve(session, *attachment, shared).boxed().await;
            }
        }
    }
}

/// An error with its causes, displayed in one line.
struct ErrorChain<'a>(&'a dyn Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Returns how long the last connection may take to close, for a node that waits for all of them.
pub fn longest_goodbye(timeouts: &Timeouts) -> Duration {
    // A goodbye, and the end of the connection below it.
    timeouts.close * 2
}
