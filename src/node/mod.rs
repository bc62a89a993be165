//! Puts a node together from its parts and runs it.

mod listeners;
mod monitored;
mod operators;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

pub use self::listeners::LocalAddr;
use self::listeners::{listen_on, reachable};
use self::monitored::Monitored;
pub use self::operators::AdminError;
use self::operators::Operators;
use crate::accept::descriptors;
use crate::admin;
use crate::auth::{
    AcceptAny, Authenticator, HttpAuthenticator, HttpSettings, SetupError as AuthenticationError,
};
use crate::cluster::Budget;
use crate::cluster::client::Peers;
use crate::cluster::server::BridgeService;
use crate::cluster::tls::{BridgeTls, BridgeTlsError};
use crate::cluster::{self, Misdirections, ThisNode};
use crate::config::{self, Config, ForwardingHeader, Limits, Listen, Proxies};
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lock::lock;
use crate::monitor;
use crate::observability::{LogControl, Telemetry, TelemetryError};
use crate::protocol::ServerInfo;
use crate::rendezvous::redis::{
    LoadOf, NodeFacts, Pace, RedisRendezvous, SetupError as RedisError,
};
use crate::rendezvous::{Directory, MemoryRendezvous, Rendezvous};
use crate::session::{self, Shared};
use crate::transport::Patience;
use crate::transport::tls::{Fingerprint, ServerTls, TlsError};
use crate::unix_socket::{UnixSocket, UnixSocketError};

/// Why a node cannot be prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The authentication server.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Certificate or key of the bridge.
    #[error(transparent)]
    Bridge(#[from] BridgeTlsError),
    /// The admin listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A cluster without TLS between its nodes, and without `bridge.insecure`.
    #[error(
        "missing {0}: the nodes of a cluster need bridge.ca, bridge.certificate and bridge.key \
         for TLS between them, or bridge.insecure = true to do without"
    )]
    BridgeNotSecure(&'static str),
}

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", advice(.error, .option))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Which option or setting changes it.
        option: &'static str,
        /// The error of the system. It is part of the text, with advice, and so not a source.
        error: io::Error,
    },
    /// A unix socket cannot be listened on.
    #[error(transparent)]
    UnixSocket(#[from] UnixSocketError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Traces and metrics.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

fn advice(error: &io::Error, option: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program uses it; end that one or choose another port with {option}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address; choose one of its own with {option}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "not permitted; ports below 1024 need the privilege, choose another with {option}"
        ),
        _ => error.to_string(),
    }
}

/// A node with a valid configuration: certificates are loaded, nothing listens yet.
pub struct Prepared {
    config: Config,
    tls: Option<ServerTls>,
    bridge_tls: Option<BridgeTls>,
    authenticator: Arc<dyn Authenticator>,
    operators: Operators,
    log: Option<Arc<dyn LogControl>>,
}

