//! Names, UUIDs and addresses that clients and servers choose: in the log they are in one line, cut
//! when they are long, and do nothing to the terminal that shows them. So it is with the lists for
//! operators.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use nymea_remoteproxy::printable::Printable;
use serde_json::{Value, json};
use support::{Running, command};

/// A line that looks like one of the node's, and all that can be done to a terminal.
const FORGED: &str = "2026-01-01T00:00:00.000000Z ERROR forged: the disk is on fire";

fn hostile() -> String {
    let tricks = "\x1b[2J\x1b]0;title\x07\u{9b}31m\u{85}\u{2028}\u{202e}\u{2066}\r\0\x7f";
    format!("gw\n{FORGED}\n{tricks}{}", "x".repeat(3500))
}

/// Accepts each token, and gives its owner a hostile name.
fn authentication_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let owner = json!({"email": hostile(), "cognito:username": hostile()});
    let body = json!({"isValid": true, "verifiedData": {"verifiedParsedToken": owner}}).to_string();
    thread::spawn(move || {
        for mut tcp in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let _question = tcp.read(&mut request);
            let _gone = write!(tcp, "HTTP/1.0 200 OK\r\n\r\n{body}");
        }
    });
    url
}

struct Node {
    process: Running,
    plain: SocketAddr,
    admin: SocketAddr,
}

impl Node {
    fn start(log: &Path, format: &str) -> Self {
        let listen = r#"[{"kind":"tcp","address":"127.0.0.1:0","tls":false}]"#;
        let url = authentication_server();
        let mut command = command(&["-l", log.to_str().expect("UTF-8"), "-a", &url]);
        command
            .env("REMOTEPROXY__LISTEN", listen)
            .env("REMOTEPROXY__LOG__FORMAT", format)
            .env("REMOTEPROXY__LOG__FILTER", "trace");
        let process = Running::of(&mut command);
        let plain = address_in(&process.line("listening on tcp://"));
        let admin = address_in(&process.line("metrics on http://"));
        Self { process, plain, admin }
    }

    /// Sends a request, and gives the connection back when it is answered.
    fn ask(&self, method: &str, params: &Value) -> TcpStream {
        let mut tcp = TcpStream::connect(self.plain).expect("connected");
        let request = json!({"id": 1, "method": method, "params": params});
        writeln!(tcp, "{request}").expect("sent");
        let mut answer = String::new();
        BufReader::new(&tcp).read_line(&mut answer).expect("an answer");
        assert!(answer.contains("success"), "{answer}");
        tcp
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
}

fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("://").expect("a URL");
    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
    address[..end.unwrap_or(address.len())].parse().expect("an address")
}

/// Everybody has a hostile name; gives the log of all that.
fn log_of_hostile_names(format: &str) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("node.log");
    let node = Node::start(&file, format);
    let (gateway, name) = ("11111111-1111-1111-1111-111111111111", hostile());
    let registered =
        node.ask("TunnelProxy.RegisterServer", &json!({"serverName": name, "serverUuid": gateway}));
    let app = "22222222-2222-2222-2222-222222222222";
    let params = json!({"clientName": name, "clientUuid": app, "serverUuid": gateway});
    let attached = node.ask("TunnelProxy.RegisterClient", &params);
    let authenticate = |uuid: &str| {
        let params = json!({"token": "t", "name": name, "uuid": format!("{uuid}{name}")});
        node.ask("Authentication.Authenticate", &params)
    };
    let paired = (authenticate("one"), authenticate("other"));
    node.process.line("\"local\"");

    for path in ["/api/v1/gateways", "/api/v1/tunnels", "/api/v1/events", "/metrics"] {
        let answer = node.get(path);
        assert!(answer.chars().all(|it| it == '\n' || Printable::is_plain(it)), "{path}: {answer}");
        assert!(!answer.contains(&"x".repeat(200)), "{path} has the whole name: {answer}");
    }
    let tunnels: Value = serde_json::from_str(&node.get("/api/v1/tunnels")).expect("JSON");
    let shown = tunnels["tunnels"][0]["first"]["name"].as_str().expect("a name");
    assert!(shown.starts_with(r"gw\n2026-01-01"), "{shown}");

    drop((registered, attached, paired));
    node.process.signal("TERM");
    let (code, stderr) = node.process.end();
    assert_eq!(code, Some(0));
    stderr + &std::fs::read_to_string(&file).expect("a log")
}

fn check(log: &str) {
    for line in log.lines() {
        assert!(!line.starts_with("2026-01-01T"), "a forged line: {line}");
        assert!(line.chars().all(Printable::is_plain), "{line:?}");
        assert!(line.chars().count() < 4000, "a line of {} bytes", line.len());
    }
    assert!(!log.contains(&"x".repeat(3000)), "a whole name");
    assert!(log.contains("gateway registered") && log.contains("authenticated"), "{log}");
}

#[test]
fn a_name_forges_no_line_of_a_log_for_people() {
    let log = log_of_hostile_names("human");
    check(&log);
    let registered = log.lines().find(|line| line.contains("gateway registered")).expect("a line");
    assert!(registered.contains(r#"name="gw\\n2026-01-01"#), "{registered}");
}

#[test]
fn a_name_does_nothing_to_a_terminal_that_shows_json_lines() {
    let log = log_of_hostile_names("json");
    check(&log);
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|it| it.is_object()), "{line}");
    }
}
