//! The node as a process under load: what it logs, what memory it takes, and how signals end it
//! while clients are connected.

mod support;

use std::fs;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::client::{ConnectError, Connector, Message, Tunnel, Waiting};
use nymea_remoteproxy::protocol::Token;
use support::{DEADLINE, Running, command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let in_time = timeout(DEADLINE, future).await;
    in_time.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

async fn waiting(url: &str, token: &str, nonce: Option<&str>) -> Waiting {
    let connector = Connector::new(url).expect("a URL").insecure();
    let token = Token::new(token);
    let connect = connector.connect(&token, nonce);
    soon("authentication", connect).await.expect("authenticated")
}

async fn tunnel(url: &str, token: &str, nonce: Option<&str>) -> (Tunnel, Tunnel) {
    let (first, second) = tokio::join!(waiting(url, token, nonce), waiting(url, token, nonce));
    let (first, second) =
        soon("the tunnel", async { tokio::join!(first.partner(), second.partner()) }).await;
    (first.expect("a tunnel"), second.expect("a tunnel"))
}

/// Whether nothing moves any more.
async fn blocked<T>(sending: impl Future<Output = T>) -> bool {
    timeout(Duration::from_millis(500), sending).await.is_err()
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let log = folder.path().join("node.log");
    let node = Running::start(&["-p", "0", "-vvv", "-l", log.to_str().expect("UTF-8")]);
    let everything = Running::of(command(&["-p", "0"]).env("REMOTEPROXY__LOG__FILTER", "trace"));
    for node in [&node, &everything] {
        let url = node.url();
        let (mut first, mut second) = tunnel(&url, "secret-token", Some("secret-nonce")).await;
        first.write_all(b"secret-payload").await.expect("open");
        let mut received = [0; 14];
        soon("the payload", second.read_exact(&mut received)).await.expect("open");
        drop(first);
        // Refused: they have no partner, or are the third.
        let _alone = waiting(&url, "secret-token", None).await;
        let _third = waiting(&url, "secret-token", Some("secret-nonce")).await;
        node.signal("TERM");
    }
    let (code, mut logged) = everything.end();
    assert_eq!(code, Some(0));
    let (_, with_flag) = node.end();
    logged += &with_flag;
    logged += &fs::read_to_string(log).expect("a log");
    assert!(logged.contains("DEBUG"), "there is something at that level");
    assert!(logged.contains("tunnel ended"));
    assert!(!logged.contains("secret-"), "{logged}");
}

#[tokio::test]
async fn a_signal_sends_waiting_clients_away_and_lets_tunnels_end() {
    let node = Running::start(&["-p", "0"]);
    let url = node.url();
    let alone = waiting(&url, "alone", None).await;
    let (mut first, mut second) = tunnel(&url, "t", None).await;
    node.signal("TERM");
    let refused = soon("the refusal", alone.partner()).await.expect_err("no partner");
    assert!(matches!(refused, ConnectError::GoingAway), "{refused:?}");
    first.write_all(b"still here").await.expect("open");
    let closing = tokio::spawn(async move { first.shutdown().await });
    let mut received = Vec::new();
    soon("the data", second.read_to_end(&mut received)).await.expect("a normal end");
    assert_eq!(received, b"still here");
    soon("the goodbye", closing).await.expect("no panic").expect("delivered");
    assert_eq!(node.end().0, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_node_now() {
    let node = Running::start(&["-p", "0"]);
    let (mut first, _second) = tunnel(&node.url(), "t", None).await;
    node.signal("INT");
    node.line("draining");
    node.signal("INT");
    assert_eq!(node.end().0, Some(0));
    let mut nothing = Vec::new();
    soon("the end", first.read_to_end(&mut nothing)).await.expect_err("cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_cost_bounded_memory() {
    const TUNNELS: usize = 8;
    const MESSAGE: usize = 64 * 1024;
    let node = Running::start(&["-p", "0"]);
    let url = node.url();
    let mut tunnels = Vec::new();
    for number in 0..TUNNELS {
        tunnels.push(tunnel(&url, &format!("token {number}"), None).await);
    }
    let before = node.resident();
    let message = Message::Binary(vec![7; MESSAGE].into());
    let mut sent = 0;
    for (first, _stalled) in &mut tunnels {
        while !blocked(first.send(message.clone())).await {
            sent += MESSAGE;
            assert!(sent < TUNNELS * (64 << 20), "taken for readers that read nothing");
        }
    }
    let grown = node.resident().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more for {} KiB sent", sent / 1024);
    // Everything is still there for a reader that wakes up.
    let (first, second) = tunnels.pop().expect("some");
    let (mut sink, _) = first.split();
    let closing = tokio::spawn(async move { sink.close().await });
    let (_, mut stream) = second.split();
    let mut received = 0;
    soon("all data", async {
        while let Some(message) = stream.next().await {
            let Message::Binary(data) = message.expect("a normal end") else { panic!("a text") };
            assert!(data.iter().all(|byte| *byte == 7));
            received += data.len();
        }
    })
    .await;
    assert!(received >= sent / TUNNELS / 4, "{received} of {sent}");
    soon("the goodbye", closing).await.expect("no panic").expect("delivered");
}

#[test]
fn a_log_that_nobody_reads_does_not_stall_the_node() {
    let mut node = command(&["-p", "0", "-vvv"])
        .env("REMOTEPROXY__LOG__FILTER", "trace")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("spawned");
    let stderr = node.stderr.take().expect("piped");
    let mut reader = std::io::BufReader::new(stderr);
    let url = loop {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).expect("a line");
        if let Some((_, address)) = line.split_once("listening on wss://") {
            break format!("wss://{}", address.trim());
        }
    };
    // From here on the pipe fills up.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        for round in 0..300 {
            let (mut first, mut second) = tunnel(&url, &format!("{round}"), None).await;
            first.write_all(b"x").await.expect("open");
            soon("the data", second.read_u8()).await.expect("open");
        }
    });
    node.kill().expect("killed");
    node.wait().expect("ended");
}
