//! Connections that prove nothing, on each listener of a node: they hold nothing that others need,
//! however many there are and however slowly they send or read.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nymea_remoteproxy::node::Node;
use support::cluster::Cluster;
use support::redis::until;
use support::{Endpoint, node, node_with, soon, tunnel_between};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What a stranger does with its connections, again and again.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    /// Sends nothing.
    Silent,
    /// Sends a byte of a request per second.
    Slow(&'static [u8]),
    /// Sends requests, and reads no answer.
    Deaf(&'static [u8]),
}

impl Stranger {
    async fn bothers(self, address: SocketAddr) {
        loop {
            let Ok(mut tcp) = TcpStream::connect(address).await else { continue };
            match self {
                Self::Silent => drop(tcp.read(&mut [0]).await),
                Self::Slow(bytes) => {
                    for byte in bytes {
                        if tcp.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        sleep(Duration::from_secs(1)).await;
                    }
                }
                Self::Deaf(request) => {
                    // More than a node takes before it has got rid of the answers.
                    let _closed = tcp.write_all(&request.repeat(2000)).await;
                    sleep(Duration::from_secs(5)).await;
                }
            }
            sleep(AGAIN).await;
        }
    }
}

/// Until a stranger that was closed is there again.
const AGAIN: Duration = Duration::from_millis(500);

/// So many of them, until they are dropped. They have begun.
async fn strangers(count: usize, stranger: Stranger, address: SocketAddr) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(stranger.bothers(address));
    }
    sleep(Duration::from_millis(500)).await;
    tasks
}

/// The first bytes of a TLS handshake.
const TLS: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_bridge_do_not_keep_nodes_apart() {
    for stranger in [Stranger::Silent, Stranger::Slow(TLS)] {
        let cluster = Cluster::start(2).await;
        let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
        let mut strangers_ = Vec::new();
        for node in [one, other] {
            let address = node.bridge_addr().expect("a bridge");
            strangers_.push(strangers(400, stranger, address).await);
        }
        let since = Instant::now();
        let (mut first, mut second) = tunnel_between(one, other, "t").await;
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
        first.send("over".into()).await;
        assert_eq!(second.text().await, "over");
        drop(strangers_);
        drop((first, second));
        let _tunnel = tunnel_between(other, one, "t2").await;
    }
}

/// The status of an answer of the admin listener.
async fn get(node: &Node, path: &str) -> Option<String> {
    let asked = async {
        let mut tcp = TcpStream::connect(node.admin_addr().expect("an address")).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1).map(Into::into)
    };
    timeout(Duration::from_secs(2), asked).await.ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_whatever_goes_on_at_the_admin_port() {
    const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const NODE: &[u8] = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (count, stranger) in [
        (700, Stranger::Silent),
        (700, Stranger::Slow(METRICS)),
        (100, Stranger::Deaf(METRICS)),
        (100, Stranger::Deaf(NODE)),
    ] {
        let node = node();
        let address = node.admin_addr().expect("an address");
        let _strangers = strangers(count, stranger, address).await;
        for path in ["/healthz", "/readyz", "/metrics"] {
            let status = get(&node, path).await;
            assert_eq!(status.as_deref(), Some("200"), "{path} beside {count} {stranger:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_hold_no_place_of_a_client() {
    let node = node_with(|config| {
        config.limits.connections = 20;
        config.limits.unauthenticated = 10;
        config.limits.unauthenticated_per_ip = 5;
    });
    let _strangers = strangers(100, Stranger::Silent, support::Listening::address(&node)).await;
    let (mut first, mut second) = tunnel_between(&node, &node, "t").await;
    first.send("through".into()).await;
    assert_eq!(second.text().await, "through");
}

#[tokio::test]
async fn a_silent_connection_is_closed_in_time() {
    let node = node_with(|config| config.timeouts.handshake = Duration::from_millis(300));
    let mut tcp = TcpStream::connect(support::Listening::address(&node)).await.expect("TCP");
    assert_eq!(soon("the end", tcp.read(&mut [0])).await.expect("an end"), 0);
    let counted = "remoteproxy_handshakes_failed_total{reason=\"silent\"} 1\n";
    until("it to be counted", async || node.telemetry().metrics.text().contains(counted)).await;
    // The end of a node does not wait for others.
    let node = node_with(|config| config.timeouts.handshake = Duration::from_mins(1));
    let mut tcp = TcpStream::connect(support::Listening::address(&node)).await.expect("TCP");
    let _endpoint = Endpoint::connect(&node).await;
    let since = Instant::now();
    node.drain().await;
    assert!(since.elapsed() < Duration::from_secs(10));
    assert_eq!(soon("the end", tcp.read(&mut [0])).await.unwrap_or(0), 0);
}
