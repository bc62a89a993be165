//! The listeners of a node for endpoints: binds all of them before it starts, and gives each accepted
//! connection a session.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use tokio::net::{TcpListener, TcpSocket};

use super::StartError;
use crate::accept::{self, LastDescriptors, Listening, Manners, Owner, Room, descriptors};
use crate::config::{Listen, Proxies};
use crate::session::{self, Listener, Shared};
use crate::transport::stream::StreamTransport;
use crate::transport::tls::ServerTls;
use crate::transport::websocket::WebSocketTransport;
use crate::transport::{Patience, Transport};
use crate::unix_socket::UnixSocket;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;
/// Connections that have sent nothing, on each listener: with more, the oldest are closed.
const SILENT: usize = 1024;
/// The same of one address.
const SILENT_PER_NETWORK: usize = 512;
/// The setting that is named in errors.
const SETTING: &str = "path of its [[listen]]";

/// The address of a listener for endpoints.
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
    /// The address of a listener with these settings.
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

    /// The IP address of the listener, if it has one.
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

/// A bound listener that does not accept yet.
pub(super) struct Bound {
    pub(super) address: LocalAddr,
    listening: Listening,
    transport: Arc<dyn Transport>,
    /// There is no handshake before the first request.
    begins_with_request: bool,
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
        let begins_with_request =
            matches!(listen, Listen::Tcp { tls: false, .. } | Listen::Unix { .. });
        all.push(Bound { address, listening, transport, begins_with_request });
    }
    Ok(all)
}

impl Bound {
    /// Gives each accepted connection a session, until the node drains.
    pub(super) fn serve(self, shared: &Arc<Shared>) {
        let is_local = self.address.is_local();
        let timeouts = shared.timeouts();
        let manners = Manners {
            who: "clients",
            room: Room::new(descriptors::silent_within(SILENT), SILENT_PER_NETWORK),
            first_byte: if self.begins_with_request {
                timeouts.inactivity
            } else {
                timeouts.handshake
            },
            last_descriptors: LastDescriptors::Left(Arc::clone(&shared.telemetry.metrics)),
        };
        let listener = Arc::new(Listener { transport: self.transport, is_local });
        let owner = Owner::Node(shared.lifecycle.clone());
        let sessions = Arc::clone(shared);
        let handle =
            move |guest| session::serve(guest, Arc::clone(&listener), Arc::clone(&sessions));
        shared.lifecycle.spawn(accept::serve(self.listening, manners, owner, handle));
    }
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
