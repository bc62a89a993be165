//! Where a node listens for endpoints: binds all places before it starts, and gives each connection
//! that comes a session.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use tracing::warn;

use super::StartError;
use crate::config::{Listen, Proxies};
use crate::lifecycle::Lifecycle;
use crate::session::{self, Listener, Shared};
use crate::transport::stream::StreamTransport;
use crate::transport::tls::ServerTls;
use crate::transport::websocket::WebSocketTransport;
use crate::transport::{ClientAddr, Patience, Socket, Transport};
use crate::unix_socket::UnixSocket;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after an accept that failed for want of something, usually file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What says where a node listens.
const SETTING: &str = "path of its [[listen]]";

/// Where a node listens for endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddr {
    /// On an IP address.
    Ip {
        /// `wss`, `ws`, `tls` or `tcp`.
        scheme: &'static str,
        /// With the port that the system has chosen, if it had to.
        address: SocketAddr,
    },
    /// On a unix socket.
    Unix(PathBuf),
}

impl LocalAddr {
    /// Where a listener with these settings is.
    pub(super) fn of(listen: &Listen) -> Self {
        match listen {
            Listen::WebSocket { address, tls } => {
                Self::Ip { scheme: if *tls { "wss" } else { "ws" }, address: *address }
            }
            Listen::Tcp { address, tls } => {
                Self::Ip { scheme: if *tls { "tls" } else { "tcp" }, address: *address }
            }
            Listen::Unix { path } => Self::Unix(path.clone()),
        }
    }

    /// The URL for clients on this machine, and for others if it listens on one address only.
    pub fn url(&self) -> String {
        match self {
            Self::Ip { scheme, address } => {
                Self::Ip { scheme, address: reachable(*address) }.to_string()
            }
            Self::Unix(_) => self.to_string(),
        }
    }

    /// Whether it takes WebSockets.
    pub fn is_web_socket(&self) -> bool {
        matches!(self, Self::Ip { scheme: "wss" | "ws", .. })
    }

    /// Its IP address, if it has one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip { address, .. } => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether only programs on this machine can connect.
    fn is_local(&self) -> bool {
        self.ip().is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { scheme, address } => write!(f, "{scheme}://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address by which programs on this machine reach what listens on this one.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// A place that is listened on; nobody is accepted yet.
pub(super) struct Bound {
    pub(super) address: LocalAddr,
    listening: Listening,
    transport: Arc<dyn Transport>,
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// Listens on all places, or on none.
pub(super) fn bind(
    places: &[Listen],
    option: &'static str,
    tls: Option<&ServerTls>,
    (patience, proxies): (Patience, &Proxies),
) -> Result<Vec<Bound>, StartError> {
    let mut all = Vec::new();
    for listen in places {
        let mut address = LocalAddr::of(listen);
        let listening = match (listen, &mut address) {
            (Listen::WebSocket { .. } | Listen::Tcp { .. }, LocalAddr::Ip { address, .. }) => {
                let (listener, bound) = listen_on(*address, option)?;
                *address = bound;
                Listening::Tcp(listener)
            }
            (Listen::Unix { path }, _) => Listening::Unix(UnixSocket::bind(path, SETTING)?),
            (_, LocalAddr::Unix(_)) => continue,
        };
        let secured = |wanted: bool| tls.filter(|_| wanted);
        let transport: Arc<dyn Transport> = match *listen {
            Listen::WebSocket { tls, .. } => {
                WebSocketTransport::new(secured(tls), patience, proxies.clone())
            }
            Listen::Tcp { tls, .. } => {
                StreamTransport::tcp(secured(tls), patience, proxies.clone())
            }
            Listen::Unix { .. } => StreamTransport::unix(patience),
        };
        all.push(Bound { address, listening, transport });
    }
    Ok(all)
}

impl Bound {
    /// Gives each connection that comes a session, until the node takes no more.
    pub(super) fn serve(self, shared: &Arc<Shared>) {
        let is_local = self.address.is_local();
        let listener = Arc::new(Listener { transport: self.transport, is_local });
        let serving = accept_all(self.listening, listener, Arc::clone(shared));
        shared.lifecycle.spawn(serving);
    }
}

async fn accept_all(listening: Listening, listener: Arc<Listener>, shared: Arc<Shared>) {
    let lifecycle: &Lifecycle = &shared.lifecycle;
    loop {
        let accepted = tokio::select! {
            accepted = listening.accept() => accepted,
            () = lifecycle.ending() => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
                lifecycle.spawn(session::serve(socket, peer, listener, shared));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections; is the limit of open files reached?");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<(Socket, ClientAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (tcp, peer) = listener.accept().await?;
                Ok((Socket::Tcp(tcp), peer.into()))
            }
            Self::Unix(socket) => {
                let unix = socket.accept().await?;
                let process = unix.peer_cred().ok().and_then(|peer| peer.pid());
                let process = process.and_then(|process| process.try_into().ok());
                Ok((Socket::Unix(unix), ClientAddr::Unix { process }))
            }
        }
    }
}

/// Whether only this one connection is concerned, which was gone before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Listens on a TCP port.
pub(super) fn listen_on(
    address: SocketAddr,
    option: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    listen(address).map_err(|error| StartError::Listen { address, option, error })
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted node must not wait until the old one's connections are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let local_addr = listener.local_addr()?;
    Ok((listener, local_addr))
}
