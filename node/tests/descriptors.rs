//! A node without free file descriptors: clients notice, operators and tunnels do not.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use nymea_remoteproxy::client::{Connector, Tunnel};
use nymea_remoteproxy::protocol::Token;
use support::{DEADLINE, Running, command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A node that may have so few files open.
fn node(files: u32) -> Running {
    let inner = command(&["-p", "0"]);
    let mut limited = Command::new("sh");
    let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
    limited.arg("-c").arg(script).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    Running::of(&mut limited)
}

async fn tunnel(url: &str, token: &str) -> (Tunnel, Tunnel) {
    let connector = Connector::new(url).expect("a URL").insecure();
    let token = Token::new(token);
    let both = async {
        let first = connector.connect(&token, None).await.expect("authenticated");
        let second = connector.connect(&token, None).await.expect("authenticated");
        let (first, second) = tokio::join!(first.partner(), second.partner());
        (first.expect("a tunnel"), second.expect("a tunnel"))
    };
    timeout(DEADLINE, both).await.expect("a tunnel in time")
}

async fn get(address: &str, path: &str) -> String {
    let asked = async {
        let mut tcp = TcpStream::connect(address).await.expect("connected");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    timeout(Duration::from_secs(5), asked).await.unwrap_or_else(|_| panic!("no answer to {path}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_answered_and_tunnels_go_on_when_no_descriptors_are_left_for_clients() {
    for first_bytes in [&b""[..], b"\x16\x03\x01"] {
        let node = node(128);
        let url = node.url();
        let url = url.strip_prefix("wss://").expect("a URL");
        let line = node.line("status page, API and metrics on http://");
        let admin = line.rsplit("http://").next().expect("an address").trim().trim_end_matches('/');
        let (mut first, mut second) = tunnel(&format!("wss://{url}"), "before").await;
        let mut strangers = Vec::new();
        for _ in 0..400 {
            let Ok(mut tcp) = TcpStream::connect(url).await else { continue };
            if tcp.write_all(first_bytes).await.is_ok() {
                strangers.push(tcp);
            }
        }
        let since = Instant::now();
        loop {
            let ready = get(admin, "/readyz").await;
            let metrics = get(admin, "/metrics").await;
            assert!(metrics.contains("\nremoteproxy_file_descriptors_open "), "{metrics}");
            assert!(get(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
            first.write_all(b"over").await.expect("open");
            first.flush().await.expect("open");
            let mut received = [0; 4];
            second.read_exact(&mut received).await.expect("open");
            // With silent connections, there are always some left for who sends something.
            if first_bytes.is_empty()
                || ready.contains("file descriptors are used up (128 allowed)")
            {
                break;
            }
            assert!(since.elapsed() < DEADLINE, "{ready}");
            sleep(Duration::from_millis(50)).await;
        }
        drop(strangers);
        let _after = tunnel(&format!("wss://{url}"), "after").await;
    }
}
