//! The spans of tunnels that two node processes send to a collector.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/collector.rs"]
mod collector;
mod support;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use nymea_remoteproxy::trace_parent::TraceParent;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio_tungstenite::tungstenite::Message;

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, until};
use cluster::endpoints::{Endpoint, Listening, tunnel};
use cluster::{Member, talk};
use collector::{Collector, texts};
use support::{Running, command};

const TOKEN: &str = "the-token-that-nobody-may-see";
const NONCE: &str = "the-nonce-that-nobody-may-see";
/// The variable with the name of a file for a picture of the traces.
const PICTURE: &str = "TRACES_PICTURE";
const PAYLOAD: &str = "the-payload-that-nobody-may-see";

/// A node that tells a collector all it has, without much delay.
fn told_to(endpoint: &str) -> Command {
    let mut node = command(&[]);
    node.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    node
}

/// Two nodes that tell a collector.
async fn two_nodes(redis: &Server, endpoint: &str) -> [Member; 2] {
    let certificates = Certificates::new();
    let redis = [("URL", redis.url())];
    let nodes = std::array::from_fn(|index| {
        let mut node = told_to(endpoint);
        node.env("REMOTEPROXY__NODE__NAME", format!("node{}", index + 1));
        Member::start(node, Ipv4Addr::LOCALHOST.into(), &certificates, &redis)
    });
    for node in &nodes {
        until("the node is ready", async || node.is_ready().await).await;
    }
    nodes
}

