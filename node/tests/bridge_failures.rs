//! What operators see of a bridge connection that fails: one that ends by an HTTP/2 error is a line
//! at WARN and a metric, one that ends in order is neither.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::net::{Ipv4Addr, SocketAddr};

use cluster::endpoints::redis::{Server, free_port, until};
use cluster::endpoints::soon;
use support::{Running, command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The beginning of any connection, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A ping is of eight bytes; this one is of one.
const WRONG_PING: &[u8] = b"\0\0\x01\x06\0\0\0\0\0\0";
/// Says goodbye without any error.
const GO_AWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Says this on a connection to a bridge, and waits for the end of the connection.
async fn say(bridge: SocketAddr, frame: &[u8]) {
    let mut tcp = soon("TCP", TcpStream::connect(bridge)).await.expect("TCP");
    soon("sending", tcp.write_all(&[PREFACE, frame].concat())).await.expect("sent");
    tcp.shutdown().await.expect("sent");
    let mut answer = Vec::new();
    // Whether it ends in good order is all the same.
    let _ended = soon("the end", tcp.read_to_end(&mut answer)).await;
}

async fn metrics(admin: SocketAddr) -> String {
    let mut tcp = soon("TCP", TcpStream::connect(admin)).await.expect("TCP");
    tcp.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    soon("an answer", tcp.read_to_string(&mut text)).await.expect("an answer");
    text
}

#[tokio::test]
async fn an_error_of_http2_is_a_warning_and_an_orderly_end_is_not() {
    let redis = Server::start().await;
    let (bridge, admin) = (local(free_port()), local(free_port()));
    let mut command = command(&["-p", "0", "--redis", &redis.url()]);
    command
        .env("REMOTEPROXY__BRIDGE__LISTEN", bridge.to_string())
        .env("REMOTEPROXY__BRIDGE__INSECURE", "true")
        .env("REMOTEPROXY__ADMIN__LISTEN", admin.to_string());
    let node = Running::of(&mut command);
    node.url();
    let counted = |text: &str| {
        let name = "bridge_connection_failures_total{";
        let counts = text.lines().filter(|line| line.contains(name) && !line.ends_with(" 0"));
        counts.map(ToOwned::to_owned).collect::<Vec<_>>()
    };

    say(bridge, GO_AWAY).await;
    say(bridge, WRONG_PING).await;
    // The first such line is already that of the second connection.
    let line = node.line("a bridge connection has ended by an HTTP/2 error");
    for part in ["WARN", "tunnels=0", "refused_here"] {
        assert!(line.contains(part), "{line}");
    }
    until("the metric", async || {
        matches!(&counted(&metrics(admin).await)[..], [line]
            if line.contains("reason=\"refused_here\"") && line.ends_with(" 1"))
    })
    .await;
}
