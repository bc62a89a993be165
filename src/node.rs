//! Puts a node together from its parts and runs it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::auth::{AcceptAny, Authenticator, HttpAuthenticator, HttpSettings, SetupError};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::protocol::ServerInfo;
use crate::rendezvous::MemoryRendezvous;
use crate::session::{self, Shared};
use crate::transport::Patience;
use crate::transport::tls::{Fingerprint, ServerTls, TlsError};
use crate::transport::websocket::WebSocketTransport;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after an accept that failed for want of something, usually file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The authentication server.
    #[error(transparent)]
    Authentication(#[from] SetupError),
}

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", advice(.error))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says; told by the text, as it comes with advice.
        error: io::Error,
    },
}

fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program uses it; end that one or choose another port with -p/--port".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose one of its own with -s/--server".into()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need the privilege, choose another with -p/--port"
                .into()
        }
        _ => error.to_string(),
    }
}

/// A node whose configuration has been found good: certificates are loaded, nothing listens yet.
pub struct Prepared {
    config: Config,
    tls: Option<ServerTls>,
    authenticator: Arc<dyn Authenticator>,
}

impl Prepared {
    /// Loads and checks all that the configuration names.
    pub fn new(config: Config) -> Result<Self, PrepareError> {
        let tls = match &config.tls {
            tls if !tls.enabled => None,
            tls => Some(match (&tls.certificate, &tls.certificate_key) {
                (Some(certificate), Some(key)) => ServerTls::from_files(certificate, key)?,
                _ => ServerTls::self_signed(config.server.address)?,
            }),
        };
        let authentication = &config.authentication;
        let authenticator: Arc<dyn Authenticator> = match &authentication.server {
            Some(url) => Arc::new(HttpAuthenticator::new(&HttpSettings {
                url: url.clone(),
                ca: authentication.ca.clone(),
                timeout: authentication.timeout,
                concurrency: authentication.concurrency,
            })?),
            None => Arc::new(AcceptAny),
        };
        Ok(Self { config, tls, authenticator })
    }

    /// What will be started, a line for each fact.
    pub fn summary(&self) -> Vec<String> {
        let Config { server, tls, authentication, .. } = &self.config;
        let address = SocketAddr::new(server.address, server.port);
        let certificate = match (&self.tls, &tls.certificate) {
            (None, _) => "TLS: off, for use behind something that terminates it".into(),
            (Some(tls), Some(file)) => {
                format!("certificate: {}, SHA-256 {}", file.display(), tls.fingerprint())
            }
            (Some(tls), None) => {
                format!("certificate: self-signed, made in memory, SHA-256 {}", tls.fingerprint())
            }
        };
        let authentication = match &authentication.server {
            // The path and the query may hold a key.
            Some(url) => format!("authentication: by {}", origin_of(url)),
            None => "authentication: none, any token is accepted".into(),
        };
        vec![
            format!("listen on: {}://{address}", self.scheme()),
            certificate,
            authentication,
            "rendezvous: in memory, this node is alone".into(),
        ]
    }

    /// Listens on the configured address and serves. Must be called within a tokio runtime.
    pub fn start(self) -> Result<Node, StartError> {
        let address = SocketAddr::new(self.config.server.address, self.config.server.port);
        let listener = listen(address).map_err(|error| StartError::Listen { address, error })?;
        self.start_on(listener).map_err(|error| StartError::Listen { address, error })
    }

    /// Serves on a listener that is bound already.
    pub fn start_on(self, listener: TcpListener) -> io::Result<Node> {
        let local_addr = listener.local_addr()?;
        let scheme = self.scheme();
        let Self { config, tls, authenticator } = self;
        let patience =
            Patience { ping_interval: config.keepalive.interval, stalled: config.timeouts.stalled };
        let shared = Arc::new(Shared::new(
            WebSocketTransport::new(tls.as_ref(), patience),
            authenticator,
            Arc::new(MemoryRendezvous::default()),
            None,
            ServerInfo { name: config.server.name, version: env!("CARGO_PKG_VERSION").into() },
            Lifecycle::default(),
            (config.timeouts, config.limits),
        ));
        let fingerprint = tls.as_ref().map(ServerTls::fingerprint);
        shared.lifecycle.spawn(accept_all(listener, Arc::clone(&shared)));
        Ok(Node { shared, local_addr, scheme, fingerprint, grace: config.drain.grace })
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "wss" } else { "ws" }
    }
}

fn origin_of(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| String::new(), |url| url.origin().ascii_serialization())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // A restarted node must not wait until the old one's connections are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A running node. Dropping it does not end it; [`Node::drain`] does.
pub struct Node {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    scheme: &'static str,
    fingerprint: Option<Fingerprint>,
    grace: Duration,
}

impl Node {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL for clients on this machine, and for others if it listens on one address only.
    pub fn url(&self) -> String {
        let mut address = self.local_addr;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        format!("{}://{address}", self.scheme)
    }

    /// The SHA-256 of its certificate in hex; `None` without TLS.
    pub fn fingerprint(&self) -> Option<String> {
        self.fingerprint.map(|fingerprint| fingerprint.to_string())
    }

    /// Stops accepting, sends waiting endpoints away (close code 1001), lets standing tunnels go
    /// on for up to `drain.grace`, and then ends them (1001).
    pub async fn drain(&self) {
        let lifecycle = &self.shared.lifecycle;
        lifecycle.begin_drain();
        info!(grace = ?self.grace, "draining");
        if timeout(self.grace, lifecycle.all_done()).await.is_err() {
            lifecycle.end();
            // Each tunnel bounds its own end; this is for the case that one does not.
            let goodbyes = session::longest_goodbye(self.shared.timeouts());
            if timeout(goodbyes, lifecycle.all_done()).await.is_err() {
                warn!("some connections did not end in time and are cut");
            }
        }
        info!("drained");
    }
}

async fn accept_all(listener: TcpListener, shared: Arc<Shared>) {
    let lifecycle = &shared.lifecycle;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifecycle.draining() => return,
        };
        match accepted {
            Ok((tcp, client_addr)) => {
                lifecycle.spawn(session::serve(tcp, client_addr, Arc::clone(&shared)));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections; is the limit of open files reached?");
                sleep(ACCEPT_PAUSE).await;
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
