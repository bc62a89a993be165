//! `nymea-remoteproxy-client` as users run it: real processes, pipes and exit codes.

use std::process::{Output, Stdio};
use std::time::Duration;

use nymea_remoteproxy::client::{Connector, Tunnel};
use nymea_remoteproxy::config::Config;
use nymea_remoteproxy::node::{Node, Prepared};
use nymea_remoteproxy::protocol::Token;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(DEADLINE, future).await;
    result.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

fn node_with(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::default();
    config.server.port = 0;
    change(&mut config);
    Prepared::new(config).expect("valid settings").start().expect("a free port")
}

fn node() -> Node {
    node_with(|_| {})
}

/// A client without an option for trust, with all of its streams piped.
fn bare(url: &str, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"));
    command.args(["--url", url]).args(options).env("REMOTEPROXY_TOKEN", "geheim");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn client(node: &Node, options: &[&str]) -> Child {
    let mut command = bare(&node.url(), options);
    command.args(["--fingerprint", &node.fingerprint().expect("TLS is on")]);
    command.spawn().expect("started")
}

/// Writes all input, closes it, and waits for the end.
async fn run(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().expect("piped");
    let writing = async move {
        // The client may have ended already; the exit code is checked.
        let _ = stdin.write_all(input).await;
    };
    let (output, ()) =
        soon("the client to end", async { tokio::join!(child.wait_with_output(), writing) }).await;
    let output = output.expect("ended");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("geheim"));
    output
}

/// Fails with this exit code and one line that contains this.
fn assert_fails(output: &Output, code: i32, text: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(text), "{error}");
    if code == 1 {
        let last = error.lines().last().expect("a line");
        assert!(last.starts_with("error: "), "{error}");
    }
}

fn assert_succeeds(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {error}", output.status);
}

/// The other end, without a command.
async fn endpoint(node: &Node) -> Tunnel {
    let connector = Connector::new(&node.url()).expect("valid").insecure();
    soon("a tunnel", async {
        let waiting = connector.connect(&Token::new("geheim"), None).await.expect("authenticated");
        waiting.partner().await.expect("the client")
    })
    .await
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[5]).collect()
}

#[tokio::test]
async fn a_file_goes_through_a_pipe() {
    let node = node();
    let data = pattern(30_000_001);
    let receiver = client(&node, &[]);
    let sender = client(&node, &["--progress"]);
    let (output, sent) = tokio::join!(run(receiver, b""), run(sender, &data));
    assert_succeeds(&sent);
    assert_succeeds(&output);
    assert!(output.stdout == data);
}

#[tokio::test]
async fn who_lingers_hears_the_answer() {
    let node = node();
    let asking = run(client(&node, &["--linger", "10s"]), b"question");
    let answering = async {
        let mut tunnel = endpoint(&node).await;
        let mut question = [0; 8];
        tunnel.read_exact(&mut question).await.expect("the question");
        tunnel.write_all(b"answer").await.expect("sent");
        tunnel.shutdown().await.expect("a normal end");
    };
    let (asked, ()) = tokio::join!(asking, soon("the answer", answering));
    assert_succeeds(&asked);
    assert_eq!(asked.stdout, b"answer");
}

#[tokio::test]
async fn what_the_other_did_not_wait_for_is_an_error() {
    let node = node();
    let sender = client(&node, &[]);
    let mut other = endpoint(&node).await;
    let leaving = async {
        other.read_u8().await.expect("a byte");
        // Leaves while there is more to come.
        let (mut reader, mut writer) = tokio::io::split(other);
        let mut sink = tokio::io::sink();
        let _ = tokio::join!(writer.shutdown(), tokio::io::copy(&mut reader, &mut sink));
    };
    let data = pattern(50_000_000);
    let (sent, ()) = tokio::join!(run(sender, &data), leaving);
    assert_fails(&sent, 1, "closed the tunnel before everything was sent");
}

#[tokio::test]
async fn who_leaves_an_idle_sender_does_no_harm() {
    let node = node();
    let mut child = client(&node, &[]);
    let mut stdin = child.stdin.take().expect("piped");
    let mut other = endpoint(&node).await;
    stdin.write_all(b"line").await.expect("taken");
    let mut line = [0; 4];
    soon("the line", other.read_exact(&mut line)).await.expect("received");
    // Long enough for the proxy to confirm the line, which cannot be observed here.
    let idle = tokio::time::timeout(Duration::from_secs(1), other.ended()).await;
    assert!(idle.is_err(), "ended by itself");
    soon("the end", other.shutdown()).await.expect("a normal end");
    // stdin is still open, and all of it has been delivered.
    let output = soon("the client to end", child.wait_with_output()).await.expect("ended");
    drop(stdin);
    assert_succeeds(&output);
}

#[tokio::test]
async fn a_cut_is_an_error_on_the_receiving_end() {
    let node = node();
    let receiving = run(client(&node, &[]), b"");
    let cutting = async {
        let mut tunnel = endpoint(&node).await;
        tunnel.write_all(b"half").await.expect("sent");
    };
    let (received, ()) = tokio::join!(receiving, cutting);
    assert_fails(&received, 1, "the other endpoint was lost");
    assert_eq!(received.stdout, b"half");
}

#[tokio::test]
async fn output_that_nobody_takes_is_an_error() {
    let node = node();
    let mut child = client(&node, &[]);
    drop(child.stdout.take());
    let sending = async {
        let mut tunnel = endpoint(&node).await;
        // Fails as soon as the client is gone.
        while tunnel.write_all(&[0; 1000]).await.is_ok() {}
    };
    let (received, ()) = tokio::join!(run(child, b""), soon("the end", sending));
    assert_fails(&received, 1, "cannot write the output");
}

