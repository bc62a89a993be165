//! The way of one connection through the node, as one task: admission, handshake, negotiation,
//! tunnel.
//!
//! When two endpoints of this node are paired, the one that came second hands its whole `Party`
//! over to the task of the one that waited, which runs the tunnel; its own task ends.

mod admission;
mod negotiation;
mod registry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument, debug, info, info_span};

use self::admission::{Admission, Ticket};
use self::negotiation::{Outcome, negotiate};
use self::registry::Registry;
use crate::auth::Authenticator;
use crate::config::{Limits, Timeouts};
use crate::ids::ConnectionId;
use crate::lifecycle::Lifecycle;
use crate::protocol::{Action, Close, Endpoint, Rules, ServerInfo};
use crate::relay;
use crate::rendezvous::{Offer, Rendezvous};
use crate::transport::{AcceptError, Leg, Refusal, Transport};

/// Connections that are told at once that there is no room. More are dropped without a word, as
/// telling them costs a TLS handshake each.
const REFUSALS_AT_ONCE: usize = 64;

/// What all sessions of a node share.
pub struct Shared {
    /// How connections become legs.
    pub transport: Arc<dyn Transport>,
    /// Who decides about tokens.
    pub authenticator: Arc<dyn Authenticator>,
    /// Where endpoints find each other.
    pub rendezvous: Arc<dyn Rendezvous>,
    /// Who this server is.
    pub server: Arc<ServerInfo>,
    /// The node's life.
    pub lifecycle: Lifecycle,
    timeouts: Timeouts,
    requests: u32,
    message_size: usize,
    admission: Arc<Admission>,
    refusals: Semaphore,
    registry: Registry,
}

impl Shared {
    /// Nobody is connected yet.
    pub fn new(
        transport: Arc<dyn Transport>,
        authenticator: Arc<dyn Authenticator>,
        rendezvous: Arc<dyn Rendezvous>,
        server: ServerInfo,
        timeouts: Timeouts,
        limits: Limits,
    ) -> Self {
        Self {
            transport,
            authenticator,
            rendezvous,
            server: Arc::new(server),
            lifecycle: Lifecycle::default(),
            timeouts,
            requests: limits.requests,
            message_size: limits.message_size,
            admission: Admission::new(limits),
            refusals: Semaphore::new(REFUSALS_AT_ONCE),
            registry: Registry::default(),
        }
    }

    /// How long things may take.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    fn rules(&self) -> Rules {
        Rules {
            inactivity: self.timeouts.inactivity,
            authentication: self.timeouts.authentication,
            waiting: self.timeouts.waiting,
            requests: self.requests,
        }
    }
}

/// A connection with all that belongs to it. Dropping it gives everything back.
pub(crate) struct Party {
    id: ConnectionId,
    leg: Box<dyn Leg>,
    endpoint: Endpoint,
    ticket: Ticket,
}

/// Serves one accepted connection until it is over.
pub async fn serve(tcp: TcpStream, client_addr: SocketAddr, shared: Arc<Shared>) {
    let id = ConnectionId::next();
    let span = info_span!("connection", %id, %client_addr);
    async {
        match shared.admission.enter(client_addr.ip()) {
            Ok(ticket) => {
                // In a box of its own: its memory is free again when the tunnel stands.
                let accepted = accept(&shared, tcp).boxed().await;
                if let Some(leg) = accepted {
                    let server = Arc::clone(&shared.server);
                    let endpoint = Endpoint::new(server, shared.rules(), Instant::now());
                    run(Box::new(Party { id, leg, endpoint, ticket }), &shared).await;
                }
            }
            Err(refusal) => refuse(&shared, tcp, refusal).await,
        }
    }
    .instrument(span)
    .await;
}

