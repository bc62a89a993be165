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

/// Everything about a node that operators can see and change.
pub struct Admin {
    /// Who it is.
    pub identity: Identity,
    /// What it tells of itself.
    pub telemetry: Telemetry,
    /// Its life.
    pub lifecycle: Lifecycle,
    /// Why it should get no clients; nothing: it should.
    pub unready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What it is doing.
    pub load: Arc<dyn Fn() -> Load + Send + Sync>,
    /// All nodes of its cluster.
    pub cluster: Box<dyn ClusterView>,
    /// Its log, if there is one to change.
    pub log: Option<Arc<dyn LogControl>>,
    /// Who may ask.
    pub access: Access,
}

/// Who a node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id; new for each start.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Where clients connect by WebSocket, if they can.
    pub url: String,
    /// All places where clients connect.
    pub listeners: Vec<String>,
    /// Where other nodes connect, if there may be any.
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
    /// All of them; an error says why that is not known.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, String>>;

    /// What is wrong with the address of the node with this id, if that has been seen.
    fn trouble_with(&self, _node: &str) -> Option<String> {
        None
    }
}
