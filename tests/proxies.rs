//! Load balancers in front of a node that name the client of a connection: by the PROXY protocol, and
//! in the upgrade request.

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nymea_remoteproxy::config::{Config, ForwardingHeader};
use nymea_remoteproxy::node::Node;
use support::stream::{Client, Stream, Way, authenticate, everywhere, ip, tcp};
use support::{node_with, soon};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const PATIENCE: Duration = Duration::from_millis(500);

/// A node that believes this machine's load balancers, and takes two clients from one address that
/// are not authenticated.
fn node(change: impl FnOnce(&mut Config)) -> (Node, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let node = node_with(|config| {
        everywhere(config, &folder);
        config.proxies.trusted = "127.0.0.0/8, 10.0.0.0/8".parse().expect("networks");
        config.limits.unauthenticated_per_ip = 2;
        config.timeouts.handshake = PATIENCE;
        change(config);
    });
    (node, folder)
}

/// Version 1 of the PROXY protocol.
fn line(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.1 4711 2213\r\n").into_bytes()
}

/// Version 2, with a value of an unknown type after the addresses.
fn binary(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend([0, 12 + 5]);
    header.extend(client);
    header.extend([10, 0, 0, 1, 0x12, 0x34, 0, 80]);
    header.extend([0xEE, 0, 2, 1, 2]);
    header
}

/// Connects a client on plain TCP through a load balancer that sends this header.
async fn behind(node: &Node, header: &[u8]) -> Stream {
    let mut stream = Stream::over(Box::new(tcp(ip(node, "tcp")).await));
    stream.send(header).await;
    stream
}

async fn says_hello(stream: &mut Stream) -> bool {
    stream.send(b"{\"id\":1,\"method\":\"RemoteProxy.Hello\"}\n").await;
    let mut line = String::new();
    let read = tokio::io::AsyncBufReadExt::read_line(&mut stream.io, &mut line);
    matches!(soon("an answer or the end", read).await, Ok(1..))
}

/// Where the endpoints of the one tunnel come from.
fn addresses(node: &Node) -> Vec<String> {
    use nymea_remoteproxy::observability::Endpoint;
    let tunnels = node.telemetry().tunnels.list(None, 10, |_| true);
    let facts = &tunnels.first().expect("a tunnel").facts;
    let ends = [&facts.first, &facts.second];
    let address = |end: &&Endpoint| match end {
        Endpoint::Here { client_addr, .. } => client_addr.to_string(),
        Endpoint::There { .. } => "elsewhere".into(),
    };
    ends.iter().map(address).collect()
}