async fn waiting(node: &Member, trace: TraceParent, uuid: &str) -> Endpoint {
    let mut endpoint = Endpoint::traced(node, trace).await;
    let who = format!(r#""uuid":"{uuid}","name":"n""#);
    endpoint.authenticate(&format!(r#""token":"{TOKEN}","nonce":"{NONCE}",{who}"#)).await;
    endpoint
}

/// The spans of one trace.
struct Trace(Vec<(HashMap<String, String>, Span)>);

impl Trace {
    fn of(collector: &Collector, id: &[u8]) -> Self {
        let spans = collector.spans().into_iter();
        Self(spans.filter(|(_, span)| span.trace_id == id).collect())
    }

    /// The one span of this name.
    fn one(&self, name: &str) -> &(HashMap<String, String>, Span) {
        let found: Vec<_> = self.0.iter().filter(|(_, span)| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {:?}", self.names());
        found[0]
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(_, span)| span.name.as_str()).collect()
    }

    /// A line for each span, below its parent: name, node, begin and duration.
    fn picture(&self) -> String {
        let mut lines = String::new();
        let is_root =
            |span: &Span| !self.0.iter().any(|(_, other)| other.span_id == span.parent_span_id);
        let roots: Vec<_> = self.0.iter().filter(|(_, span)| is_root(span)).collect();
        let began = roots[0].1.start_time_unix_nano;
        for root in roots {
            self.draw(root, 0, began, &mut lines);
        }
        lines
    }

    fn draw(
        &self,
        (resource, span): &(HashMap<String, String>, Span),
        depth: usize,
        origin: u64,
        lines: &mut String,
    ) {
        let millis = |nanos: u64| format!("{}.{:02} ms", nanos / 1_000_000, nanos / 10_000 % 100);
        let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
        let name = "  ".repeat(depth) + &span.name;
        let node = &resource["nymea.node.name"];
        let (at, took) = (millis(start - origin), millis(end - start));
        writeln!(lines, "{name:<26}{node:<8}{at:>10} +{took:>10}").expect("a String");
        let mut children: Vec<_> =
            self.0.iter().filter(|(_, child)| child.parent_span_id == span.span_id).collect();
        children.sort_by_key(|(_, child)| child.start_time_unix_nano);
        for child in children {
            self.draw(child, depth + 1, origin, lines);
        }
    }
}

fn links(span: &Span) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    span.links.iter().map(|link| (link.trace_id.clone(), link.span_id.clone())).collect()
}

fn place(span: &Span) -> (Vec<u8>, Vec<u8>) {
    (span.trace_id.clone(), span.span_id.clone())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A node without a cluster.
struct Alone {
    process: Running,
    address: SocketAddr,
}

impl Alone {
    fn start(command: &mut Command) -> Self {
        let process = Running::of(command);
        let address = process.url().trim_start_matches("wss://").parse().expect("an address");
        Self { process, address }
    }
}

impl Listening for Alone {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

#[tokio::test]
async fn a_tunnel_over_two_nodes_is_one_trace() {
    let (collector, redis) = (Collector::start().await, Server::start().await);
    let nodes = two_nodes(&redis, &format!("http://{}", collector.grpc)).await;
    let parents = [TraceParent::new(true), TraceParent::new(true)];
    let mut first = waiting(&nodes[0], parents[0], "u1").await;
    until("the first endpoint's offer", async || {
        collector.spans().iter().any(|(_, span)| span.name == "offer")
    })
    .await;
    let mut second = waiting(&nodes[1], parents[1], "u2").await;
    first.established().await;
    second.established().await;

    // The set-up is exported while the tunnel is open.
    let setups = || {
        let spans = collector.spans().into_iter();
        spans.filter(|(_, span)| span.name == "tunnel setup").collect::<Vec<_>>()
    };
    until("the set-up", async || !setups().is_empty()).await;
    assert!(!collector.spans().iter().any(|(_, span)| span.name == "tunnel"));
    for text in [PAYLOAD, "more"] {
        first.send(Message::text(text)).await;
        assert_eq!(second.text().await, text);
    }
    talk(&mut first, &mut second).await;
    first.leave().await;
    second.closed_with(1000).await;
    let (_, setup) = setups().remove(0);
    let tunnel = || Trace::of(&collector, &setup.trace_id);
    until("the ends of the tunnel on both nodes", async || {
        tunnel().names().iter().filter(|name| **name == "tunnel").count() == 2
    })
    .await;
    check_tunnel(&tunnel(), &collector, parents);
    if let Some(file) = std::env::var_os(PICTURE) {
        let traces = parents.map(|parent| Trace::of(&collector, &parent.trace.to_be_bytes()));
        let pictures = [&traces[0], &traces[1], &tunnel()].map(Trace::picture);
        fs::write(file, pictures.join("\n")).expect("written");
    }

    // The first export may have been before the tunnel.
    let established = "remoteproxy.tunnels.established".to_owned();
    until("the metric of tunnels", async || collector.metrics().contains(&established)).await;
    let bytes = collector.bytes();
    for secret in [TOKEN, NONCE, PAYLOAD] {
        assert!(!contains(&bytes, secret), "{secret} has been exported");
    }
}

fn check_tunnel(tunnel: &Trace, collector: &Collector, parents: [TraceParent; 2]) {
    let (owner, setup) = tunnel.one("tunnel setup");
    assert!(setup.parent_span_id.is_empty());
    let node = |resource: &HashMap<String, String>| resource["service.instance.id"].clone();

    // Each connection continues its client's trace, and is linked with the tunnel.
    let mut connections = BTreeSet::new();
    for parent in parents {
        let trace = Trace::of(collector, &parent.trace.to_be_bytes());
        let (_, connection) = trace.one("connection");
        assert_eq!(connection.parent_span_id, parent.span.to_be_bytes());
        assert_eq!(connection.kind(), SpanKind::Server);
        assert_eq!(links(connection), BTreeSet::from([place(setup)]));
        let facts = texts(&connection.attributes);
        assert_eq!(facts["network.peer.address"], "127.0.0.1");
        assert_eq!(facts["tls.protocol.version"], "1.3");
        assert_eq!(facts["nymea.connection.outcome"], "paired");
        for name in ["tls handshake", "websocket upgrade", "authenticate"] {
            let (_, step) = trace.one(name);
            assert_eq!(step.parent_span_id, connection.span_id, "{name}");
            assert!(step.start_time_unix_nano >= connection.start_time_unix_nano, "{name}");
            assert!(step.end_time_unix_nano <= connection.end_time_unix_nano, "{name}");
        }
        connections.insert(place(connection));
    }
    assert_eq!(links(setup), connections);

    // All steps, each on its node and below the right span.
    let (claimer, bridge) = tunnel.one("bridge");
    let (attached_at, attach) = tunnel.one("attach");
    assert_ne!(node(owner), node(claimer));
    assert_eq!(node(attached_at), node(owner));
    assert_eq!((bridge.kind(), attach.kind()), (SpanKind::Client, SpanKind::Server));
    assert_eq!(attach.parent_span_id, bridge.span_id);
    for (name, at) in [("offer", owner), ("wait for partner", owner), ("claim", claimer)] {
        let (resource, step) = tunnel.one(name);
        assert_eq!(step.parent_span_id, setup.span_id, "{name}");
        assert_eq!(node(resource), node(at), "{name}");
    }
    assert_eq!(bridge.parent_span_id, setup.span_id);
    let both = |name: &str| {
        let of = tunnel.0.iter().filter(|(_, span)| span.name == name);
        of.map(|(resource, _)| node(resource)).collect::<BTreeSet<_>>()
    };
    let nodes = BTreeSet::from([node(owner), node(claimer)]);
    assert_eq!(both("introduce"), nodes);
    assert_eq!(both("tunnel"), nodes);
    for (_, span) in tunnel.0.iter().filter(|(_, span)| span.name == "tunnel") {
        assert_eq!(links(span), BTreeSet::from([place(setup)]));
        let facts = texts(&span.attributes);
        let moved = (PAYLOAD.len() + "more".len() + 2 * "pingpong".len() / 2).to_string();
        assert_eq!(facts["nymea.tunnel.forth.bytes"], moved);
        assert_eq!(facts["nymea.tunnel.forth.messages"], "4");
        assert_eq!(facts["nymea.tunnel.kind"], "bridged");
        assert_eq!(facts["nymea.tunnel.close_reason"], "other_left");
    }
    assert_eq!(tunnel.0.len(), 10, "{:?}", tunnel.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_http_and_a_signal_loses_nothing() {
    let collector = Collector::start().await;
    let mut node = told_to(&format!("http://{}", collector.http));
    // Only the end can bring anything.
    node.env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .args(["-p", "0"]);
    let node = Alone::start(&mut node);
    let (mut first, mut second) = tunnel(&node, TOKEN).await;
    talk(&mut first, &mut second).await;
    first.leave().await;
    second.closed_with(1000).await;
    // The client command continues the trace of its parent process.
    let parent = TraceParent::new(true);
    let client = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"))
        .args(["--url", &format!("wss://{}", node.address), "-i", "--token", "t", "--wait", "1s"])
        .env("TRACEPARENT", parent.to_string())
        .output();
    assert!(!client.expect("the client runs").status.success(), "nobody comes");
    assert!(collector.spans().is_empty());
    node.process.signal("TERM");
    let (code, _) = node.process.end();
    assert_eq!(code, Some(0));
    let continued = Trace::of(&collector, &parent.trace.to_be_bytes());
    let (_, connection) = continued.one("connection");
    assert!(!connection.parent_span_id.is_empty());
    let names: BTreeSet<_> = collector.spans().into_iter().map(|(_, span)| span.name).collect();
    for name in ["connection", "claim", "tunnel setup", "tunnel"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
}

/// A collector that is away costs the spans in its queue (2,048, and a batch of 512 on its way),
/// of less than 2 KiB each, and what its client needs.
const COLLECTOR_AWAY_KIB: u64 = 12 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_goes_away_costs_little_and_is_missed_once() {
    let collector = Collector::start().await;
    let mut command = told_to(&format!("http://{}", collector.grpc));
    command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "200").args(["-p", "0"]);
    let node = Alone::start(&mut command);
    let some = async |count: usize| {
        for _ in 0..count {
            let (mut first, mut second) = tunnel(&node, TOKEN).await;
            first.leave().await;
            second.closed_with(1000).await;
        }
    };
    some(100).await;
    until("spans", async || !collector.spans().is_empty()).await;
    let before = node.process.resident();

    let address = collector.grpc;
    drop(collector);
    // Twelve spans each: more than twice what fits into the queue.
    some(500).await;
    let after = node.process.resident();
    assert!(after < before + COLLECTOR_AWAY_KIB, "from {before} to {after} KiB");

    node.process.line("the collector takes no spans");
    let collector = Collector::on(address).await;
    let back = "the collector takes spans again";
    let (some, said) = tokio::join!(some(1), async {
        tokio::task::block_in_place(|| node.process.lines_until(back))
    });
    let () = some;
    assert!(!said.iter().any(|line| line.contains("collector takes no")), "{said:?}");
    assert!(!said.iter().any(|line| line.contains("opentelemetry")), "{said:?}");
    assert!(!collector.spans().is_empty());
}
