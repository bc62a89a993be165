//! Connections of endpoints: a [`Transport`] turns an accepted connection into a [`Leg`], and
//! nothing above it knows which kind of transport that was.
//!
//! Here are the two traits. `wire` moves bytes, with TLS or without; [`websocket`] makes frames of
//! them, and [`stream`] (TCP, TLS, unix sockets) leaves them as they are. `proxied` determines the
//! client of a connection that a load balancer forwards.
//! Protocol messages and pairing are not known here.

mod keepalive;
mod proxied;
pub mod proxy_protocol;
pub mod stream;
pub mod tls;
pub mod websocket;
mod wire;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use socket2::SockRef;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::protocol::{Chunk, Close};
use crate::trace_parent::TraceParent;

use self::proxy_protocol::HeaderError;
pub use crate::ids::ClientAddr;
pub use keepalive::Patience;

/// One end of a tunnel, as the relay sees it: chunks out, chunks in, and an end.
///
/// All methods belong to one task. They never block; those that return [`Poll::Pending`] wake that
/// task when there is more to do.
pub trait Leg: Send {
    /// The next chunk that came in. After an error only the closing methods may be called.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>>;

    /// Called in place of [`Leg::poll_recv`] while no chunk is wanted, as the other leg has no room:
    /// a leg that buffers what arrives keeps that in as little memory as can be, and has the task
    /// woken when more arrives.
    fn gather(&mut self, _cx: &mut Context<'_>) {}

    /// Ready once there is room for one more chunk. This is the source of backpressure.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>>;

    /// Takes a chunk to be sent. [`Leg::poll_ready`] must have been ready just before.
    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End>;

    /// Ready once all that was taken is handed to the network.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>>;

    /// Ready when the endpoint must be given up: it answers no pings, or takes no data.
    /// Must be polled all the time, whatever else happens; this also sends the pings.
    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End>;

    /// Messages larger than this many bytes end the connection from now on.
    fn set_message_limit(&mut self, bytes: usize);

    /// Ends the direction to the endpoint after all pending data, while data can still be received;
    /// [`Leg::poll_flush`] completes this. Returns false if the leg has no half-close, such as a
    /// WebSocket: then it is to be closed.
    fn send_end(&mut self, _cx: &mut Context<'_>) -> bool {
        false
    }

    /// Requests a sign of life from the endpoint, and ends the leg ([`Leg::poll_health`], or
    /// [`End::Lost`]) if none arrives within about this time. Legs that notice a loss at once need
    /// not do anything.
    fn probe(&mut self, _cx: &mut Context<'_>, _within: Duration) {}

    /// Whether the endpoint has ended its own direction and no more than that ([`End::Finished`]).
    fn has_finished(&self) -> bool {
        false
    }

    /// Whether a requested sign of life is still missing.
    fn is_probed(&self) -> bool {
        false
    }

    /// Whether signs of life are from the endpoint itself. Otherwise a load balancer may give them
    /// for an endpoint that is gone.
    fn has_pings(&self) -> bool {
        false
    }

    /// Sends a close after all pending data. No effect if the endpoint has closed already.
    fn send_close(&mut self, cx: &mut Context<'_>, close: Close);

    /// Discards all received data; ready at the end of the input.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ends the connection below in order (TLS `close_notify`, then FIN).
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Why a leg has ended, or one of its directions.
#[derive(Debug)]
pub enum End {
    /// The endpoint closed the connection in order.
    Left,
    /// The endpoint sends nothing more, but still reads: the half-close of a byte stream.
    /// [`Leg::poll_recv`] must not be called any more, all other methods may.
    Finished,
    /// The other end of the tunnel has closed it for this reason, which is to be sent to the
    /// endpoint.
    Closed(Close),
    /// The endpoint closed the connection because of a failure: its data may be incomplete.
    Failed,
    /// The connection broke.
    Lost(io::Error),
    /// The endpoint broke a rule or gave no sign of life; it is to be closed for this reason.
    Fault(Close),
}

/// A connection that has become a leg.
pub struct Accepted {
    /// The leg.
    pub leg: Box<dyn Leg>,
    /// The address of the client.
    pub client_addr: ClientAddr,
    /// The trace of the client, if it sent one.
    pub trace_parent: Option<TraceParent>,
    /// The version of TLS, as in `1.3`, and when its handshake was done.
    pub tls: Option<(&'static str, Instant)>,
}

/// A connection as a listener gets it.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Whether something has come in already, or the connection has ended: known before the runtime
    /// has looked.
    pub(crate) fn has_input(&self) -> bool {
        let peeked = match self {
            Self::Tcp(tcp) => peek(tcp),
            Self::Unix(unix) => peek(unix),
        };
        !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ready when something has come in, or the connection has ended.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        loop {
            // The runtime takes a new socket for readable until a first read has been tried.
            let peeked = match self {
                Self::Tcp(tcp) => {
                    tcp.readable().await?;
                    tcp.try_io(Interest::READABLE, || peek(tcp))
                }
                Self::Unix(unix) => {
                    unix.readable().await?;
                    unix.try_io(Interest::READABLE, || peek(unix))
                }
            };
            match peeked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(()) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Looks for a byte without taking it.
fn peek<'a, S: AsFd>(socket: &'a S) -> io::Result<()>
where
    SockRef<'a>: From<&'a S>,
{
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]).map(drop)
}

/// Decides whether this client is admitted. A transport calls it once, as soon as it knows the address
/// of the client.
pub type Admit<'a> = dyn FnMut(ClientAddr) -> Result<(), Refusal> + Send + 'a;

/// Turns accepted connections into legs. One value serves all connections of a listener.
pub trait Transport: Send + Sync {
    /// Does everything up to the first message on a connection from `peer`. A client that `admit`
    /// refuses gets an error response, if the transport has one.
    fn accept<'a>(
        &'a self,
        socket: Socket,
        peer: ClientAddr,
        admit: &'a mut Admit<'_>,
    ) -> BoxFuture<'a, Result<Accepted, AcceptError>>;

    /// The client of a connection from `peer`, if it is known before anything is read. It is not if
    /// `peer` is a trusted proxy that names the client.
    fn client_of(&self, peer: ClientAddr) -> Option<ClientAddr> {
        Some(peer)
    }

    /// The name of this transport in metrics.
    fn label(&self) -> &'static str;
}

/// Why there is no room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// `limits.connections` is reached.
    #[error("too many connections")]
    Connections,
    /// `limits.unauthenticated` is reached.
    #[error("too many connections that are not authenticated yet")]
    Unauthenticated,
    /// `limits.unauthenticated_per_ip` is reached.
    #[error("too many connections from this address that are not authenticated yet")]
    UnauthenticatedPerIp,
    /// `limits.network_share` is reached.
    #[error("too many connections from this network")]
    Network,
    /// `limits.user_share` is reached.
    #[error("too many connections of this user")]
    User,
    /// The node is draining.
    #[error("the node is shutting down")]
    Draining,
}

impl Refusal {
    /// A short constant name for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Unauthenticated => "unauthenticated",
            Self::UnauthenticatedPerIp => "unauthenticated_per_ip",
            Self::Network => "network_share",
            Self::User => "user_share",
            Self::Draining => "draining",
        }
    }
}

/// Why an accepted connection did not become a leg.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// A load balancer sent no valid PROXY protocol header.
    #[error("the load balancer sent no valid PROXY protocol header (proxies.protocol demands one)")]
    ProxyProtocol(#[source] HeaderError),
    /// The connection broke, or ended, before it was ready.
    #[error("the connection ended before it was ready")]
    Io(#[source] io::Error),
    /// The request was not a WebSocket upgrade; the client got this HTTP status.
    #[error("the request is not a WebSocket upgrade (answered {status}): {why}")]
    NoUpgrade {
        /// The HTTP status of the answer.
        status: u16,
        /// The fault in the request.
        why: &'static str,
    },
    /// A limit was reached, and the client has been refused.
    #[error("refused: {0}")]
    Refused(Refusal),
}

impl AcceptError {
    /// A short constant name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Tls(_) => "tls",
            Self::ProxyProtocol(_) => "proxy_protocol",
            Self::Io(_) => "io",
            Self::NoUpgrade { .. } => "upgrade",
            Self::Refused(_) => "refused",
        }
    }
}