#[tokio::test]
async fn the_client_of_the_header_is_shown_and_counted() {
    let (node, _folder) = node(|config| config.proxies.protocol = true);
    let mut clients = Vec::new();
    for header in [line("192.0.2.1"), binary([192, 0, 2, 1])] {
        let mut client = behind(&node, &header).await;
        assert!(says_hello(&mut client).await);
        clients.push(client);
    }
    // A third one of that client is refused, others come from the same load balancer.
    assert!(!says_hello(&mut behind(&node, &line("192.0.2.1")).await).await);
    assert!(says_hello(&mut behind(&node, &line("192.0.2.2")).await).await);
    for client in &mut clients {
        client.send(authenticate(r#""token":"t""#).as_bytes()).await;
    }
    for client in &mut clients {
        assert!(client.line().await.expect("an answer").contains("success"));
        assert!(client.line().await.expect("a notification").contains("Established"));
    }
    let mut addresses = addresses(&node);
    addresses.sort();
    assert_eq!(addresses, ["192.0.2.1:4660", "192.0.2.1:4711"]);
    assert!(says_hello(&mut behind(&node, &line("192.0.2.1")).await).await, "room again");
}

#[tokio::test]
async fn the_header_comes_before_tls_and_the_upgrade() {
    let (node, _folder) = node(|config| config.proxies.protocol = true);
    let mut secure = tcp(ip(&node, "tls")).await;
    secure.write_all(&line("192.0.2.7")).await.expect("sent");
    let mut first = Stream::over(Box::new(support::tls_over(secure).await));
    first.send(authenticate(r#""token":"t""#).as_bytes()).await;
    assert!(first.line().await.expect("an answer").contains("success"));
    let mut web = tcp(ip(&node, "wss")).await;
    web.write_all(&binary([192, 0, 2, 8])).await.expect("sent");
    let secure = support::tls_over(web).await;
    let (mut web, _) = Box::pin(soon("the upgrade", client_async("wss://localhost/", secure)))
        .await
        .expect("good");
    futures_util::SinkExt::send(&mut web, Message::text(authenticate(r#""token":"t""#)))
        .await
        .expect("sent");
    assert!(first.line().await.expect("a notification").contains("Established"));
    assert_eq!(addresses(&node), ["192.0.2.7:4711", "192.0.2.8:4660"]);
}

#[tokio::test]
async fn a_load_balancer_that_says_nothing_right_is_closed_in_time() {
    let (node, _folder) = node(|config| config.proxies.protocol = true);
    for wrong in [
        &b"{\"id\":1,\"method\":\"RemoteProxy.Hello\"}\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
        // Announces more than any header has, or more than it sends.
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"PROXY ",
        b"",
    ] {
        let mut client = behind(&node, wrong).await;
        assert_eq!(client.rest().await.unwrap_or_default(), b"", "{wrong:?}");
    }
    // On a unix socket there is none in between.
    let mut local = Stream::connect(&node, Way::Unix).await;
    assert!(says_hello(&mut local).await);
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let (node, _folder) = node(|config| {
        config.proxies.protocol = true;
        config.proxies.header = Some(ForwardingHeader::XForwardedFor);
        config.proxies.trusted = "10.0.0.0/8".parse().expect("a network");
    });
    let mut direct = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(&node, Way::Tcp).await.stream();
        assert!(says_hello(&mut client).await, "without a header");
        direct.push(client);
    }
    let mut third = Client::connect(&node, Way::Tcp).await.stream();
    assert!(!says_hello(&mut third).await, "two are enough of one address");
    drop(direct);
    let mut spoofing = behind(&node, &line("192.0.2.1")).await;
    let answer = spoofing.line().await.unwrap_or_default();
    assert!(answer.contains("Failed to parse JSON data"), "{answer}");
    let web = upgraded(&node, &["192.0.2.1"]).await.expect("an upgrade");
    drop((spoofing, third));
    let again = upgraded(&node, &["192.0.2.2"]).await.expect("an upgrade");
    let refused = upgraded(&node, &["192.0.2.3"]).await.expect_err("too many of one address");
    assert!(is_unavailable(&refused), "{refused}");
    drop((web, again));
}

type Web = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// Connects a WebSocket with an upgrade request to which proxies have added these values.
async fn upgraded(node: &Node, forwarded_for: &[&str]) -> Result<Web, WsError> {
    upgraded_by(ForwardingHeader::XForwardedFor, node, forwarded_for).await
}

async fn upgraded_by(
    header: ForwardingHeader,
    node: &Node,
    forwarded_for: &[&str],
) -> Result<Web, WsError> {
    let mut request = "wss://localhost/".into_client_request()?;
    for value in forwarded_for {
        let (name, value) = match header {
            ForwardingHeader::XForwardedFor => ("x-forwarded-for", (*value).to_owned()),
            ForwardingHeader::Forwarded => {
                let each = value.split(", ").map(|address| format!("for={address};proto=https"));
                ("forwarded", each.collect::<Vec<_>>().join(", "))
            }
        };
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    let tls = support::tls(&ip(node, "wss")).await;
    Ok(Box::pin(soon("the upgrade", client_async(request, tls))).await?.0)
}

fn is_unavailable(error: &WsError) -> bool {
    matches!(error, WsError::Http(response) if response.status() == 503)
}

#[tokio::test]
async fn the_client_of_an_upgrade_request_is_shown_and_counted() {
    for header in [ForwardingHeader::XForwardedFor, ForwardingHeader::Forwarded] {
        is_shown_and_counted(header).await;
    }
}

async fn is_shown_and_counted(header: ForwardingHeader) {
    let (node, _folder) = node(|config| config.proxies.header = Some(header));
    let upgraded = async |values: &[&str]| upgraded_by(header, &node, values).await;
    let mut first = upgraded(&["192.0.2.1"]).await.expect("room");
    // Addresses invented by the client are first in the list, and do not count.
    let mut second = upgraded(&["192.0.2.9, 192.0.2.1", "10.0.0.3"]).await.expect("room");
    let refused = upgraded(&["192.0.2.9, 192.0.2.1"]).await.expect_err("no room");
    assert!(is_unavailable(&refused), "{refused}");
    let other = upgraded(&["192.0.2.2"]).await.expect("room for others");
    for web in [&mut first, &mut second] {
        let request = Message::text(authenticate(r#""token":"t""#));
        futures_util::SinkExt::send(web, request).await.expect("sent");
    }
    for web in [&mut first, &mut second] {
        let mut texts = String::new();
        while !texts.contains("Established") {
            let message = soon("a message", web.next()).await.expect("open").expect("open");
            texts += message.to_text().unwrap_or_default();
        }
    }
    assert_eq!(addresses(&node), ["192.0.2.1:0", "192.0.2.1:0"]);
    drop(other);
    // Plain TCP has no such header: its peer is the client.
    let mut bare = tcp(ip(&node, "tcp")).await;
    bare.write_all(b"{\"id\":1,\"method\":\"RemoteProxy.Hello\"}").await.expect("sent");
    assert_eq!(soon("an answer", bare.read_u8()).await.expect("an answer"), b'{');
}
