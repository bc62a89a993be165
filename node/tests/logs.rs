//! The log for machines: each line an object that says where it belongs, and what is logged can be
//! changed while the node runs.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nymea_remoteproxy::trace_parent::TraceParent;
use serde_json::Value;

use cluster::endpoints::tunnel_proxy::{Gateway, app};
use cluster::endpoints::{Endpoint, Listening};
use cluster::{Cluster, talk};
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
async fn the_tunnel_of_an_app_has_one_name_on_both_nodes() {
    let cluster = Cluster::<2>::start().await;
    let [one, other] = &cluster.nodes;
    let mut gateway = Gateway::register(one, 1).await;
    let mut app = app(other, 2, 1).await;
    gateway.connected().await;
    app.leave().await;

    let registered = one.process.line("gateway registered");
    let told = [one, other].map(|node| {
        ["tunnel established", "tunnel ended"].map(|message| node.process.line(message))
    });
    for line in told.as_flattened() {
        assert_eq!(in_span(line, "tunnel"), in_span(&told[0][0], "tunnel"), "{line}");
        assert!(in_span(line, "client_addr").starts_with("127.0.0.1:"), "{line}");
    }
    // On the gateway's node there is no connection of the app.
    for line in &told[0] {
        assert_eq!(in_span(line, "id"), in_span(&registered, "id"), "{line}");
    }
}

/// What the span of a line for people says, by name.
fn in_span<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, fields) = line.split_once("connection{").unwrap_or_else(|| panic!("no span: {line}"));
    let (fields, _) = fields.split_once('}').expect("the end of the span");
    let mut fields = fields.split(' ').filter_map(|field| field.split_once('='));
    fields.find(|(it, _)| *it == name).unwrap_or_else(|| panic!("no {name}: {line}")).1
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
