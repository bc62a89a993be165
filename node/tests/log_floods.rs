//! Strangers who are refused, or who send nonsense, as often as they can: the log stays small, says
//! how many there were, and the list of events keeps what else has happened.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use cluster::endpoints::redis::until;
use cluster::endpoints::{Listening, tunnel};
use support::{Running, command};

/// Connections without a token that the node takes from one address.
const PLACES: usize = 20;
/// How long a flood goes on.
const FLOOD: Duration = Duration::from_secs(2);
/// What a flood may add to the log. Before there were sums, this was 1 to 4 MB each second.
const LOG_OF_A_FLOOD: u64 = 16 * 1024;

struct Node {
    process: Running,
    secure: SocketAddr,
    plain: SocketAddr,
    admin: SocketAddr,
}

impl Listening for Node {
    fn address(&self) -> SocketAddr {
        self.secure
    }
}

impl Node {
    fn start(log: &Path) -> Self {
        let listen = r#"[{"kind":"websocket","address":"127.0.0.1:0"},
            {"kind":"tcp","address":"127.0.0.1:0","tls":false}]"#;
        let mut command = command(&["-l", log.to_str().expect("UTF-8")]);
        command
            .env("REMOTEPROXY__LISTEN", listen)
            .env("REMOTEPROXY__LIMITS__UNAUTHENTICATED_PER_IP", PLACES.to_string());
        let process = Running::of(&mut command);
        let secure = address_in(&process.line("listening on wss://"));
        let plain = address_in(&process.line("listening on tcp://"));
        let admin = address_in(&process.line("metrics on http://"));
        Self { process, secure, plain, admin }
    }

    fn get(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.admin).expect("the admin listener");
        write!(tcp, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.admin).expect("asked");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(" 200 "), "{head}");
        body.to_owned()
    }

    /// The events of a kind.
    fn events(&self, kind: &str) -> Vec<Value> {
        let body: Value = serde_json::from_str(&self.get("/api/v1/events")).expect("JSON");
        let events = body["events"].as_array().expect("a list");
        events.iter().filter(|event| event["kind"] == kind).cloned().collect()
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    /// Sends `what` to the plain listener as often as possible, and returns how often.
    fn flood(&self, what: &[u8]) -> u64 {
        let plain = self.plain;
        let flooding = || {
            let (started, mut count) = (Instant::now(), 0);
            while started.elapsed() < FLOOD {
                let Ok(mut tcp) = TcpStream::connect(plain) else { continue };
                let _refused = tcp.write_all(what);
                let _closed = tcp.read_to_end(&mut Vec::new());
                count += 1;
            }
            count
        };
        std::thread::scope(|scope| {
            let floods: Vec<_> = (0..4).map(|_| scope.spawn(flooding)).collect();
            floods.into_iter().map(|flood| flood.join().expect("no panic")).sum()
        })
    }
}

fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("://").expect("a URL");
    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
    address[..end.unwrap_or(address.len())].parse().expect("an address")
}

/// How many of these the log speaks of: one for each line of its own, and the sums.
fn told(log: &str, message: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(message));
    let count = |line: &str| {
        let (_, count) = line.rsplit_once(" count=")?;
        count.split(' ').next()?.parse::<u64>().ok()
    };
    lines.map(|line| count(line).unwrap_or(1)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_strangers_fills_neither_the_log_nor_the_list_of_events() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("node.log");
    let node = Node::start(&file);
    let standing = tunnel(&node, "before the flood").await;
    until("the tunnel is listed", async || !node.events("tunnel").is_empty()).await;
    let size = || std::fs::metadata(&file).expect("a log").len();
    let before = size();

    // Each sends nonsense, gets its answer, and is closed.
    let sent = node.flood(b"nonsense\n");
    assert!(sent > 100, "only {sent} connections");
    let with_nonsense = size() - before;

    // The limit for this address is reached.
    let connect = |_| {
        let mut tcp = TcpStream::connect(node.plain).expect("connected");
        // A connection that has sent nothing has no place, and one without a request gives way.
        let _refused = tcp.write_all(b"{\"id\":1,\"method\":\"RemoteProxy.Hello\"}\n");
        tcp
    };
    let held: Vec<_> = (0..2 * PLACES).map(connect).collect();
    let refusals = "remoteproxy_connections_refused_total";
    until("all places are taken", async || node.metric(refusals) > 0).await;
    let refused = node.flood(b"{");
    assert!(refused > 100, "only {refused} connections");
    let with_refusals = size() - before - with_nonsense;

    assert!(with_nonsense < LOG_OF_A_FLOOD, "{with_nonsense} bytes for {sent} connections");
    assert!(with_refusals < LOG_OF_A_FLOOD, "{with_refusals} bytes for {refused} connections");
    let tunnels =
        node.events("tunnel").iter().map(|event| event["text"].to_string()).collect::<Vec<_>>();
    assert!(tunnels.iter().any(|text| text.contains("established, local")), "{tunnels:?}");
    let listed = node.events("refused");
    let invalid = listed.iter().find(|event| event["text"] == "connection closed: invalid_request");
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(invalid.and_then(|event| event["count"].as_u64()), Some(sent), "{listed:?}");

    // Nothing is lost: what was not logged by itself is in the sums.
    let counted = node.metric(refusals);
    drop((standing, held));
    node.process.signal("TERM");
    let (code, _) = node.process.end();
    assert_eq!(code, Some(0));
    let log = std::fs::read_to_string(&file).expect("a log");
    assert!(counted >= refused, "{counted} of {refused}");
    assert_eq!(told(&log, "connection refused"), counted, "{log}");
    assert!(log.contains(" from 127.0.0.1"), "{log}");
}