async fn accept(shared: &Shared, tcp: TcpStream) -> Option<Box<dyn Leg>> {
    match timeout(shared.timeouts.handshake, shared.transport.accept(tcp, None)).await {
        Ok(Ok(leg)) => {
            debug!("connected");
            Some(leg)
        }
        Ok(Err(error)) => {
            debug!(error = %error_chain(&error), "handshake failed");
            None
        }
        Err(_) => {
            debug!(after = ?shared.timeouts.handshake, "handshake took too long");
            None
        }
    }
}

async fn refuse(shared: &Shared, tcp: TcpStream, refusal: Refusal) {
    info!(reason = %refusal, "connection refused");
    if let Ok(_place) = shared.refusals.try_acquire() {
        let refused = shared.transport.accept(tcp, Some(refusal));
        match timeout(shared.timeouts.handshake, refused).await {
            Ok(Err(AcceptError::Refused(_)) | Ok(_)) | Err(_) => {}
            Ok(Err(error)) => debug!(error = %error_chain(&error), "could not say so"),
        }
    }
}

/// Negotiates and relays. A partner that came just as this endpoint left is served on.
async fn run(party: Box<Party>, shared: &Arc<Shared>) {
    let mut next = Some(party);
    while let Some(party) = next.take() {
        match negotiate(party, shared).boxed().await {
            Outcome::Over => {}
            Outcome::Orphan(partner) => next = Some(partner),
            Outcome::Paired { first, second, entry } => {
                tunnel(first, second, entry, shared).await;
            }
        }
    }
}

/// An entry in the rendezvous, given back when dropped.
struct Entry {
    offer: Offer,
    shared: Arc<Shared>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.registry.withdraw(self.offer.id);
        self.shared.rendezvous.release(self.offer);
    }
}

/// Runs the tunnel of two endpoints of this node.
async fn tunnel(mut first: Box<Party>, mut second: Box<Party>, entry: Entry, shared: &Arc<Shared>) {
    let tunnel = entry.offer.id;
    if let Err(close) = establish(&mut first, &mut second, shared).await {
        info!(%tunnel, reason = %close, "tunnel refused");
        drop(entry);
        let patience = shared.timeouts.close;
        tokio::join!(
            relay::close_leg(&mut *first.leg, Some(close), patience),
            relay::close_leg(&mut *second.leg, Some(close), patience),
        );
        return;
    }
    info!(%tunnel, first = %first.id, second = %second.id, "tunnel established");
    let since = Instant::now();
    let stop = shared.lifecycle.over().map(|()| Close::Draining);
    let patience = shared.timeouts.close;
    let ended = relay::flow(&mut *first.leg, &mut *second.leg, stop, patience).await;
    // The key is free before the goodbyes are said: an endpoint may come back at once.
    drop(entry);
    let report = relay::finish(&mut *first.leg, &mut *second.leg, ended, patience).await;
    info!(
        %tunnel,
        reason = %report.reason,
        ended_by = ?report.ended_by,
        bytes_forth = report.forth.bytes,
        bytes_back = report.back.bytes,
        messages_forth = report.forth.messages,
        messages_back = report.back.messages,
        duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        "tunnel ended"
    );
}

/// Tells both endpoints that the tunnel stands.
async fn establish(first: &mut Party, second: &mut Party, shared: &Shared) -> Result<(), Close> {
    let profile = |party: &Party| party.endpoint.offer().map(|(_, profile)| profile.clone());
    let (Some(of_first), Some(of_second)) = (profile(first), profile(second)) else {
        return Err(Close::Fault);
    };
    first.endpoint.paired(&of_second);
    second.endpoint.paired(&of_first);
    for party in [first, second] {
        party.leg.set_message_limit(shared.message_size);
        while let Some(action) = party.endpoint.poll_action() {
            match action {
                Action::Send(message) => send(&mut *party.leg, message).await,
                Action::Close(close) => return Err(close),
                Action::Authenticate(_) | Action::Offer(_) => return Err(Close::Fault),
            }
        }
    }
    Ok(())
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
