//! A connection from the listener to its session: admission, and the handshake of its transport.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{timeout, timeout_at};
use tracing::field::display;
use tracing::{Instrument, Span, debug};

use super::admission::Ticket;
use super::origin::Origin;
use super::{ErrorChain, Listener, Session, Shared};
use crate::accept::Guest;
use crate::ids::{ClientAddr, ConnectionId};
use crate::observability::metrics::{Stage, Step};
use crate::observability::{Fact, Telemetry};
use crate::protocol::Endpoint;
use crate::transport::{AcceptError, Accepted, Refusal, Socket};

/// An accepted connection, before its handshake.
pub(super) struct Arrival<'a> {
    socket: Socket,
    /// The other end of the socket: the client, or a proxy.
    peer: ClientAddr,
    since: Instant,
    origin: Origin,
    listener: &'a Listener,
    shared: &'a Shared,
}

/// A session, and the span of what is logged of it until it has a tunnel.
pub(super) struct Welcomed {
    pub(super) session: Box<Session>,
    pub(super) span: Span,
}

impl<'a> Arrival<'a> {
    pub(super) fn new(guest: Guest, listener: &'a Listener, shared: &'a Shared) -> Self {
        let Guest { socket, peer, since, visit, .. } = guest;
        // The listener's limits end here, those of the sessions begin.
        drop(visit);
        let client = listener.transport.client_of(peer);
        let origin = Origin {
            id: ConnectionId::next(),
            client_addr: client,
            proxy_addr: client.is_none().then_some(peer),
            trace: None,
        };
        Self { socket, peer, since, origin, listener, shared }
    }

    /// Accepts the connection if there is room for it. Returns its session once the handshake is
    /// done; nothing if it was refused or failed, which is recorded.
    pub(super) async fn accept(self) -> Option<Welcomed> {
        let span = self.origin.span();
        let accepting = async {
            match self.admit() {
                Ok(ticket) => self.shake_hands(ticket).await,
                Err(refusal) => {
                    self.refuse(refusal).await;
                    None
                }
            }
        };
        let session = accepting.instrument(span.clone()).await?;
        Some(Welcomed { session, span })
    }

    /// Counts the connection. A client that a proxy has still to name is counted later.
    fn admit(&self) -> Result<Ticket, Refusal> {
        if self.shared.lifecycle.is_draining() {
            return Err(Refusal::Draining);
        }
        self.shared.admission.enter(self.origin.client_addr)
    }

    async fn shake_hands(self, mut ticket: Ticket) -> Option<Box<Session>> {
        let Self { socket, peer, since, origin, listener, shared } = self;
        let Telemetry { metrics, tracer, .. } = &shared.telemetry;
        let transport = listener.transport.label();
        let mut gauge = metrics.connection(transport);
        let began = Instant::now();
        let displaced = ticket.displaced();
        let mut admit = |client| {
            if origin.proxy_addr.is_some() {
                Span::current().record("client_addr", display(client));
            }
            ticket.comes_from(client).inspect_err(|refusal| shared.record_refusal(*refusal, client))
        };
        let accepted = listener.transport.accept(socket, peer, &mut admit);
        let accepted = timeout_at((since + shared.timeouts.handshake).into(), accepted);
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = displaced.cancelled() => {
                let (label, error) = ("displaced", &"it had to make room for another connection");
                shared.telemetry.record(Fact::HandshakeFailed { label, error });
                return None;
            }
        };
        match accepted {
            Ok(Ok(Accepted { leg, client_addr, trace_parent, tls })) => {
                let client = (origin.id, client_addr);
                let trace = tracer.upgraded(client, transport, trace_parent, began, tls);
                if let Some(place) = trace.place() {
                    Span::current().record("trace_id", display(place.trace_id()));
                }
                debug!("connected");
                metrics.step(Step::Handshake, began.elapsed());
                gauge.enter(Stage::Greeting);
                let server = Arc::clone(&shared.server);
                let endpoint = Endpoint::new(server, shared.rules(listener), Instant::now());
                let origin =
                    Origin { client_addr: Some(client_addr), trace: trace.place(), ..origin };
                Some(Box::new(Session {
                    origin,
                    client_addr,
                    leg,
                    endpoint,
                    ticket,
                    gauge,
                    trace,
                    claimed: None,
                    waited: Duration::ZERO,
                }))
            }
            // It is recorded already.
            Ok(Err(AcceptError::Refused(_))) => None,
            Ok(Err(error)) => {
                let (label, error) = (error.label(), &ErrorChain(&error));
                shared.telemetry.record(Fact::HandshakeFailed { label, error });
                None
            }
            Err(_) => {
                let error = &format_args!("not done within {:?}", shared.timeouts.handshake);
                shared.telemetry.record(Fact::HandshakeFailed { label: "timeout", error });
                None
            }
        }
    }

    /// Answers that there is no room, unless many are answered so already.
    async fn refuse(self, refusal: Refusal) {
        let Self { socket, peer, listener, shared, .. } = self;
        shared.record_refusal(refusal, listener.transport.client_of(peer).unwrap_or(peer));
        if let Ok(_place) = shared.refusals.try_acquire() {
            let mut admit = |_| Err(refusal);
            let refused = listener.transport.accept(socket, peer, &mut admit);
            match timeout(shared.timeouts.handshake, refused).await {
                Ok(Err(AcceptError::Refused(_)) | Ok(_)) | Err(_) => {}
                Ok(Err(error)) => {
                    debug!(error = %ErrorChain(&error), "a refusal could not be sent");
                }
            }
        }
    }
}
