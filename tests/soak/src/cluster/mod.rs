//! The cluster under test: nodes, Redis, the links between them, and the authentication server.

mod authentication;
mod certificates;
mod links;
mod member;
pub(crate) mod process;
mod redis;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rand::RngExt;
use tokio_util::task::TaskTracker;

use self::certificates::Certificates;
pub(crate) use self::links::{Always, Destination, Dialer, Links};
pub(crate) use self::member::Member;
use self::member::Ports;
use self::redis::Redis;
use crate::options::Options;
use crate::world::World;

/// All processes of the run.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Member>,
    pub(crate) redis: Redis,
    /// The ways between nodes.
    pub(crate) bridges: Arc<Links>,
    /// The ways between nodes and Redis.
    pub(crate) redis_links: Arc<Links>,
    pub(crate) ca: PathBuf,
    /// Which registrations need a token.
    pub(crate) tokens: RegistrationTokens,
    dialers: Arc<Mutex<Weak<World>>>,
}

/// What `tunnel_proxy.token` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegistrationTokens {
    None,
    Gateways,
    Apps,
    Both,
}

impl RegistrationTokens {
    const ALL: [Self; 4] = [Self::None, Self::Gateways, Self::Apps, Self::Both];

    fn setting(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gateways => "gateways",
            Self::Apps => "apps",
            Self::Both => "both",
        }
    }

    pub(crate) fn of_gateways(self) -> bool {
        matches!(self, Self::Gateways | Self::Both)
    }

    pub(crate) fn of_apps(self) -> bool {
        matches!(self, Self::Apps | Self::Both)
    }
}

impl Cluster {
    /// Redis, the links and the settings of the nodes, which are not yet started.
    pub(crate) async fn new(
        options: &Options,
        directory: &Path,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let count = usize::from(options.nodes);
        let certificates = Certificates::new(directory)?;
        let mut ports_taken = BTreeSet::new();
        let redis = Redis::new(free_port(&mut ports_taken)?, directory).await?;
        let authentication = authentication::start(tasks).await?;
        let bridges = Links::new(tasks);
        let redis_links = Links::new(tasks);
        let seed = usize::try_from(options.seed() % 4).unwrap_or_default();
        let tokens = RegistrationTokens::ALL[seed];
        let dialers: Arc<Mutex<Weak<World>>> = Arc::default();
        let mut nodes = Vec::new();
        for index in 0..count {
            let ports = ports(&mut ports_taken)?;
            let bridge = Destination { place: index, address: loopback(ports.bridge) };
            bridges.listen(ports.advertised, index, bridge, Nodes(Arc::clone(&dialers)));
            let to_redis = Destination { place: count, address: redis.address() };
            redis_links.listen(ports.redis, index, to_redis, Always(index));
            let settings = vec![
                ("AUTHENTICATION__SERVER", format!("http://{authentication}/")),
                ("TLS__CERTIFICATE", certificates.certificate.display().to_string()),
                ("TLS__CERTIFICATE_KEY", certificates.key.display().to_string()),
                ("BRIDGE__CA", certificates.ca.display().to_string()),
                ("BRIDGE__CERTIFICATE", certificates.certificate.display().to_string()),
                ("BRIDGE__KEY", certificates.key.display().to_string()),
                ("TUNNEL_PROXY__ENABLED", "true".into()),
                ("TUNNEL_PROXY__TOKEN", tokens.setting().into()),
                ("LOG__FILTER", options.filter.clone()),
            ];
            nodes.push(Member::new(index, ports, directory, settings));
        }
        let ca = certificates.ca;
        Ok(Self { nodes, redis, bridges, redis_links, ca, tokens, dialers })
    }

    /// Starts all nodes.
    pub(crate) async fn start(&self, world: &Arc<World>) -> anyhow::Result<()> {
        *self.dialers.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(world);
        for node in &self.nodes {
            node.start(world).await?;
        }
        Ok(())
    }

    /// The place of Redis among the links.
    pub(crate) fn redis_place(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes to which endpoints are sent now.
    pub(crate) fn reachable(&self) -> Vec<usize> {
        self.nodes.iter().filter(|node| node.is_reachable()).map(|node| node.index).collect()
    }
}

/// Finds out which node dials.
struct Nodes(Arc<Mutex<Weak<World>>>);

impl Dialer for Nodes {
    fn place(&self, peer: SocketAddr) -> Option<usize> {
        let world = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        let has = |node: &&Member| node.pid().is_some_and(|pid| process::has_connection(pid, peer));
        world.cluster.nodes.iter().find(has).map(|node| node.index)
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn ports(taken: &mut BTreeSet<u16>) -> anyhow::Result<Ports> {
    Ok(Ports {
        websocket: free_port(taken)?,
        secure_websocket: free_port(taken)?,
        tcp: free_port(taken)?,
        tls: free_port(taken)?,
        bridge: free_port(taken)?,
        advertised: free_port(taken)?,
        redis: free_port(taken)?,
        admin: free_port(taken)?,
    })
}

/// A free port below those that the system gives to outgoing connections, and none that was taken
/// before: what is to listen there may not have started yet.
fn free_port(taken: &mut BTreeSet<u16>) -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(10_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && taken.insert(port) {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port")
}
