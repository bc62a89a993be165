//! Every setting of a node and its default. [`Config::load`] reads them from file, environment
//! and flags; the rest of the program sees only these types.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod ini;
pub mod legacy;
mod listen;
mod load;
mod networks;
mod tunnel_proxy;
mod units;
mod validate;

pub use listen::{ForwardingHeader, Listen, Proxies};
pub use load::{ConfigError, Fault, Override};
pub use networks::{NetworkError, Networks};
pub use tunnel_proxy::{TokenFor, TunnelProxy};

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node listens and what it calls itself.
    pub server: Server,
    /// All listeners, in place of the one of `server`.
    pub listen: Vec<Listen>,
    /// What is in front of them and says whose a connection is.
    pub proxies: Proxies,
    /// This instance.
    pub node: NodeIdentity,
    /// Transport encryption.
    pub tls: Tls,
    /// Who decides about tokens.
    pub authentication: Authentication,
    /// Where the nodes of a cluster meet; without it, this node is alone.
    pub redis: Redis,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Keepalive pings.
    pub keepalive: Keepalive,
    /// How a node goes away.
    pub drain: Drain,
    /// How much of everything there may be.
    pub limits: Limits,
    /// The way between the nodes of a cluster.
    pub bridge: Bridge,
    /// What gateways and apps may do.
    pub tunnel_proxy: TunnelProxy,
    /// Where operators ask.
    pub admin: Admin,
    /// Where programs of this machine ask.
    pub monitor: Monitor,
    /// What is logged, and where.
    pub log: Log,
    /// Traces and metrics.
    pub telemetry: Telemetry,
    /// What the file says that has no meaning here, each with what to do about it: only a file of
    /// the original server does.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// `server.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// What `Hello` says.
    pub name: String,
    /// The address to listen on; a host name in the configuration is looked up when it is read.
    #[serde(deserialize_with = "units::address")]
    pub address: IpAddr,
    /// The port to listen on; 0 lets the system choose one.
    #[serde(deserialize_with = "units::port")]
    pub port: u16,
}

/// `node.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeIdentity {
    /// The name of this instance.
    pub name: String,
}

/// `tls.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Off: `ws://` instead of `wss://`, for a node behind a load balancer that terminates TLS.
    pub enabled: bool,
    /// PEM file with the certificate chain.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key.
    pub certificate_key: Option<PathBuf>,
    /// Use a self-signed certificate made in memory on any address, not just on loopback.
    pub insecure_self_signed: bool,
}

/// `authentication.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authentication {
    /// URL of the authentication server.
    pub server: Option<String>,
    /// PEM file with certificates to trust besides the system's when asking that server.
    pub ca: Option<PathBuf>,
    /// How long that server may take to answer.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub timeout: Duration,
    /// Requests to that server at once; more wait.
    #[serde(deserialize_with = "units::count")]
    pub concurrency: usize,
    /// Accept any token on any address, not just on loopback.
    pub insecure_accept_any: bool,
}

/// `redis.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// URL of the server; with sentinels, how to talk to the master they name.
    pub url: Option<Secret>,
    /// A file with that URL.
    pub url_file: Option<PathBuf>,
    /// What all keys begin with.
    pub prefix: String,
    /// PEM file with certificates to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// URLs of sentinels.
    #[serde(deserialize_with = "units::list")]
    pub sentinels: Vec<Secret>,
    /// The master as the sentinels call it.
    pub sentinel_master: Option<String>,
    /// URLs of some nodes of a Redis Cluster.
    #[serde(deserialize_with = "units::list")]
    pub cluster: Vec<Secret>,
    /// How long an answer may take.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub timeout: Duration,
}

/// A setting that may hold a password, which is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// `timeouts.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the TCP connection until TLS and the upgrade are done.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub handshake: Duration,
    /// From the upgrade until the connection must ask to be authenticated.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub inactivity: Duration,
    /// From the upgrade until the connection must be authenticated.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub authentication: Duration,
    /// How long an authenticated endpoint waits for the other one.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub waiting: Duration,
    /// How long an endpoint may leave its data untaken before it is closed.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub stalled: Duration,
    /// How long an endpoint may take to answer a close.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub close: Duration,
}

/// `keepalive.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keepalive {
    /// An endpoint that sent nothing for this long is pinged (up to a quarter of it earlier, so that
    /// not all are at once), and after an answer again after twice as long; after two unanswered
    /// pings it is dropped.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub interval: Duration,
}

/// `drain.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long standing tunnels may go on after a signal to stop.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub grace: Duration,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in all.
    #[serde(deserialize_with = "units::count")]
    pub connections: usize,
    /// The share of all connections that one IPv4 address, or one IPv6 network (of 64, 56 and 48
    /// bits each), may have.
    pub network_share: f64,
    /// The share that one user may have: a name that the authentication server gives, or a token.
    pub user_share: f64,
    /// The share that is kept for networks with few connections.
    pub reserve: f64,
    /// Connections without a verified token, in all.
    #[serde(deserialize_with = "units::count")]
    pub unauthenticated: usize,
    /// The same from one IPv4 address or one IPv6 /64 network; 4 times as many from a /56, and 16
    /// times as many from a /48.
    #[serde(deserialize_with = "units::count")]
    pub unauthenticated_per_ip: usize,
    /// Requests on one connection before it is authenticated.
    #[serde(deserialize_with = "units::count")]
    pub requests: u32,
    /// The largest message in a tunnel, in bytes.
    #[serde(deserialize_with = "units::size")]
    pub message_size: usize,
}