#[tokio::test]
async fn tcp_goes_through_the_tunnel() {
    let node = node();
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = service.local_addr().expect("bound").to_string();
    let far = client(&node, &["--connect", &address]);
    let mut near = client(&node, &["--listen", "127.0.0.1:0", "-v"]);
    let mut log = BufReader::new(near.stderr.take().expect("piped")).lines();
    let listening = soon("the address", async {
        loop {
            let line = log.next_line().await.expect("text").expect("more lines");
            if let Some((_, address)) = line.split_once("address=") {
                return address.to_owned();
            }
        }
    })
    .await;
    let log = tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });

    let data = pattern(3_000_000);
    soon("the data", async {
        let mut local = TcpStream::connect(listening).await.expect("listening");
        let (mut remote, _) = service.accept().await.expect("dialled");
        let mut received = vec![0; data.len()];
        let (sent, read) = tokio::join!(local.write_all(&data), remote.read_exact(&mut received));
        sent.expect("sent");
        read.expect("received");
        assert!(received == data);
        remote.write_all(b"answer").await.expect("sent");
        drop(remote);
        let mut answer = Vec::new();
        local.read_to_end(&mut answer).await.expect("a normal end");
        assert_eq!(answer, b"answer");
    })
    .await;
    for mut child in [far, near] {
        assert!(soon("the client to end", child.wait()).await.expect("ended").success());
    }
    log.await.expect("no panic");
}

#[tokio::test]
async fn nothing_to_dial_is_an_error() {
    let node = node();
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = closed.local_addr().expect("bound").to_string();
    drop(closed);
    let dialling = run(client(&node, &["--connect", &address]), b"");
    let (dialled, mut other) = tokio::join!(dialling, endpoint(&node));
    assert_fails(&dialled, 1, &format!("cannot connect to {address}"));
    let end = soon("the end", other.read_u8()).await;
    assert_eq!(end.expect_err("lost").kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn round_trips_are_measured_on_both_ends() {
    let node = node();
    let options = ["--pingpong", "--interval", "0s", "--size", "1000", "--count"];
    let first = client(&node, &[&options[..], &["50"]].concat());
    let second = client(&node, &[&options[..], &["200"]].concat());
    let (first, second) = tokio::join!(run(first, b""), run(second, b""));
    for (output, count) in [(first, 50), (second, 200)] {
        assert_succeeds(&output);
        let report = String::from_utf8(output.stdout).expect("text");
        assert!(report.starts_with(&format!("{count} round trips: min ")), "{report}");
        assert!(report.contains("p99"), "{report}");
    }
}

#[tokio::test]
async fn each_failure_says_what_to_do() {
    let node = node_with(|config| config.timeouts.waiting = Duration::from_millis(100));
    let url = node.url();
    let nobody = run(client(&node, &[]), b"").await;
    assert_fails(&nobody, 1, "the other endpoint did not come; start it with the same token");

    let pinned =
        run(bare(&url, &["--fingerprint", &"0a".repeat(32)]).spawn().expect("started"), b"");
    assert_fails(&pinned.await, 1, &node.fingerprint().expect("TLS is on"));

    let other = rcgen::generate_simple_self_signed(["127.0.0.1".into()]).expect("a certificate");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), other.cert.pem()).expect("written");
    let ca = file.path().to_str().expect("text");
    let distrusting = run(bare(&url, &["--ca", ca]).spawn().expect("started"), b"").await;
    assert_fails(&distrusting, 1, "--fingerprint");

    let insecure = run(bare(&url, &["-i"]).spawn().expect("started"), b"").await;
    assert_fails(&insecure, 1, "warning: -i");

    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("ws://{}", closed.local_addr().expect("bound"));
    drop(closed);
    let refused = run(bare(&url, &[]).spawn().expect("started"), b"").await;
    assert_fails(&refused, 1, "check --url and whether the proxy runs");
}

#[tokio::test]
async fn waiting_means_to_come_back() {
    let node = node_with(|config| config.timeouts.waiting = Duration::from_millis(300));
    let mut waiting = client(&node, &["--wait", "1m", "-v"]);
    let mut log = BufReader::new(waiting.stderr.take().expect("piped")).lines();
    soon("a second try", async {
        while !log.next_line().await.expect("text").expect("more lines").contains("trying again") {}
    })
    .await;
    let log = tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let sender = client(&node, &["--wait", "1m"]);
    let (received, sent) = tokio::join!(run(waiting, b""), run(sender, b"found you"));
    assert_succeeds(&received);
    assert_succeeds(&sent);
    assert_eq!(received.stdout, b"found you");
    log.await.expect("no panic");
}

#[tokio::test]
async fn wrong_usage_is_told_apart() {
    let cases: &[(&[&str], &str)] = &[
        (&["--url", "https://example.com"], "wss://"),
        (&["--fingerprint", "12"], "64 hexadecimal digits"),
        (&["--listen", "a", "--connect", "b"], "cannot be used with"),
        (&["--count", "3"], "--pingpong"),
        (&["--wait", "soon"], "--wait"),
        (&["--uuid", "1"], "--uuid"),
    ];
    for (options, text) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"));
        let output = soon("the end", command.args(*options).output()).await.expect("ran");
        assert_fails(&output, 2, text);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"));
    command.env_remove("REMOTEPROXY_TOKEN");
    let output = soon("the end", command.output()).await.expect("ran");
    assert_fails(&output, 2, "--token-file");
}
