//! Clients that leave in the middle of their set-up, and nodes that freeze for less than the time of
//! a lease: neither ends the tunnels of others that share the connections of the two nodes.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, free_port, until};
use cluster::endpoints::{DEADLINE, Endpoint, soon, tunnel_between};
use cluster::{Member, talk, within};
use futures_util::stream::{self, StreamExt};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Tunnels of those who do nothing.
const STANDING: usize = 12;
/// Clients that leave at once.
const LEAVING: usize = 600;
const ROUNDS: usize = 4;
/// Clients that connect at once: a node limits silent connections of one network.
const AT_ONCE: usize = 100;
/// Longer than a step of a set-up may take, shorter than a lease.
const FREEZE: Duration = Duration::from_millis(3600);

/// A node with a second listener without TLS, for many clients at once.
struct Node {
    member: Member,
    tcp: SocketAddr,
    _settings: NamedTempFile,
}

impl Node {
    fn start(certificates: &Certificates, redis: &Server) -> Self {
        let host = Ipv4Addr::LOCALHOST;
        let (web_socket, tcp) = (free_port(), SocketAddr::from((host, free_port())));
        let mut settings = NamedTempFile::with_suffix(".toml").expect("a file");
        write!(
            settings,
            "[[listen]]\nkind = \"websocket\"\naddress = \"{host}:{web_socket}\"\n\
             [[listen]]\nkind = \"tcp\"\naddress = \"{tcp}\"\ntls = false\n\
             [limits]\nunauthenticated_per_ip = 5000\n"
        )
        .expect("written");
        let mut command = support::command(&[]);
        command.arg("--config").arg(settings.path());
        let redis = [("URL", redis.url())];
        let member = Member::start(command, host.into(), certificates, &redis);
        Self { member, tcp, _settings: settings }
    }
}

struct Pair {
    nodes: [Node; 2],
    standing: Vec<(Endpoint, Endpoint)>,
    _redis: Server,
    _certificates: Certificates,
}

impl Pair {
    async fn start() -> Self {
        let redis = Server::start().await;
        let certificates = Certificates::new();
        let nodes = [(); 2].map(|()| Node::start(&certificates, &redis));
        for node in &nodes {
            until("the node is ready", async || node.member.is_ready().await).await;
        }
        let mut standing = Vec::new();
        for number in 0..STANDING {
            let [one, other] = [&nodes[number % 2], &nodes[(number + 1) % 2]];
            let token = format!("standing {number}");
            standing.push(tunnel_between(&one.member, &other.member, &token).await);
        }
        Self { nodes, standing, _redis: redis, _certificates: certificates }
    }

    async fn all_live(&mut self) {
        let mut live = 0;
        for (one, other) in &mut self.standing {
            talk(one, other).await;
            live += 1;
        }
        assert_eq!(live, STANDING);
    }
}

/// Asks to be authenticated over TCP, and does not look at the answer.
async fn asking(node: &Node, token: &str) -> TcpStream {
    let mut tcp = soon("TCP", TcpStream::connect(node.tcp)).await.expect("TCP");
    let request = format!(
        "{{\"id\":0,\"method\":\"Authentication.Authenticate\",\"params\":{{\"token\":\"{token}\"}}}}\n"
    );
    soon("sending", tcp.write_all(request.as_bytes())).await.expect("sent");
    tcp
}

/// Is authenticated, and waits for a partner.
async fn waiting(node: &Node, token: &str) -> TcpStream {
    let mut tcp = asking(node, token).await;
    let mut answer = [0; 1024];
    let length = soon("an answer", tcp.read(&mut answer)).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.contains("success"), "{answer}");
    tcp
}

/// The connections of many clients.
async fn all<C: Future<Output = TcpStream>>(clients: impl Iterator<Item = C>) -> Vec<TcpStream> {
    stream::iter(clients).buffer_unordered(AT_ONCE).collect().await
}

fn leave_abruptly(tcp: TcpStream) {
    tcp.set_zero_linger().expect("an open connection");
    drop(tcp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_while_they_are_bridged_end_no_tunnel_of_others() {
    let mut pair = Pair::start().await;
    for round in 0..ROUNDS {
        let [owner, claimer] = &pair.nodes;
        let tokens: Vec<_> = (0..LEAVING).map(|number| format!("{round} {number}")).collect();
        let waiting = all(tokens.iter().map(|token| waiting(owner, token))).await;
        let leaving = all(tokens.iter().map(|token| asking(claimer, token))).await;
        leaving.into_iter().for_each(leave_abruptly);
        drop(waiting);
        pair.all_live().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_freeze_with_many_claimers_ends_no_tunnel() {
    let mut pair = Pair::start().await;
    let [owner, claimer] = &pair.nodes;
    let tokens: Vec<_> = (0..200).map(|number| format!("claimed {number}")).collect();
    let _waiting = all(tokens.iter().map(|token| waiting(owner, token))).await;
    owner.member.freeze();
    let _claiming = all(tokens.iter().map(|token| waiting(claimer, token))).await;
    sleep(FREEZE).await;
    owner.member.thaw();
    within(DEADLINE, "all tunnels talk", pair.all_live()).await;
}

/// Whether a sign of life was under way when the freeze began is up to chance: a freeze is long
/// enough that one must have been asked for in the meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_that_is_shorter_than_a_lease_ends_no_tunnel() {
    let mut pair = Pair::start().await;
    pair.nodes[0].member.freeze();
    sleep(Duration::from_millis(8500)).await;
    pair.nodes[0].member.thaw();
    within(DEADLINE, "all tunnels talk", pair.all_live()).await;
}