/// `bridge.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bridge {
    /// Where other nodes connect to this one.
    pub listen: SocketAddr,
    /// `host:port` by which other nodes reach it; by default the address it listens on, or the
    /// host name if that is all addresses.
    pub advertise: Option<String>,
    /// PEM file with the CA of the cluster.
    pub ca: Option<PathBuf>,
    /// PEM file with this node's certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
    /// Do without TLS between the nodes.
    pub insecure: bool,
    /// What all bridged tunnels of this node may keep in memory together, in bytes, for readers
    /// that take nothing. It is shared in equal parts, half for each direction: with many tunnels,
    /// each may have less data under way. None gets less than 16 KiB in a direction.
    #[serde(deserialize_with = "units::size")]
    pub buffer: usize,
}

/// `admin.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Off: operators are not answered at all.
    pub enabled: bool,
    /// Where they are answered. By default on [`Admin::DEFAULT`], unless another program, such as
    /// another node on the same machine, is there already.
    pub listen: Option<SocketAddr>,
    /// What they must show; without, other machines get no more than health and metrics.
    pub token: Option<Secret>,
    /// A file with that token.
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificate chain, for `https://`.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub certificate_key: Option<PathBuf>,
    /// Stay ready while Redis is away.
    pub ready_without_redis: bool,
}

/// `monitor.*`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// The file of the socket on which monitors are answered; without, they are not.
    pub socket: Option<PathBuf>,
}

/// `log.*`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Also log to this file.
    pub file: Option<PathBuf>,
    /// What to log, as in `info,nymea_remoteproxy=debug`; wins over `-v`.
    pub filter: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal and in a file, JSON to anything else.
    #[default]
    Auto,
    /// For people.
    Human,
    /// A JSON object in each line.
    Json,
}

/// `telemetry.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Telemetry {
    /// Off: nothing is counted, timed or traced.
    pub enabled: bool,
    /// The URL of a collector that takes OTLP.
    pub endpoint: Option<String>,
    /// How it takes it.
    pub protocol: OtlpProtocol,
    /// Send it traces.
    pub traces: bool,
    /// Send it metrics.
    pub metrics: bool,
    /// The share of connections that are traced, from 0 to 1.
    pub sample: f64,
    /// Also trace those whose client wants it (`traceparent` with the flag `sampled`).
    pub follow_clients: bool,
}

/// The transports of OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// gRPC, usually on port 4317.
    #[default]
    Grpc,
    /// Protobuf over HTTP, usually on port 4318.
    Http,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoint: None,
            protocol: OtlpProtocol::Grpc,
            traces: true,
            metrics: true,
            sample: 1.0,
            follow_clients: true,
        }
    }
}

impl Admin {
    /// Where operators are answered if nobody says where.
    pub const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);

    /// Where operators are to be answered.
    pub fn address(&self) -> Option<SocketAddr> {
        self.enabled.then(|| self.listen.unwrap_or(Self::DEFAULT))
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            token: None,
            token_file: None,
            certificate: None,
            certificate_key: None,
            ready_without_redis: false,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        let address = IpAddr::from([127, 0, 0, 1]);
        Self { name: "nymea-remoteproxy".into(), address, port: 1212 }
    }
}

impl Default for NodeIdentity {
    fn default() -> Self {
        Self { name: gethostname::gethostname().to_string_lossy().into_owned() }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            enabled: true,
            certificate: None,
            certificate_key: None,
            insecure_self_signed: false,
        }
    }
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            server: None,
            ca: None,
            timeout: Duration::from_secs(8),
            concurrency: 64,
            insecure_accept_any: false,
        }
    }
}

impl Redis {
    /// Whether there is a cluster.
    pub fn is_given(&self) -> bool {
        let Self { url, url_file, sentinels, cluster, .. } = self;
        url.is_some() || url_file.is_some() || !sentinels.is_empty() || !cluster.is_empty()
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            prefix: "nymea-remoteproxy:".into(),
            ca: None,
            sentinels: Vec::new(),
            sentinel_master: None,
            cluster: Vec::new(),
            timeout: Duration::from_millis(1500),
        }
    }
}

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            inactivity: Duration::from_secs(8),
            authentication: Duration::from_secs(10),
            waiting: Duration::from_mins(1),
            stalled: Duration::from_mins(5),
            close: Duration::from_secs(5),
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(20) }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { grace: Duration::from_secs(30) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            network_share: 0.75,
            user_share: 0.5,
            reserve: 0.1,
            unauthenticated: 5_000,
            unauthenticated_per_ip: 200,
            requests: 1_000,
            message_size: 16 << 20,
        }
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 1213)),
            advertise: None,
            ca: None,
            certificate: None,
            key: None,
            insecure: false,
            buffer: 512 << 20,
        }
    }
}
