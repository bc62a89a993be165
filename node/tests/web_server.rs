//! A web server that a NAT hides, reached by many clients at once: real processes of the node, the
//! gateway, the app and Python's web server.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Running, command};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(90);
const UUID: &str = "6c5f1d2e-4b3a-4c7d-9e8f-0123456789ab";
const FILE: usize = 3_000_000;
const CLIENTS: usize = 32;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = timeout(DEADLINE, future).await;
    result.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// All bytes of all values, none where one would guess it.
fn content() -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..FILE).map(|_| next()).collect()
}

/// A node with a certificate that outlives it: the same after it was started again.
struct Place {
    directory: TempDir,
    websocket: u16,
    tcp: u16,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("signed");
        let place = Self { directory, websocket: free_port(), tcp: free_port() };
        std::fs::write(place.file("cert.pem"), signed.cert.pem()).expect("written");
        std::fs::write(place.file("key.pem"), signed.signing_key.serialize_pem()).expect("written");
        let listen = |kind, port| {
            format!("[[listen]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:{port}\"\ntls = true\n")
        };
        let settings = listen("websocket", place.websocket) + &listen("tcp", place.tcp);
        std::fs::write(place.file("node.toml"), settings).expect("written");
        place
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn node(&self) -> Running {
        let node = Running::of(&mut command(&[
            "--config",
            &self.file("node.toml"),
            "--certificate",
            &self.file("cert.pem"),
            "--certificate-key",
            &self.file("key.pem"),
        ]));
        node.line("listening on tls://");
        node
    }

    fn url(&self, scheme: &str) -> String {
        let port = if scheme == "wss" { self.websocket } else { self.tcp };
        format!("{scheme}://127.0.0.1:{port}")
    }

    fn client(&self, url: &str, options: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"));
        command.env_remove("REMOTEPROXY_TOKEN").args(["-v", "--ca", &self.file("cert.pem")]);
        Running::of(command.args(["--url", url]).args(options).stdin(Stdio::null()))
    }

    fn gateway(&self, scheme: &str, to: SocketAddr) -> Running {
        let to = to.to_string();
        let url = self.url(scheme);
        let gateway = self.client(&url, &["--gateway", "--uuid", UUID, "--connect", &to]);
        gateway.line("registered");
        gateway
    }

    /// An app and where it listens.
    fn app(&self, scheme: &str) -> (Running, SocketAddr) {
        let url = self.url(scheme);
        let options = ["--app", "--server-uuid", UUID, "--listen", "127.0.0.1:0"];
        let app = self.client(&url, &options);
        let line = app.line("listening address=");
        let address = line.rsplit("address=").next().expect("an address").trim();
        (app, address.parse().expect("an address"))
    }
}

/// Python's web server, for the files of a directory.
fn web_server(directory: &Path) -> (Running, SocketAddr) {
    let port = free_port();
    let mut python = Command::new("python3");
    python.args(["-u", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"]);
    python.arg("--directory").arg(directory).stdout(Stdio::null()).stdin(Stdio::null());
    (Running::of(&mut python), SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// What a web server answers, without the headers.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut tcp = TcpStream::connect(address).await?;
    tcp.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await?;
    let headers = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let headers = headers.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(answer.split_off(headers + 4))
}

async fn many(address: SocketAddr, content: &[u8]) {
    let clients = (0..CLIENTS).map(|_| tokio::spawn(get(address, "/big.bin")));
    for client in clients.collect::<Vec<_>>() {
        let body = soon("a file", client).await.expect("no panic").expect("an answer");
        assert!(body == content, "{} bytes of {}", body.len(), content.len());
    }
}

/// Until it answers.
async fn get_at_last(address: SocketAddr) -> Vec<u8> {
    soon("an answer", async {
        loop {
            if let Ok(body) = get(address, "/big.bin").await {
                return body;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_web_server_behind_a_nat_serves_many_at_once_and_again_after_a_restart() {
    let place = Place::new();
    let content = content();
    let files = TempDir::new().expect("a directory");
    std::fs::write(files.path().join("big.bin"), &content).expect("written");
    let (_python, server) = web_server(files.path());
    assert!(get_at_last(server).await == content);

    let node = place.node();
    let gateway = place.gateway("tls", server);
    let apps = [place.app("wss"), place.app("tls")];
    for (_, address) in &apps {
        many(*address, &content).await;
    }

    drop(node);
    let refused = get(apps[0].1, "/big.bin").await;
    assert!(refused.is_err(), "there is no node");
    let _node = place.node();
    gateway.line("registered again");
    for (_, address) in &apps {
        assert!(soon("the file", get(*address, "/big.bin")).await.expect("an answer") == content);
    }
    drop(gateway);

    // Over WebSocket likewise.
    let _gateway = place.gateway("wss", server);
    many(apps[1].1, &content).await;
}

#[tokio::test]
async fn the_end_of_either_side_comes_behind_all_data() {
    let place = Place::new();
    let _node = place.node();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let _gateway = place.gateway("tls", listener.local_addr().expect("bound"));
    for scheme in ["wss", "tls"] {
        let (_app, address) = place.app(scheme);
        // The client has sent everything, and is answered nevertheless.
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"question").await.expect("sent");
        client.shutdown().await.expect("sent");
        let (mut server, _) = soon("a connection", listener.accept()).await.expect("accepted");
        let mut question = [0; 8];
        soon("the question", server.read_exact(&mut question)).await.expect("received");
        assert_eq!(&question, b"question");
        let answer = content();
        server.write_all(&answer).await.expect("sent");
        drop(server);
        let mut received = Vec::new();
        soon("the answer", client.read_to_end(&mut received)).await.expect("a normal end");
        assert!(received == answer, "{} bytes", received.len());

        // The client leaves, and the server gets to know.
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(&answer).await.expect("sent");
        drop(client);
        let (mut server, _) = soon("a connection", listener.accept()).await.expect("accepted");
        let mut received = Vec::new();
        soon("the end", server.read_to_end(&mut received)).await.expect("a normal end");
        assert!(received == answer, "{} bytes", received.len());
    }
}

#[test]
fn wrong_usage_is_told() {
    let usage = |options: &[&str], error: &str| {
        let mut client = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-client"));
        let output =
            client.env_remove("REMOTEPROXY_TOKEN").args(options).output().expect("it runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(error), "{message}");
    };
    usage(&["--gateway", "--uuid", UUID], "--connect <ADDRESS>");
    usage(&["--gateway", "--connect", "a:1"], "--uuid <UUID>");
    usage(&["--app", "--listen", "a:1"], "--server-uuid <UUID>");
    usage(&["--app", "--server-uuid", UUID], "--listen <ADDRESS>");
    usage(&["--server-uuid", UUID], "--app");
    usage(&["--app", "--gateway", "--listen", "a:1"], "cannot be used with");
    let app = ["--app", "--server-uuid", UUID, "--listen", "a:1"];
    usage(&[&app[..], &["--uuid", UUID]].concat(), "cannot be used with");
    usage(&[&app[..], &["--nonce", "n"]].concat(), "cannot be used with");
    usage(&["--url", "tcp://127.0.0.1:1", "-t", "t"], "must begin with wss:// or ws://");
    usage(&["--url", "http://127.0.0.1:1", "-t", "t"], "the URL must begin with");
    usage(&["--gateway", "--uuid", "x", "--connect", "a:1"], "invalid value 'x'");
}
