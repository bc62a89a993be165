//! Clusters of real processes: nodes that can be killed and frozen, the Redis they share, and the
//! certificates of their bridges.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

#[path = "../../../tests/support/mod.rs"]
pub mod endpoints;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Running, command};
use endpoints::cluster::Certificates;
use endpoints::redis::{Server, free_port, until};
use endpoints::{Endpoint, Listening};

/// A node as a process.
pub struct Member {
    pub process: Running,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Listening for Member {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Member {
    /// A node on an address of this machine; `redis` are its settings of that name.
    pub fn start(
        mut command: Command,
        host: IpAddr,
        certificates: &Certificates,
        redis: &[(&str, String)],
    ) -> Self {
        let name = host.to_string();
        let (certificate, key) = certificates.issue(&name);
        let admin = SocketAddr::new(host, free_port());
        for (setting, value) in redis {
            command.env(format!("REMOTEPROXY__REDIS__{setting}"), value);
        }
        // A file with settings says itself where the node listens.
        if !command.get_args().any(|argument| argument == "--config") {
            command.args(["-p", "0", "-s", &name]);
        }
        command
            .args(["--insecure-accept-any", "--insecure-self-signed"])
            .env("REMOTEPROXY__ADMIN__LISTEN", admin.to_string())
            .env("REMOTEPROXY__BRIDGE__LISTEN", SocketAddr::new(host, 0).to_string())
            .env("REMOTEPROXY__BRIDGE__CA", certificates.ca())
            .env("REMOTEPROXY__BRIDGE__CERTIFICATE", certificate)
            .env("REMOTEPROXY__BRIDGE__KEY", key);
        let process = Running::of(&mut command);
        let url = process.url();
        let address = url.trim_start_matches("wss://").parse().expect("an address");
        Self { process, address, admin }
    }

    /// What `/readyz` says.
    pub async fn is_ready(&self) -> bool {
        let mut answer = String::new();
        let asking = async {
            let mut tcp = TcpStream::connect(self.admin).await?;
            tcp.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
            tcp.read_to_string(&mut answer).await
        };
        timeout(Duration::from_secs(5), asking).await.expect("in time").expect("an answer");
        let status = answer.split_whitespace().nth(1).expect("a status");
        assert!(matches!(status, "200" | "503"), "{answer}");
        status == "200"
    }

    /// Where it answers operators.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    pub fn kill(&mut self) {
        self.process.child.kill().expect("killed");
        self.process.child.wait().expect("ended");
    }
}

/// Nodes on loopback, and a Redis of their own.
pub struct Cluster<const N: usize> {
    pub nodes: [Member; N],
    pub redis: Server,
    certificates: Certificates,
}

impl<const N: usize> Cluster<N> {
    pub async fn start() -> Self {
        let redis = Server::start().await;
        let certificates = Certificates::new();
        let nodes = members(&certificates, &[("URL", redis.url())]);
        for node in &nodes {
            until("the node is ready", async || node.is_ready().await).await;
        }
        Self { nodes, redis, certificates }
    }
}

/// Nodes on loopback.
pub fn members<const N: usize>(
    certificates: &Certificates,
    redis: &[(&str, String)],
) -> [Member; N] {
    std::array::from_fn(|index| {
        let mut command = command(&[]);
        command.env("REMOTEPROXY__NODE__NAME", format!("node{}", index + 1));
        Member::start(command, Ipv4Addr::LOCALHOST.into(), certificates, redis)
    })
}

/// Both ends still have each other.
pub async fn talk(one: &mut Endpoint, other: &mut Endpoint) {
    for text in ["ping", "pong"] {
        one.send(Message::text(text)).await;
        assert_eq!(other.text().await, text);
        other.send(Message::text(text)).await;
        assert_eq!(one.text().await, text);
    }
}

/// Nothing has been said to this endpoint, and nothing is for a moment.
pub async fn waits(endpoint: &mut Endpoint) {
    let message = timeout(Duration::from_millis(300), endpoint.next()).await;
    assert!(message.is_err(), "{message:?}");
}

/// Two endpoints that come again when they are refused, until they have each other.
pub async fn pair(
    one: &impl Listening,
    other: &impl Listening,
    token: &str,
) -> (Endpoint, Endpoint) {
    let (mut one, mut other) = tokio::join!(insisting(one, token), insisting(other, token));
    talk(&mut one, &mut other).await;
    (one, other)
}

async fn insisting(node: &impl Listening, token: &str) -> Endpoint {
    loop {
        let mut endpoint = Endpoint::waiting(node, token).await;
        match endpoint.message().await {
            Message::Text(_) => return endpoint,
            Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1008),
            other => panic!("{other:?}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Two endpoints have this token, and a third one gets nowhere.
pub async fn refused(node: &impl Listening, token: &str) {
    Endpoint::waiting(node, token).await.closed_with(1008).await;
}

/// Something must be done by then.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let since = Instant::now();
    let done = timeout(limit, future).await;
    let done = done.unwrap_or_else(|_| panic!("waited {limit:?} for {what}"));
    #[expect(clippy::print_stderr, reason = "tests show it when they fail, or are asked to")]
    {
        eprintln!("{what}: after {:?}", since.elapsed());
    }
    done
}
