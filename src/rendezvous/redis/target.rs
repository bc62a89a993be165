//! Which Redis: settings become the address of a server, of sentinels or of a cluster, and those
//! become connections.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, TlsCertificates, Value,
};
use thiserror::Error;
use tokio::time::timeout;

use super::sentinels::Sentinels;
use crate::config;

/// An error in the settings for Redis. Never shows an address, as that may hold a password.
#[derive(Debug, Error)]
pub enum SetupError {
    /// No server, sentinel or cluster is given.
    #[error("no Redis server is configured")]
    Missing,
    /// A file cannot be read.
    #[error("{setting}: the file {} cannot be read", .file.display())]
    Unreadable {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// An address is none.
    #[error("{setting}: not the address of a Redis server ({reason})")]
    Address {
        /// The setting that contains it.
        setting: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// Addresses or certificates that do not go together.
    #[error("{setting}: {}", .source.category())]
    Refused {
        /// The setting that contains it.
        setting: &'static str,
        /// The error of the client.
        #[source]
        source: RedisError,
    },
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("no answer in time")]
    Timeout,
    #[error("the server is a replica")]
    Replica,
    #[error("the server is loading its data")]
    Loading,
    #[error("no sentinel knows where the master is")]
    NoMaster,
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl ConnectError {
    /// The error of Redis or its client.
    pub(super) fn redis(&self) -> Option<&RedisError> {
        match self {
            Self::Redis(error) => Some(error),
            Self::Timeout | Self::Replica | Self::Loading | Self::NoMaster => None,
        }
    }
}

/// The servers to connect to.
pub(super) enum Target {
    Server(Client),
    Sentinels { sentinels: Sentinels, ca: Ca },
    Cluster(ClusterClient),
}

/// Certificates to trust instead of the system's.
#[derive(Clone)]
pub(super) struct Ca(Option<Vec<u8>>);

/// A connection for many commands at once. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Server {
        connection: MultiplexedConnection,
        /// The address as the settings or the sentinels give it.
        address: Arc<str>,
    },
    Cluster(ClusterConnection),
}

impl Target {
    pub(super) fn new(settings: &config::Redis) -> Result<Self, SetupError> {
        let ca = Ca(settings.ca.as_deref().map(|file| read("redis.ca", file)).transpose()?);
        let url = match (&settings.url, &settings.url_file) {
            (Some(url), _) => Some(("redis.url", url.reveal().to_owned())),
            (None, Some(file)) => {
                let text = read("redis.url_file", file)?;
                Some(("redis.url_file", String::from_utf8_lossy(&text).trim().to_owned()))
            }
            (None, None) => None,
        };
        if let Some(master_name) = &settings.sentinel_master {
            return Self::sentinels(settings, master_name, url, ca);
        }
        if !settings.cluster.is_empty() {
            return Self::cluster(settings, &ca);
        }
        let (setting, url) = url.ok_or(SetupError::Missing)?;
        let client = ca.client(address(setting, &url)?);
        Ok(Self::Server(client.map_err(|source| SetupError::Refused { setting, source })?))
    }

    fn sentinels(
        settings: &config::Redis,
        master_name: &str,
        master: Option<(&'static str, String)>,
        ca: Ca,
    ) -> Result<Self, SetupError> {
        let setting = "redis.sentinels";
        let mut sentinels = Vec::new();
        for url in &settings.sentinels {
            let client = ca.client(address(setting, url.reveal())?);
            sentinels.push(client.map_err(|source| SetupError::Refused { setting, source })?);
        }
        let master = match master {
            Some((setting, url)) => address(setting, &url)?,
            None => address(setting, "redis://master")?,
        };
        Ok(Self::Sentinels { sentinels: Sentinels::new(sentinels, master_name, master), ca })
    }

    fn cluster(settings: &config::Redis, ca: &Ca) -> Result<Self, SetupError> {
        let setting = "redis.cluster";
        let refused = |source| SetupError::Refused { setting, source };
        let mut seeds = Vec::new();
        for url in &settings.cluster {
            seeds.push(address(setting, url.reveal())?);
        }
        // The outer deadline expires first, so that retries cannot hide a slow node.
        let mut builder = ClusterClient::builder(seeds)
            .tcp_settings(tcp_settings())
            .connection_timeout(settings.timeout)
            .response_timeout(settings.timeout)
            .overall_response_timeout(Some(settings.timeout))
            .retries(3);
        if let Some(pem) = &ca.0 {
            builder =
                builder.certs(TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) });
        }
        Ok(Self::Cluster(builder.build().map_err(refused)?))
    }

    /// A connection, on which nothing but the greeting has been said. Each step takes at most
    /// `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Connection, ConnectError> {
        Ok(match self {
            Self::Server(client) => Connection::open(client, patience).await?,
            Self::Sentinels { sentinels, ca } => {
                let place = sentinels.place(patience).await?;
                Connection::open(&ca.client(sentinels.master(place))?, patience).await?
            }
            Self::Cluster(client) => {
                let connection = timeout(patience, client.get_async_connection()).await;
                Connection::Cluster(connection.map_err(|_| ConnectError::Timeout)??)
            }
        })
    }

    /// Whether the sentinels name another master than the one of this connection. False if they do
    /// not answer.
    pub(super) async fn names_another(&self, connection: &Connection, patience: Duration) -> bool {
        match (self, connection) {
            (Self::Sentinels { sentinels, .. }, Connection::Server { address, .. }) => {
                let place = sentinels.place(patience).await;
                place.is_ok_and(|place| sentinels.master(place).addr().to_string() != **address)
            }
            (Self::Sentinels { .. } | Self::Server(_) | Self::Cluster(_), _) => false,
        }
    }
}

impl Ca {
    fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match (&self.0, info.addr()) {
            (Some(pem), ConnectionAddr::TcpTls { .. }) => Client::build_with_tls(
                info,
                TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) },
            ),
            _ => Client::open(info),
        }
    }
}

impl Connection {
    async fn open(client: &Client, patience: Duration) -> Result<Self, ConnectError> {
        let address = client.get_connection_info().addr().to_string().into();
        Ok(Self::Server { connection: open(client, patience).await?, address })
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server { connection, .. } => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server { connection, .. } => {
                connection.req_packed_commands(pipeline, offset, count)
            }
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server { connection, .. } => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

pub(super) async fn open(
    client: &Client,
    patience: Duration,
) -> Result<MultiplexedConnection, ConnectError> {
    // Each command has a deadline of its own outside.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(patience))
        .set_response_timeout(None);
    let opened = client.get_multiplexed_async_connection_with_config(&config);
    Ok(timeout(patience, opened).await.map_err(|_| ConnectError::Timeout)??)
}

fn address(setting: &'static str, url: &str) -> Result<ConnectionInfo, SetupError> {
    let wrong = |reason| SetupError::Address { setting, reason };
    let url = redis::parse_redis_url(url)
        .ok_or_else(|| wrong("expected redis://, rediss:// or unix:"))?;
    if url.fragment().is_some() {
        return Err(wrong("nothing may follow a #"));
    }
    // The client's own words may quote the address.
    let info = url.into_connection_info().map_err(|_| wrong("host or database is wrong"))?;
    Ok(info.set_tcp_settings(tcp_settings()))
}

/// A server that is gone without a word is noticed even if nothing is being asked.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, SetupError> {
    fs::read(file).map_err(|source| SetupError::Unreadable { setting, file: file.into(), source })
}
