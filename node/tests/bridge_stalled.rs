//! Tunnels with a reader that reads nothing, fed with small messages: the memory that a node really
//! uses for them is bounded, whatever the size of the messages.
//!
//! Nodes are processes in network namespaces, which needs Linux and root: there the buffers of the
//! system are small, which would hide megabytes otherwise.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/network.rs"]
mod network;
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, until};
use cluster::endpoints::{Endpoint, tunnel, tunnel_between};
use cluster::{Member, talk};
use futures_util::SinkExt;
use network::Network;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// A writer that gets nothing rid of for so long is stalled.
const STALLED: Duration = Duration::from_secs(1);
/// Messages of one byte.
const TINY: usize = 80_000;
/// So far apart that each is handed on by itself.
const APART: Duration = Duration::from_micros(40);

struct Cluster {
    nodes: [Member; 2],
    _redis: Server,
    // Below the nodes: it goes after them.
    _network: Network,
    _certificates: Certificates,
}

impl Cluster {
    /// Starts two nodes with this `bridge.buffer`.
    async fn start(buffer: &str) -> Self {
        let network = Network::new(2);
        let redis = Server::start().await;
        let bind = format!("127.0.0.1 {}", network.redis());
        redis.ask::<()>(&["CONFIG", "SET", "bind", &bind]).await;
        redis.ask::<()>(&["CONFIG", "SET", "protected-mode", "no"]).await;
        let certificates = Certificates::new();
        let url = [("URL", format!("redis://{}:{}", network.redis(), redis.port))];
        let nodes = [0, 1].map(|node| {
            shrink_buffers(&network, node);
            let mut command = network.command(node);
            command.env("REMOTEPROXY__BRIDGE__BUFFER", buffer);
            Member::start(command, network.node(node), &certificates, &url)
        });
        for node in &nodes {
            until("the node is ready", async || node.is_ready().await).await;
        }
        Self { nodes, _redis: redis, _network: network, _certificates: certificates }
    }

    fn resident(&self) -> [u64; 2] {
        [0, 1].map(|node| self.nodes[node].process.resident())
    }

    /// How much more memory each node has than before, in KiB.
    fn grown(&self, before: [u64; 2]) -> [u64; 2] {
        let now = self.resident();
        [0, 1].map(|node| now[node].saturating_sub(before[node]))
    }
}

/// What waits for a slow reader has to wait in the node.
fn shrink_buffers(network: &Network, node: u8) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &network.space(node), "sysctl", "-qw"]);
    let done = command.arg("net.ipv4.tcp_wmem=4096 16384 65536").status();
    assert!(done.expect("sysctl").success());
}

/// Feeds messages of one byte into a tunnel until its reader, which reads nothing, stalls it.
async fn feed(writer: &mut Endpoint) -> usize {
    for sent in 0..TINY {
        let message = Message::binary(vec![u8::try_from(sent % 256).expect("a byte")]);
        let next = Instant::now() + APART;
        match timeout(STALLED, writer.ws.send(message)).await {
            Ok(done) => done.expect("open"),
            Err(_) => return sent,
        }
        while Instant::now() < next {
            std::hint::spin_loop();
        }
    }
    TINY
}

/// Takes all that was sent, which must be there in order.
async fn take(reader: &mut Endpoint, sent: usize) {
    for number in 0..sent {
        let expected = [u8::try_from(number % 256).expect("a byte")];
        assert_eq!(reader.message().await, Message::binary(expected.to_vec()), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_messages_cost_two_nodes_no_more_than_a_window() {
    const LIMIT: u64 = 2 * 1024;
    let cluster = Cluster::start("512MiB").await;
    let [a, b] = &cluster.nodes;
    let (mut writer, mut reader) = tunnel_between(a, b, "stalled").await;
    talk(&mut writer, &mut reader).await;
    let before = cluster.resident();
    let sent = feed(&mut writer).await;
    let grown = cluster.grown(before);
    assert!(grown.iter().all(|&kib| kib < LIMIT), "{grown:?} KiB more for {sent} messages");
    take(&mut reader, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_messages_cost_one_node_no_more_than_its_buffers() {
    const LIMIT: u64 = 2 * 1024;
    let cluster = Cluster::start("512MiB").await;
    let (mut writer, mut reader) = tunnel(&cluster.nodes[0], "stalled").await;
    talk(&mut writer, &mut reader).await;
    let before = cluster.resident();
    let sent = feed(&mut writer).await;
    let [grown, _] = cluster.grown(before);
    assert!(grown < LIMIT, "{grown} KiB more for {sent} messages");
    take(&mut reader, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_stalled_tunnels_share_one_budget() {
    const TUNNELS: usize = 100;
    const MESSAGE: usize = 1024;
    // The budget, and what an endpoint keeps of each tunnel without any bridge: a full stage, and
    // what was read before it was full.
    const LIMIT: u64 = (16 << 10) + 2 * 64 * TUNNELS as u64;
    let cluster = Cluster::start("16MiB").await;
    let [a, b] = &cluster.nodes;
    let mut tunnels = Vec::new();
    for number in 0..TUNNELS {
        tunnels.push(tunnel_between(a, b, &format!("stalled {number}")).await);
    }
    let before = cluster.resident();
    let mut feeding = JoinSet::new();
    for (mut writer, reader) in tunnels {
        feeding.spawn(async move {
            let mut sent = 0;
            while timeout(STALLED, writer.ws.send(Message::binary(vec![7; MESSAGE]))).await.is_ok()
            {
                sent += 1;
            }
            (writer, reader, sent)
        });
    }
    let stalled = feeding.join_all().await;
    let grown = cluster.grown(before);
    let sent: usize = stalled.iter().map(|(_, _, sent)| sent).sum();
    assert!(grown.iter().all(|&kib| kib < LIMIT), "{grown:?} KiB more for {sent} messages");
    // None is lost for that.
    for (_writer, mut reader, sent) in stalled.into_iter().take(4) {
        for _ in 0..sent {
            assert_eq!(reader.message().await.len(), MESSAGE);
        }
    }
}
