//! Links that are cut: packets vanish without an error. Nodes are processes in network
//! namespaces, which needs Linux and root.
//!
//! As in `faults.rs`, each test looks at established tunnels, at waiting endpoints and at new
//! ones, and at the time by which all of it is in order again.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/network.rs"]
mod network;
mod support;

use std::time::Duration;

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, until};
use cluster::endpoints::{Endpoint, tunnel, tunnel_between};
use cluster::{Member, pair, refused, talk, waits, within};
use network::Network;

/// How long a bridge without a sign of life is kept: an interval of 2 s, the time of a lease, and
/// some time for slow machines.
const SILENCE: Duration = Duration::from_secs(2 + 10 + 2);
/// How long it takes to be back after a link is: two steps of 3 s that cannot be taken back, and
/// the pause after them.
const RECOVERED: Duration = Duration::from_secs(10);
/// What is not concerned.
const AT_ONCE: Duration = Duration::from_secs(3);

struct Cluster {
    nodes: [Member; 3],
    redis: Server,
    // Below the nodes: it goes after them.
    network: Network,
    _certificates: Certificates,
}

impl Cluster {
    async fn start() -> Self {
        let network = Network::new(3);
        let redis = Server::start().await;
        let bind = format!("127.0.0.1 {}", network.redis());
        redis.ask::<()>(&["CONFIG", "SET", "bind", &bind]).await;
        redis.ask::<()>(&["CONFIG", "SET", "protected-mode", "no"]).await;
        let certificates = Certificates::new();
        let url = format!("redis://{}:{}", network.redis(), redis.port);
        let nodes = [0, 1, 2].map(|node| {
            let redis = [("URL", url.clone())];
            Member::start(network.command(node), network.node(node), &certificates, &redis)
        });
        for node in &nodes {
            until("the node is ready", async || node.is_ready().await).await;
        }
        Self { nodes, redis, network, _certificates: certificates }
    }
}

#[tokio::test]
async fn two_nodes_lose_each_other() {
    let cluster = Cluster::start().await;
    let ([a, b, c], network) = (&cluster.nodes, &cluster.network);
    let (mut first, mut second) = tunnel_between(a, b, "standing").await;
    let (mut third, mut fourth) = tunnel_between(b, a, "the other way").await;
    let (mut one, mut other) = tunnel_between(a, c, "of others").await;
    let mut before = Endpoint::waiting(a, "before").await;

    network.cut(0, 1);
    let mut before_too = Endpoint::waiting(b, "before").await;
    let mut meanwhile = Endpoint::waiting(b, "meanwhile").await;
    let mut meanwhile_too = Endpoint::waiting(a, "meanwhile").await;
    within(SILENCE, "the ends of what stood", async {
        tokio::join!(
            first.closed_with(1001),
            second.closed_with(1001),
            third.closed_with(1001),
            fourth.closed_with(1001),
        )
    })
    .await;
    within(AT_ONCE, "a way round", async {
        tokio::join!(pair(a, c, "standing"), pair(c, b, "the other way"))
    })
    .await;
    talk(&mut one, &mut other).await;
    for endpoint in [&mut before, &mut before_too, &mut meanwhile, &mut meanwhile_too] {
        waits(endpoint).await;
    }

    network.mend(0, 1);
    within(RECOVERED, "those that waited", async {
        before.established().await;
        before_too.established().await;
        meanwhile.established().await;
        meanwhile_too.established().await;
    })
    .await;
    talk(&mut before, &mut before_too).await;
    talk(&mut meanwhile, &mut meanwhile_too).await;
    talk(&mut one, &mut other).await;
    within(AT_ONCE, "new tunnels", async {
        tokio::join!(pair(a, b, "new"), pair(b, a, "new too"))
    })
    .await;
}

#[tokio::test]
async fn a_node_loses_redis() {
    let cluster = Cluster::start().await;
    let ([a, b, c], network) = (&cluster.nodes, &cluster.network);
    let (mut first, mut second) = tunnel_between(a, b, "standing").await;
    let (mut third, mut fourth) = tunnel_between(b, a, "the other way").await;
    let (mut left, mut right) = tunnel(a, "local").await;
    let mut before = Endpoint::waiting(a, "before").await;

    network.cut_from_redis(0);
    within(2 * SILENCE, "its lease", async {
        until("unready", async || !a.is_ready().await).await;
        until("only two leases", async || cluster.redis.nodes().await == 2).await;
    })
    .await;
    within(AT_ONCE, "a tunnel of this node", pair(a, a, "together")).await;
    let mut meanwhile = Endpoint::waiting(a, "meanwhile").await;
    within(AT_ONCE, "tunnels of others", pair(b, c, "new")).await;
    talk(&mut first, &mut second).await;
    talk(&mut third, &mut fourth).await;
    talk(&mut left, &mut right).await;
    waits(&mut before).await;
    waits(&mut meanwhile).await;

    network.mend_to_redis(0);
    within(RECOVERED, "it is back", until("ready", async || a.is_ready().await)).await;
    within(RECOVERED, "those that waited", async {
        for (endpoint, token) in [(&mut before, "before"), (&mut meanwhile, "meanwhile")] {
            let mut partner = Endpoint::waiting(b, token).await;
            endpoint.established().await;
            partner.established().await;
            talk(endpoint, &mut partner).await;
        }
    })
    .await;
    for node in [a, b, c] {
        for token in ["standing", "the other way", "local"] {
            refused(node, token).await;
        }
    }
    talk(&mut first, &mut second).await;
    talk(&mut third, &mut fourth).await;
    talk(&mut left, &mut right).await;
    within(AT_ONCE, "new tunnels", async { tokio::join!(pair(a, b, "x"), pair(c, a, "y")) }).await;
}
