//! Creates the [`Admin`] of a node: its data for operators.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::watch;

use super::{LocalAddr, Node};
use crate::accept::descriptors;
use crate::admin::{Access, Admin, ClusterView, Identity};
use crate::cluster::Misdirections;
use crate::config;
use crate::ids::NodeId;
use crate::observability::{LogControl, Telemetry};
use crate::rendezvous::redis::{Health, LoadOf, RedisRendezvous};
use crate::rendezvous::{Load, NodeInfo};
use crate::session::Shared;
use crate::transport::tls::{ServerTls, TlsError};

/// Redis may be away this long before the node is unready: waiting endpoints outlast a short absence,
/// and load balancers cope badly with a node that flaps.
const REDIS_GRACE: Duration = Duration::from_secs(5);

/// An error in the settings of the admin listener.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Certificate or key.
    #[error("admin.certificate or admin.certificate_key")]
    Tls(#[source] TlsError),
    /// The file of `admin.token_file` cannot be read.
    #[error("cannot read admin.token_file from {}", .0.display())]
    UnreadableToken(PathBuf, #[source] std::io::Error),
    /// There is no token in it.
    #[error("admin.token_file: {} is empty", .0.display())]
    NoToken(PathBuf),
}

/// The access rules of operators.
pub(super) struct Operators {
    token: Option<config::Secret>,
    tls: Option<ServerTls>,
    ready_without_redis: bool,
}

impl Operators {
    /// Loads what the settings name.
    pub(super) fn new(admin: &config::Admin) -> Result<Self, AdminError> {
        let token = match &admin.token_file {
            None => admin.token.clone(),
            Some(file) => {
                let token = std::fs::read_to_string(file)
                    .map_err(|source| AdminError::UnreadableToken(file.clone(), source))?;
                match token.lines().next().map(str::trim) {
                    None | Some("") => return Err(AdminError::NoToken(file.clone())),
                    Some(token) => Some(config::Secret::new(token)),
                }
            }
        };
        let tls = match (&admin.certificate, &admin.certificate_key) {
            (Some(certificate), Some(key)) => {
                Some(ServerTls::from_files(certificate, key).map_err(AdminError::Tls)?)
            }
            _ => None,
        };
        Ok(Self { token, tls, ready_without_redis: admin.ready_without_redis })
    }

    /// A summary of the address of the listener, and of its access.
    pub(super) fn summary(&self, address: SocketAddr) -> String {
        let by = match &self.token {
            Some(_) => "with the token",
            None if address.ip().to_canonical().is_loopback() => "for programs on this machine",
            None => "health and metrics only, as there is no admin.token",
        };
        format!("admin: on {}://{address}, {by}", self.scheme())
    }

    /// The URL of the status page, for programs on this machine.
    pub(super) fn url(&self, address: SocketAddr) -> String {
        format!("{}://{}/", self.scheme(), super::reachable(address))
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Adds the metrics that need the whole node.
    pub(super) fn observe(&self, node: &Node, log: Option<&Arc<dyn LogControl>>) {
        observe(node.telemetry(), &node.shared, log, &self.unready(node));
    }

    fn unready(&self, node: &Node) -> Unready {
        let health = node.redis.as_ref().map(|redis| redis.health());
        unready(&node.shared, health, self.ready_without_redis)
    }

    /// The data and actions of `node` for operators.
    pub(super) fn admin(
        self,
        node: &Node,
        id: &NodeId,
        name: String,
        listener: SocketAddr,
        log: Option<Arc<dyn LogControl>>,
    ) -> Admin {
        let telemetry = node.telemetry().clone();
        let identity = Identity {
            node: id.to_string(),
            name,
            url: node.url(),
            listeners: node.addresses().iter().map(LocalAddr::url).collect(),
            bridge: node.bridge_addr,
            connections_limit: node.shared.connections().1,
            started: SystemTime::now(),
            since: Instant::now(),
        };
        let sessions = Arc::downgrade(&node.shared);
        let load: LoadOf = Arc::new(move || load(&sessions));
        let unready = self.unready(node);
        let cluster: Box<dyn ClusterView> = match &node.redis {
            Some(redis) => Box::new(Together {
                redis: Arc::clone(redis),
                misdirections: Arc::clone(&node.misdirections),
            }),
            None => Box::new(Alone { identity: identity.clone(), load: Arc::clone(&load) }),
        };
        Admin {
            identity,
            telemetry,
            lifecycle: node.shared.lifecycle.clone(),
            unready: Box::new(move || unready()),
            load,
            cluster,
            log,
            access: Access::new(
                self.token.as_ref().map(config::Secret::reveal),
                listener,
                self.tls,
            ),
        }
    }
}

fn load(sessions: &Weak<Shared>) -> Load {
    sessions.upgrade().map(|sessions| sessions.load()).unwrap_or_default()
}

type Unready = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// All that speaks against sending clients here.
fn unready(
    sessions: &Arc<Shared>,
    health: Option<watch::Receiver<Health>>,
    without_redis: bool,
) -> Unready {
    let sessions = Arc::downgrade(sessions);
    Arc::new(move || {
        let mut reasons = Vec::new();
        let Some(sessions) = sessions.upgrade() else { return vec!["the node has ended".into()] };
        if sessions.lifecycle.is_draining() {
            reasons.push("draining".into());
        }
        let (connections, limit) = sessions.connections();
        if connections >= limit {
            reasons.push(format!("limits.connections is reached ({limit})"));
        }
        if descriptors::are_used_up() {
            let allowed = descriptors::allowed();
            reasons.push(format!("file descriptors are used up ({allowed} allowed)"));
        }
        match health.as_ref().map(|health| health.borrow().clone()) {
            Some(Health::Away { since, reason })
                if !without_redis && since.elapsed() > REDIS_GRACE =>
            {
                let seconds = since.elapsed().as_secs();
                reasons.push(format!("Redis is away for {seconds} s: {reason}"));
            }
            Some(Health::Away { .. } | Health::Up) | None => {}
        }
        reasons
    })
}

fn observe(
    telemetry: &Telemetry,
    sessions: &Arc<Shared>,
    log: Option<&Arc<dyn LogControl>>,
    unready: &Unready,
) {
    let metrics = &telemetry.metrics;
    let unready = Arc::clone(unready);
    metrics.observe(("remoteproxy.ready", ""), "1 if the node accepts new clients", move || {
        Some(f64::from(u8::from(unready().is_empty())))
    });
    let lifecycle = sessions.lifecycle.clone();
    metrics.observe(
        ("remoteproxy.draining", ""),
        "1 if the node is draining: new clients are refused",
        move || Some(f64::from(u8::from(lifecycle.is_draining()))),
    );
    #[expect(clippy::cast_precision_loss, reason = "a limit is far below 2^52")]
    let limit = sessions.connections().1 as f64;
    metrics.observe(
        ("remoteproxy.connections.limit", ""),
        "Most connections of clients at a time (limits.connections)",
        move || Some(limit),
    );
    if let Some(log) = log.map(Arc::clone) {
        #[expect(clippy::cast_precision_loss, reason = "2^52 lines are enough")]
        let dropped = move || log.dropped() as f64;
        metrics.observe_total(
            ("remoteproxy.log.dropped", ""),
            "Log lines lost: the queue was full, or writing failed",
            dropped,
        );
    }
}

/// A node of a cluster.
struct Together {
    redis: Arc<RedisRendezvous>,
    misdirections: Arc<Misdirections>,
}

impl ClusterView for Together {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, String>> {
        async { self.redis.nodes().await.map_err(|error| error.to_string()) }.boxed()
    }

    fn trouble_with(&self, node: &str) -> Option<String> {
        self.misdirections.of(node)
    }
}

/// A node without others.
struct Alone {
    identity: Identity,
    load: LoadOf,
}

impl ClusterView for Alone {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, String>> {
        let Identity { node, name, started, .. } = &self.identity;
        let info = NodeInfo {
            node: node.clone(),
            name: name.clone(),
            address: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: humantime::format_rfc3339_seconds(*started).to_string(),
            load: (self.load)(),
        };
        async { Ok(vec![info]) }.boxed()
    }
}
