//! The log for machines: each line an object that says where it belongs, and what is logged can be
//! changed while the node runs.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nymea_remoteproxy::trace_parent::TraceParent;
use serde_json::Value;

use cluster::endpoints::{Endpoint, Listening};
use cluster::talk;
use support::{Running, command};

/// A node that logs JSON.
struct Node {
    process: Running,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Listening for Node {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Node {
    fn start() -> Self {
        let process = Running::of(&mut command(&["-p", "0", "--log-format", "json"]));
        let address = address_in(&process.line("listening on wss://"));
        let admin = address_in(&process.line("status page, API and metrics on http://"));
        Self { process, address, admin }
    }

    /// The next line with this message.
    fn line(&self, message: &str) -> Value {
        let line = self.process.line(&format!("\"message\":\"{message}\""));
        serde_json::from_str(&line).expect("each line is JSON")
    }

    fn set_filter(&self, filter: &str) -> String {
        let body = serde_json::json!({ "filter": filter }).to_string();
        let mut tcp = TcpStream::connect(self.admin).expect("the admin listener");
        write!(
            tcp,
            "PUT /api/v1/log-level HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.admin,
            body.len()
        )
        .expect("asked");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("://").expect("a URL");
    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
    address[..end.unwrap_or(address.len())].parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_says_which_connection_trace_and_tunnel_it_is_about() {
    let node = Node::start();
    let traces = [TraceParent::new(true), TraceParent::new(true)];
    let mut first = Endpoint::traced(&node, traces[0]).await;
    first.authenticate(r#""token":"t""#).await;
    let authenticated = node.line("authenticated");
    let mut second = Endpoint::traced(&node, traces[1]).await;
    second.authenticate(r#""token":"t""#).await;
    first.established().await;
    second.established().await;
    talk(&mut first, &mut second).await;
    first.leave().await;
    second.closed_with(1000).await;

    let established = node.line("tunnel established");
    let ended = node.line("tunnel ended");
    let trace = traces[0].trace_id().to_string();
    for line in [&authenticated, &established, &ended] {
        assert_eq!(line["trace_id"], trace, "{line}");
        assert_eq!(line["connection_id"], authenticated["connection_id"], "{line}");
        assert!(line["client_address"].as_str().is_some_and(|it| it.starts_with("127.0.0.1:")));
    }
    assert!(established["tunnel_id"].is_string(), "{established}");
    assert_eq!(established["tunnel_id"], ended["tunnel_id"]);
    assert_eq!(established["kind"], "local");
    assert_eq!(ended["reason"], "other_left");
    assert_eq!((&ended["messages_forth"], &ended["bytes_back"]), (&2.into(), &8.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_changes_while_the_node_runs() {
    let node = Node::start();
    let answer = node.set_filter("nymea_remoteproxy=debug");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut endpoint = Endpoint::connect(&node).await;
    assert_eq!(node.line("connected")["level"], "DEBUG");
    // What the sessions say is left out from here on.
    let answer = node.set_filter("info,nymea_remoteproxy::session=warn");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    endpoint.authenticate(r#""token":"t""#).await;
    let answer = node.set_filter("=nonsense=");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("expected one such as"), "{answer}");
    let answer = node.set_filter("info");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    endpoint.leave().await;
    node.process.signal("TERM");
    let (code, log) = node.process.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("drained") && !log.contains("\"authenticated\""), "{log}");
}
