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
    /// The default listener, and the name in `Hello`.
    pub server: Server,
    /// The listeners; they replace the one of `server`.
    pub listen: Vec<Listen>,
    /// Load balancers in front of the listeners that name the client of a connection.
    pub proxies: Proxies,
    /// The identity of this node in its cluster.
    pub node: NodeIdentity,
    /// TLS for clients.
    pub tls: Tls,
    /// The authentication server, which checks tokens.
    pub authentication: Authentication,
    /// The Redis server that all nodes of a cluster share; without it, the node is not in a cluster.
    pub redis: Redis,
    /// Time limits of connections.
    pub timeouts: Timeouts,
    /// Keepalive pings.
    pub keepalive: Keepalive,
    /// The end of a node.
    pub drain: Drain,
    /// Limits of connections, requests and messages.
    pub limits: Limits,
    /// Connections between the nodes of a cluster.
    pub bridge: Bridge,
    /// The tunnel proxy for gateways and apps.
    pub tunnel_proxy: TunnelProxy,
    /// HTTP for operators.
    pub admin: Admin,
    /// The monitor socket for programs of this machine.
    pub monitor: Monitor,
    /// The log.
    pub log: Log,
    /// Traces and metrics.
    pub telemetry: Telemetry,
    /// Keys of a file of the original server that have no meaning here, each with advice.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// `server.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The name of the server in the response to `Hello`.
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
    /// The name of this node; by default the host name.
    pub name: String,
}

/// `tls.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Off: `ws://` instead of `wss://`, for a load balancer in front that terminates TLS.
    pub enabled: bool,
    /// PEM file with the certificate chain.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    pub certificate_key: Option<PathBuf>,
    /// Use a self-signed certificate made in memory on any address, not on loopback only.
    pub insecure_self_signed: bool,
}

/// `authentication.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authentication {
    /// URL of the authentication server.
    pub server: Option<String>,
    /// PEM file with certificates that the authentication server may have, besides the system's.
    pub ca: Option<PathBuf>,
    /// The time for an answer of the authentication server.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub timeout: Duration,
    /// The most concurrent requests to the authentication server; further ones wait.
    #[serde(deserialize_with = "units::count")]
    pub concurrency: usize,
    /// Accept any token on any address, not on loopback only.
    pub insecure_accept_any: bool,
}

/// `redis.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// URL of the server. With sentinels: the user, password and database of the master.
    pub url: Option<Secret>,
    /// A file that contains the URL.
    pub url_file: Option<PathBuf>,
    /// The prefix of all keys.
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
    /// The time for an answer of Redis.
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
    /// From the upgrade until the connection must request authentication or registration.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub inactivity: Duration,
    /// From the upgrade until the connection must be authenticated.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub authentication: Duration,
    /// How long an authenticated endpoint waits for the other one.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub waiting: Duration,
    /// An endpoint that reads none of its data for this long is closed.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub stalled: Duration,
    /// The time for an endpoint to answer a close.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub close: Duration,
}

/// `keepalive.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keepalive {
    /// An endpoint that sent nothing for this long is pinged (up to a quarter earlier, so that not
    /// all are pinged at once), and after an answer again after twice as long; after two unanswered
    /// pings it is closed.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub interval: Duration,
}

/// `drain.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long established tunnels may continue after a signal to stop.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub grace: Duration,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The most connections of clients.
    #[serde(deserialize_with = "units::count")]
    pub connections: usize,
    /// The share of all connections that one IPv4 address, or one IPv6 network (of 64, 56 and 48
    /// bits each), may have.
    pub network_share: f64,
    /// The share of all connections that one user may have. A user is the name that the
    /// authentication server gives, or a token.
    pub user_share: f64,
    /// The share of all connections that is kept for networks with few of them.
    pub reserve: f64,
    /// The most connections without a verified token.
    #[serde(deserialize_with = "units::count")]
    pub unauthenticated: usize,
    /// The same from one IPv4 address or one IPv6 /64 network; 4 times as many from a /56, and 16
    /// times as many from a /48.
    #[serde(deserialize_with = "units::count")]
    pub unauthenticated_per_ip: usize,
    /// The most requests on one connection before it is authenticated.
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
    /// The address to listen on for other nodes.
    pub listen: SocketAddr,
    /// `host:port` by which other nodes reach it; by default the address it listens on, or the
    /// host name if that is all addresses.
    pub advertise: Option<String>,
    /// PEM file with the CA of the cluster.
    pub ca: Option<PathBuf>,
    /// PEM file with this node's certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    pub key: Option<PathBuf>,
    /// Use no TLS between the nodes.
    pub insecure: bool,
    /// The most bytes that all bridged tunnels of this node together buffer for stalled readers. It
    /// is shared in equal parts, half for each direction: with many tunnels, each may have less data
    /// in flight. No tunnel gets less than 16 KiB in a direction.
    #[serde(deserialize_with = "units::size")]
    pub buffer: usize,
}

/// `admin.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Off: no HTTP listener for operators.
    pub enabled: bool,
    /// The address to listen on. By default [`Admin::DEFAULT`], unless another program, such as
    /// another node on the same machine, uses it already.
    pub listen: Option<SocketAddr>,
    /// The bearer token that requests must have. Without it, other machines can only read health and
    /// metrics.
    pub token: Option<Secret>,
    /// A file that contains the token.
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificate chain, for `https://`.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    pub certificate_key: Option<PathBuf>,
    /// Report readiness also while Redis is away.
    pub ready_without_redis: bool,
}

/// `monitor.*`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// The file of the monitor socket; without it, there is none.
    pub socket: Option<PathBuf>,
}

/// `log.*`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The format of lines.
    pub format: LogFormat,
    /// Also log to this file.
    pub file: Option<PathBuf>,
    /// The filter of the log, as in `info,nymea_remoteproxy=debug`; overrides `-v`.
    pub filter: Option<String>,
}

/// The format of log lines.
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
    /// Off: no metrics and no traces.
    pub enabled: bool,
    /// The URL of a collector that accepts OTLP.
    pub endpoint: Option<String>,
    /// The transport of OTLP to the collector.
    pub protocol: OtlpProtocol,
    /// Send traces to the collector.
    pub traces: bool,
    /// Send metrics to the collector.
    pub metrics: bool,
    /// The share of connections that are traced, from 0 to 1.
    pub sample: f64,
    /// Also trace connections if the client requests it (`traceparent` with the flag `sampled`).
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
    /// The address for operators if none is configured.
    pub const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);

    /// The address to listen on for operators, if there is one.
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
