//! HTTP for operators and load balancers: liveness (`/healthz`), readiness (`/readyz`), `/metrics`, an
//! API (`/api/v1`, described by `/api/v1/openapi.json`), and a status page (`/`).
//!
//! `access` decides which request is allowed, `api` and `gateways` answer, `model` has the types of
//! the answers, and `history` keeps the last minutes for the page. The parts of a node are not known
//! here; [`Admin`] provides their data.

mod access;
mod api;
mod gateways;
mod history;
mod model;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::future::BoxFuture;

pub use self::access::Access;
pub use self::server::serve;
use crate::lifecycle::Lifecycle;
use crate::observability::{LogControl, Telemetry};
use crate::rendezvous::{Load, NodeInfo};

/// The data and actions of a node for operators.
pub struct Admin {
    /// The identity of the node.
    pub identity: Identity,
    /// The telemetry of the node.
    pub telemetry: Telemetry,
    /// The lifecycle of the node.
    pub lifecycle: Lifecycle,
    /// Why it should get no clients; nothing: it should.
    pub unready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The load of the node.
    pub load: Arc<dyn Fn() -> Load + Send + Sync>,
    /// All nodes of its cluster.
    pub cluster: Box<dyn ClusterView>,
    /// The control of the log, if it can be changed.
    pub log: Option<Arc<dyn LogControl>>,
    /// The access rules.
    pub access: Access,
}

/// The identity of a node.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The id of the node; new for each start.
    pub node: String,
    /// The name of the node.
    pub name: String,
    /// The URL for clients by WebSocket, if there is such a listener.
    pub url: String,
    /// All places where clients connect.
    pub listeners: Vec<String>,
    /// The bridge address, if there is a cluster.
    pub bridge: Option<SocketAddr>,
    /// Connections that it takes.
    pub connections_limit: usize,
    /// When it started.
    pub started: SystemTime,
    /// The same, for the time since.
    pub since: Instant,
}

/// Knows the nodes of a cluster.
pub trait ClusterView: Send + Sync {
    /// All nodes; the error is the reason why they are not known.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, String>>;

    /// The fault in the address of the node with this id, if one is known.
    fn trouble_with(&self, _node: &str) -> Option<String> {
        None
    }
}