impl Prepared {
    /// Loads and checks all that the configuration names.
    pub fn new(config: Config) -> Result<Self, PrepareError> {
        let secure: Vec<_> = config.listeners().iter().filter_map(Listen::ip).collect();
        let secure: Vec<_> = secure.into_iter().filter(|(_, tls)| *tls).collect();
        let tls = match (&config.tls.certificate, &config.tls.certificate_key) {
            _ if secure.is_empty() => None,
            (Some(certificate), Some(key)) => Some(ServerTls::from_files(certificate, key)?),
            _ => {
                let addresses: Vec<_> = secure.iter().map(|(address, _)| address.ip()).collect();
                Some(ServerTls::self_signed(&addresses)?)
            }
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
        let bridge_tls = if config.redis.is_given() {
            RedisRendezvous::check(&config.redis)?;
            bridge_tls(&config.bridge)?
        } else {
            None
        };
        let operators = Operators::new(&config.admin)?;
        Ok(Self { config, tls, bridge_tls, authenticator, operators, log: None })
    }

    /// The log that operators may change while the node runs.
    #[must_use]
    pub fn log(self, log: Arc<dyn LogControl>) -> Self {
        Self { log: Some(log), ..self }
    }

    /// A summary of what will be started, in lines.
    pub fn summary(&self) -> Vec<String> {
        let Config { tls, authentication, redis, bridge, admin, monitor, .. } = &self.config;
        let certificate = match (&self.tls, &tls.certificate) {
            (None, _) => "TLS: off, for a load balancer in front that terminates it".into(),
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
        let listeners = self.config.listeners();
        let listeners = listeners.iter().map(LocalAddr::of);
        let mut lines: Vec<_> = listeners.map(|place| format!("listen on: {place}")).collect();
        lines.extend([certificate, authentication]);
        let Proxies { trusted, protocol, header } = &self.config.proxies;
        let says = [protocol.then_some("the PROXY protocol"), header.map(ForwardingHeader::name)];
        lines.extend(
            says.iter().flatten().map(|how| format!("clients: named by {trusted} in {how}")),
        );
        if redis.is_given() {
            let security = if self.bridge_tls.is_some() { "mutual TLS" } else { "no TLS" };
            let advertised = advertised(bridge, bridge.listen);
            lines.push(format!("rendezvous: in Redis, keys begin with {}", redis.prefix));
            lines.push(format!(
                "bridge: on {}, {security}, known to other nodes as {advertised}",
                bridge.listen
            ));
        } else {
            lines.push("rendezvous: in memory, this node is alone".into());
        }
        lines.extend(admin.address().map(|address| self.operators.summary(address)));
        lines.extend(
            monitor.socket.as_ref().map(|file| format!("monitor socket: {}", file.display())),
        );
        lines
    }

    /// Listens on the configured addresses and serves. Must be called within a tokio runtime.
    pub fn start(self) -> Result<Node, StartError> {
        let Self { config, tls, bridge_tls, authenticator, operators, log } = self;
        let stalled = config.timeouts.stalled;
        let patience = Patience { ping_interval: config.keepalive.interval, stalled };
        let option =
            if config.listen.is_empty() { "-p/--port or -s/--server" } else { "[[listen]]" };
        let listeners = listeners::bind(
            &config.listeners(),
            option,
            tls.as_ref(),
            (patience, &config.proxies),
        )?;
        let admin = listen_for_operators(&config.admin)?;
        let monitor_socket = listen_for_monitors(config.monitor.socket.as_deref())?;
        let lifecycle = Lifecycle::default();
        let id = NodeId::started(&config.node.name);
        let name: Arc<str> = config.node.name.as_str().into();
        let telemetry = Telemetry::start(&config.telemetry, &id, &name)?;
        // The sessions are created last, but the lease in Redis has their load from the start.
        let sessions: Arc<OnceLock<Weak<Shared>>> = Arc::default();
        let cluster = if config.redis.is_given() {
            let (bridge, address) = listen_on(config.bridge.listen, "bridge.listen")?;
            let facts = NodeFacts {
                id: id.clone(),
                name: config.node.name.clone(),
                bridge_address: advertised(&config.bridge, address),
                waiting: config.timeouts.waiting,
                load: Some(load_of(&sessions)),
                telemetry: Some(telemetry.clone()),
            };
            let rendezvous = RedisRendezvous::start(&config.redis, facts, Pace::default())?;
            Some((bridge, address, rendezvous))
        } else {
            None
        };
        let rendezvous = rendezvous_of(cluster.as_ref().map(|(_, _, redis)| redis));
        let misdirections = Misdirections::new(id.clone(), Arc::clone(&telemetry.journal));
        let budget = Budget::new(config.bridge.buffer, &telemetry.metrics);
        let peers = cluster.as_ref().map(|(_, _, redis)| {
            let (tls, metrics) = (bridge_tls.clone(), Arc::clone(&telemetry.metrics));
            let misdirections = Arc::clone(&misdirections);
            let (name, lifecycle) = (Arc::clone(&name), lifecycle.clone());
            let budget = Arc::clone(&budget);
            let peers = Peers::new(name, tls, stalled, lifecycle, metrics, misdirections, budget);
            redis.query_neighbours(Arc::clone(&peers) as _);
            peers
        });
        let limits = within_descriptors(config.limits);
        let shared = Arc::new(Shared::new(
            authenticator,
            rendezvous,
            peers,
            ServerInfo { name: config.server.name, version: env!("CARGO_PKG_VERSION").into() },
            (lifecycle.clone(), telemetry.clone()),
            (config.timeouts, limits, config.tunnel_proxy),
        ));
        sessions.get_or_init(|| Arc::downgrade(&shared));
        let addresses = listeners.iter().map(|bound| bound.address.clone()).collect();
        for bound in listeners {
            bound.serve(&shared);
        }
        let mut node = Node {
            shared: Arc::clone(&shared),
            addresses,
            bridge_addr: None,
            admin_addr: None,
            admin_url: None,
            fingerprint: tls.as_ref().map(ServerTls::fingerprint),
            grace: config.drain.grace,
            redis: None,
            misdirections: Arc::clone(&misdirections),
            servers: JoinSet::new().into(),
        };
        if let Some((bridge, address, redis)) = cluster {
            let attach = Arc::clone(&shared) as _;
            let service = BridgeService {
                attach,
                node: ThisNode { name, id: id.clone() },
                metrics: Arc::clone(&telemetry.metrics),
                stalled,
                lifecycle: lifecycle.clone(),
                misdirections,
                budget,
            };
            node.serve(cluster::server::serve(service, bridge, bridge_tls));
            (node.bridge_addr, node.redis) = (Some(address), Some(redis));
        }
        node.serve({
            let (telemetry, log) = (telemetry.clone(), log.clone());
            async move { telemetry.watch(log).await }
        });
        operators.observe(&node, log.as_ref());
        if let Some((listener, address)) = admin {
            node.admin_addr = Some(address);
            node.admin_url = Some(operators.url(address));
            let admin = operators.admin(&node, &id, config.node.name, address, log);
            node.serve(admin::serve(listener, admin));
        }
        if let Some(socket) = monitor_socket {
            node.serve(monitor::serve(socket, Monitored::new(&node)));
        }
        Ok(node)
    }
}

/// Listens for monitors, if they are answered.
fn listen_for_monitors(path: Option<&Path>) -> Result<Option<UnixSocket>, StartError> {
    Ok(path.map(|path| UnixSocket::bind(path, "monitor.socket")).transpose()?)
}

/// Fewer connections than are wanted, if there are not enough file descriptors for them: a limit that
/// cannot be reached bounds nothing.
fn within_descriptors(mut limits: Limits) -> Limits {
    let connections = descriptors::connections_within(limits.connections);
    if connections < limits.connections {
        warn!(
            connections,
            wanted = limits.connections,
            files = descriptors::allowed(),
            "fewer connections than limits.connections, as there are not enough file descriptors: \
             raise their limit (ulimit -n, LimitNOFILE) or lower limits.connections"
        );
    }
    limits.connections = connections;
    limits
}

/// Creates the rendezvous: in Redis if it is configured, else in memory.
fn rendezvous_of(
    redis: Option<&Arc<RedisRendezvous>>,
) -> (Arc<dyn Rendezvous>, Arc<dyn Directory>) {
    if let Some(redis) = redis {
        (Arc::clone(redis) as _, Arc::clone(redis) as _)
    } else {
        let memory = Arc::new(MemoryRendezvous::default());
        (Arc::clone(&memory) as _, memory)
    }
}

/// The load of the sessions, once they are created.
fn load_of(sessions: &Arc<OnceLock<Weak<Shared>>>) -> LoadOf {
    let sessions = Arc::clone(sessions);
    Arc::new(move || {
        let sessions = sessions.get().and_then(Weak::upgrade);
        sessions.map(|sessions| sessions.load()).unwrap_or_default()
    })
}

fn bridge_tls(bridge: &config::Bridge) -> Result<Option<BridgeTls>, PrepareError> {
    match (&bridge.ca, &bridge.certificate, &bridge.key) {
        (Some(ca), Some(certificate), Some(key)) => {
            Ok(Some(BridgeTls::from_files(ca, certificate, key)?))
        }
        (None, None, None) if bridge.insecure => Ok(None),
        (None, ..) => Err(PrepareError::BridgeNotSecure("bridge.ca")),
        (_, None, _) => Err(PrepareError::BridgeNotSecure("bridge.certificate")),
        (.., None) => Err(PrepareError::BridgeNotSecure("bridge.key")),
    }
}

/// The address for other nodes of the bridge that listens on `address`.
fn advertised(bridge: &config::Bridge, address: SocketAddr) -> String {
    match &bridge.advertise {
        Some(advertised) => advertised.clone(),
        // In a container, the host name is what its network knows it by.
        None if address.ip().is_unspecified() => {
            format!("{}:{}", gethostname::gethostname().to_string_lossy(), address.port())
        }
        None => address.to_string(),
    }
}

fn origin_of(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| String::new(), |url| url.origin().ascii_serialization())
}

/// Without `admin.listen`, and if the default address is in use, the node runs without this listener:
/// a second node on the same machine needs no setting.
fn listen_for_operators(
    admin: &config::Admin,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(address) = admin.address() else { return Ok(None) };
    match listen_on(address, "admin.listen") {
        Ok(listening) => Ok(Some(listening)),
        Err(error) if admin.listen.is_none() => {
            warn!("status page, API and metrics are not available: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A running node. Dropping it ends the way to other nodes at once and leaves its clients to
/// themselves; [`Node::drain`] ends it in order.
pub struct Node {
    shared: Arc<Shared>,
    addresses: Vec<LocalAddr>,
    bridge_addr: Option<SocketAddr>,
    admin_addr: Option<SocketAddr>,
    admin_url: Option<String>,
    fingerprint: Option<Fingerprint>,
    grace: Duration,
    redis: Option<Arc<RedisRendezvous>>,
    misdirections: Arc<Misdirections>,
    /// Bridge, admin and monitor: they serve until the last tunnel has ended.
    servers: Mutex<JoinSet<()>>,
}

impl Node {
    /// The addresses of the listeners for clients, in the order of the settings.
    pub fn addresses(&self) -> &[LocalAddr] {
        &self.addresses
    }

    /// The first of those that is an IP address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.addresses.iter().find_map(LocalAddr::ip)
    }

    /// The address of the listener for other nodes.
    pub fn bridge_addr(&self) -> Option<SocketAddr> {
        self.bridge_addr
    }

    /// The address of the listener for operators.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// The URL for clients on this machine; of the first listener, if none takes WebSockets.
    pub fn url(&self) -> String {
        let web_socket = self.addresses.iter().find(|address| address.is_web_socket());
        web_socket.or(self.addresses.first()).map(LocalAddr::url).unwrap_or_default()
    }

    /// The URL of its status page, likewise.
    pub fn admin_url(&self) -> Option<&str> {
        self.admin_url.as_deref()
    }

    /// The telemetry of the node.
    pub fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }

    /// The SHA-256 of its certificate in hex; `None` without TLS.
    pub fn fingerprint(&self) -> Option<String> {
        self.fingerprint.map(|fingerprint| fingerprint.to_string())
    }

    /// Becomes unready, stops accepting, closes waiting endpoints (1001), lets established tunnels
    /// continue for up to `drain.grace`, and then closes them (1001). Then the entries of this node
    /// in Redis are removed, and the bridge and admin end last.
    pub async fn drain(&self) {
        let lifecycle = &self.shared.lifecycle;
        lifecycle.begin_end();
        info!(grace = ?self.grace, "draining");
        if timeout(self.grace, lifecycle.all_done()).await.is_err() {
            lifecycle.end();
            // Each tunnel bounds its own end; this is for the case that one does not.
            let goodbyes = session::longest_goodbye(self.shared.timeouts());
            if timeout(goodbyes, lifecycle.all_done()).await.is_err() {
                warn!("some connections did not close in time and are cut off");
            }
        }
        if let Some(redis) = &self.redis {
            redis.close().await;
        }
        let mut servers = std::mem::take(&mut *self.servers());
        servers.shutdown().await;
        let telemetry = self.shared.telemetry.clone();
        // It bounds itself; whether all of it got out is not ours to help.
        let _sent = tokio::task::spawn_blocking(move || telemetry.flush()).await;
        info!("drained");
    }

    fn serve(&self, server: impl Future<Output = ()> + Send + 'static) {
        self.servers().spawn(server);
    }

    fn servers(&self) -> MutexGuard<'_, JoinSet<()>> {
        lock(&self.servers)
    }
}
