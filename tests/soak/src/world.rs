//! What all parts of a run share.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;
use crate::content::{Streams, mixed};
use crate::faults::History;
use crate::journal::Journal;
use crate::load::Load;
use crate::options::Options;
use crate::statistics::Statistics;
use crate::wire::{Place, Way, trust};

/// How long after the end of a fault its effect on tunnels may show, in seconds.
const LAG: u64 = 15;

/// A run.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) start: Instant,
    pub(crate) journal: Journal,
    pub(crate) history: History,
    pub(crate) statistics: Statistics,
    pub(crate) cluster: Cluster,
    pub(crate) streams: Streams,
    pub(crate) load: Load,
    pub(crate) tls: TlsConnector,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when all clients must leave.
    pub(crate) leaving: CancellationToken,
    seeds: AtomicU64,
}

impl World {
    pub(crate) async fn new(options: Options, directory: &Path) -> anyhow::Result<Arc<Self>> {
        let tasks = TaskTracker::new();
        let cluster = Cluster::new(&options, directory, &tasks).await?;
        Ok(Arc::new(Self {
            start: Instant::now(),
            journal: Journal::new(directory)?,
            history: History::default(),
            statistics: Statistics::default(),
            tls: trust(&cluster.ca)?,
            load: Load::new(&options),
            cluster,
            streams: Streams::default(),
            tasks,
            leaving: CancellationToken::new(),
            seeds: AtomicU64::new(mixed(options.seed())),
            options,
        }))
    }

    /// Random numbers for a task.
    pub(crate) fn random(&self) -> StdRng {
        StdRng::seed_from_u64(mixed(self.seeds.fetch_add(1, Ordering::Relaxed)))
    }

    /// A node to which an endpoint is sent now.
    pub(crate) fn some_node(&self, random: &mut StdRng) -> Option<usize> {
        let nodes = self.cluster.reachable();
        (!nodes.is_empty()).then(|| nodes[random.random_range(0..nodes.len())])
    }

    /// Where a node listens.
    pub(crate) fn place(&self, node: usize, way: Way) -> Place {
        let node = &self.cluster.nodes[node];
        let port = match way {
            Way::Unix => return Place::Unix(node.socket.clone()),
            Way::WebSocket => node.ports.websocket,
            Way::SecureWebSocket => node.ports.secure_websocket,
            Way::Tcp => node.ports.tcp,
            Way::Tls => node.ports.tls,
        };
        Place::Ip((std::net::Ipv4Addr::LOCALHOST, port).into())
    }

    /// The same as a URL for the client library.
    pub(crate) fn url(&self, node: usize, way: Way) -> Option<String> {
        match self.place(node, way) {
            Place::Ip(address) => Some(format!("{}://{address}", way.scheme()?)),
            Place::Unix(_) => None,
        }
    }

    /// Whether a fault may have ended a tunnel between these nodes just now.
    pub(crate) fn is_excused(&self, one: usize, other: usize) -> bool {
        let lag = self.options.within(LAG);
        self.history.may_end(one, other, Instant::now(), lag)
    }

    /// Whether nothing of this kind was wrong for so long.
    pub(crate) fn is_quiet(
        &self,
        time: Duration,
        counts: impl Fn(&crate::faults::Injected) -> bool,
    ) -> bool {
        let Some(since) = Instant::now().checked_sub(time) else { return false };
        self.history.quiet_since(since, counts)
    }
}
