//! Gateways and apps on a link that dies silently: packets vanish in both directions. They connect
//! again over another link, and must not have to wait until the node notices by itself.
//!
//! The old link leads through a relay in a network namespace of its own, which is cut off from the
//! node. Needs Linux and root.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/network.rs"]
mod network;
mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, free_port, until};
use cluster::endpoints::tunnel_proxy::{Event, Gateway, app, call, refused_gateway, try_app, uuid};
use cluster::endpoints::{DEADLINE, Endpoint, Listening};
use cluster::{Member, within};
use futures_util::SinkExt;
use network::Network;
use serde_json::json;
use support::Running;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// From a registration over the new link until it has succeeded.
const BACK: Duration = Duration::from_secs(5);

/// Takes connections and hands their bytes on, in both directions.
const RELAY: &str = r"
import asyncio, sys
listen, port, host, target = sys.argv[1:]
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection(host, int(target))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    async with await asyncio.start_server(serve, listen, int(port)) as server:
        await server.serve_forever()
asyncio.run(main())
";

/// A relay in a place of the network, ended when dropped.
struct Relay {
    address: SocketAddr,
    process: Child,
}

impl Relay {
    async fn start(network: &Network, place: u8, to: SocketAddr) -> Self {
        let address = SocketAddr::new(network.node(place), free_port());
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let process = Command::new("ip")
            .args(["netns", "exec", &network.space(place), "python3", "-c", RELAY])
            .args([&host, &port, &to.ip().to_string(), &to.port().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        until("the relay", async || TcpStream::connect(address).await.is_ok()).await;
        Self { address, process }
    }
}

impl Listening for Relay {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

fn start(
    network: &Network,
    place: u8,
    certificates: &Certificates,
    redis: &[(&str, String)],
) -> Member {
    let mut command = network.command(place);
    command.env("REMOTEPROXY__TUNNEL_PROXY__ENABLED", "true");
    Member::start(command, network.node(place), certificates, redis)
}

/// A node on this address with a listener for WebSocket and one for plain TCP, which is given too.
fn start_with_tcp(network: &Network, place: u8) -> (Running, Address, Address) {
    let host = network.node(place);
    let (tcp, websocket) = (SocketAddr::new(host, free_port()), SocketAddr::new(host, free_port()));
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    let listen = format!(
        "[[listen]]\nkind = \"websocket\"\naddress = \"{websocket}\"\n\
         [[listen]]\nkind = \"tcp\"\naddress = \"{tcp}\"\ntls = false\n"
    );
    std::fs::write(file.path(), listen).expect("written");
    let mut command = network.command(place);
    command
        .env("REMOTEPROXY__TUNNEL_PROXY__ENABLED", "true")
        .args(["--insecure-accept-any", "--insecure-self-signed", "--config"])
        .arg(file.path());
    let node = Running::of(&mut command);
    node.line("listening on");
    node.line("listening on");
    (node, Address(websocket), Address(tcp))
}

struct Address(SocketAddr);

impl Listening for Address {
    fn address(&self) -> SocketAddr {
        self.0
    }
}

/// A gateway on plain TCP.
async fn tcp_gateway(relay: &Relay) -> TcpStream {
    let mut tcp = TcpStream::connect(relay.address).await.expect("TCP");
    let params = json!({ "serverName": "gateway", "serverUuid": uuid(1) });
    tcp.write_all(call("RegisterServer", &params).as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let mut reader = BufReader::new(&mut tcp);
    timeout(DEADLINE, reader.read_line(&mut answer)).await.expect("in time").expect("an answer");
    assert!(answer.contains("TunnelProxyErrorNoError"), "{answer}");
    tcp
}

/// The gateway at this node is the one that its apps reach.
async fn serves(node: &impl Listening, gateway: &mut Gateway) {
    let mut app = app(node, 77, 1).await;
    let address = gateway.connected().await;
    app.send(Message::text("hello")).await;
    assert_eq!(gateway.event().await, Event::Data(address, b"hello".to_vec()));
    app.leave().await;
    gateway.disconnected(address).await;
}

#[tokio::test]
async fn on_one_node_a_gateway_gets_its_place_back_and_a_live_one_keeps_it() {
    let network = Network::new(2);
    let certificates = Certificates::new();
    let node = start(&network, 0, &certificates, &[]);
    let relay = Relay::start(&network, 1, node.address()).await;
    let mut old = Gateway::register(&relay, 1).await;
    let mut its_app = app(&node, 2, 1).await;
    old.connected().await;
    // As long as it is alive, it keeps its place.
    tokio::select! {
        event = old.event() => panic!("{event:?}"),
        () = refused_gateway(&node, 1, "AlreadyRegistered") => {}
    }
    network.cut(0, 1);
    let mut new = within(BACK, "the gateway is back", Gateway::register(&node, 1)).await;
    its_app.closed_with(1001).await;
    serves(&node, &mut new).await;
    // When its link is back, the old one has no place any more.
    network.mend(0, 1);
    tokio::select! {
        event = new.event() => panic!("{event:?}"),
        () = async {
            while let Some(Ok(message)) = old.endpoint.next().await {
                assert!(matches!(message, Message::Close(_)), "{message:?}");
            }
        } => {}
    }
    serves(&node, &mut new).await;
}

#[tokio::test]
async fn over_two_nodes_a_gateway_gets_its_place_back_and_a_live_one_keeps_it() {
    let network = Network::new(3);
    let redis = Server::start().await;
    let bind = format!("127.0.0.1 {}", network.redis());
    redis.ask::<()>(&["CONFIG", "SET", "bind", &bind]).await;
    redis.ask::<()>(&["CONFIG", "SET", "protected-mode", "no"]).await;
    let certificates = Certificates::new();
    let url = [("URL", format!("redis://{}:{}", network.redis(), redis.port))];
    let (a, b) = (start(&network, 0, &certificates, &url), start(&network, 1, &certificates, &url));
    for node in [&a, &b] {
        until("the node is ready", async || node.is_ready().await).await;
    }
    let relay = Relay::start(&network, 2, a.address()).await;
    let mut old = Gateway::register(&relay, 1).await;
    tokio::select! {
        event = old.event() => panic!("{event:?}"),
        () = refused_gateway(&b, 1, "AlreadyRegistered") => {}
    }
    network.cut(0, 2);
    let mut new = within(BACK, "the gateway is back", Gateway::register(&b, 1)).await;
    serves(&a, &mut new).await;
}

#[tokio::test]
async fn a_silent_gateway_on_tcp_gets_its_place_back_and_a_live_one_keeps_it() {
    let network = Network::new(2);
    let (_node, websocket, tcp) = start_with_tcp(&network, 0);
    let relay = Relay::start(&network, 1, tcp.address()).await;
    let _old = tcp_gateway(&relay).await;
    refused_gateway(&websocket, 1, "AlreadyRegistered").await;
    network.cut(0, 1);
    let mut new = within(BACK, "the gateway is back", Gateway::register(&websocket, 1)).await;
    serves(&websocket, &mut new).await;
}

/// How often in a row some connection of this node has sent the same data again, in vain.
fn sent_again(network: &Network, node: u8) -> u32 {
    let mut list = Command::new("ip");
    list.args(["netns", "exec", &network.space(node), "cat", "/proc/net/tcp"]);
    let list = String::from_utf8(list.output().expect("ip").stdout).expect("text");
    let connections = list.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // Its timer, which is 1 for sending again; and how often it has rung.
    let ringing = connections.filter(|fields| fields.len() > 6 && fields[5].starts_with("01:"));
    ringing.filter_map(|fields| u32::from_str_radix(fields[6], 16).ok()).max().unwrap_or(0)
}

/// The system then has no reason to ask for signs of life: it sends the data again, ever more
/// seldom.
#[tokio::test]
async fn with_data_under_way_a_gateway_on_tcp_gets_its_place_back_too() {
    let network = Network::new(2);
    let (_node, websocket, tcp) = start_with_tcp(&network, 0);
    let relay = Relay::start(&network, 1, tcp.address()).await;
    let mut old = tcp_gateway(&relay).await;
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = old.read(&mut buffer).await {
            counted.fetch_add(count, Ordering::Relaxed);
        }
    });
    let mut app = app(&websocket, 2, 1).await;
    let flood =
        tokio::spawn(
            async move { while app.ws.send(Message::binary(vec![1; 65536])).await.is_ok() {} },
        );
    until("data under way", async || received.load(Ordering::Relaxed) > 4 << 20).await;
    refused_gateway(&websocket, 1, "AlreadyRegistered").await;
    network.cut(0, 1);
    // After that, the pause until the next attempt is longer than this test.
    until("data to be sent again", async || sent_again(&network, 0) >= 5).await;
    let mut new = within(BACK, "the gateway is back", Gateway::register(&websocket, 1)).await;
    serves(&websocket, &mut new).await;
    flood.abort();
    reading.abort();
}

#[tokio::test]
async fn an_app_gets_its_place_back_too() {
    let network = Network::new(2);
    let certificates = Certificates::new();
    let node = start(&network, 0, &certificates, &[]);
    let relay = Relay::start(&network, 1, node.address()).await;
    let mut gateway = Gateway::register(&node, 1).await;
    let _old: Endpoint = app(&relay, 2, 1).await;
    let address = gateway.connected().await;
    network.cut(0, 1);
    let (_new, error) = within(BACK, "the app is back", try_app(&node, 2, 1)).await;
    assert_eq!(error, "TunnelProxyErrorNoError");
    gateway.disconnected(address).await;
    assert_ne!(gateway.connected().await, address);
}
