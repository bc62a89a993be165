//! A page in a real browser that talks to a real node: two WebSockets of it are paired by a token,
//! and one attaches to a gateway.

#[path = "../../tests/support/mod.rs"]
mod endpoints;
mod support;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use endpoints::redis::free_port;
use endpoints::tunnel_proxy::{Frames, call, frame, uuid};
use support::{Running, command};

const GATEWAY: u128 = 1;
/// All of it: the browser starts, and moves some megabytes.
const DEADLINE: Duration = Duration::from_mins(2);
/// Up to this, a gateway sends each byte in a frame of its own.
const SHORT: usize = 300;

/// A node with two listeners: WebSocket and a byte stream.
struct Node {
    process: Running,
    web_socket: SocketAddr,
    stream: SocketAddr,
    _settings: TempDir,
}

impl Node {
    fn start() -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (web_socket, stream) = (address(), address());
        let settings = TempDir::new().expect("a directory");
        let file = settings.path().join("node.toml");
        let text = format!(
            "[[listen]]\nkind = \"websocket\"\naddress = \"{web_socket}\"\ntls = false\n\
             [[listen]]\nkind = \"tcp\"\naddress = \"{stream}\"\ntls = false\n"
        );
        std::fs::write(&file, text).expect("written");
        let process = Running::of(command(&[]).arg("--config").arg(file));
        process.line("listening on");
        Self { process, web_socket, stream, _settings: settings }
    }
}

/// Registers as a gateway.
async fn register(node: SocketAddr) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(node).await.expect("connected"));
    let params = json!({ "serverName": "echo", "serverUuid": uuid(GATEWAY) });
    let request = call("RegisterServer", &params) + "\n";
    stream.get_mut().write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_line(&mut answer).await.expect("an answer");
    assert!(answer.contains("TunnelProxyErrorNoError"), "{answer}");
    stream
}

/// Sends data of apps back to them until the node ends.
async fn echo(mut stream: BufReader<TcpStream>) {
    let mut frames = Frames::default();
    let mut piece = vec![0; 65_536];
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        for (address, data) in frames.push(&piece[..read]) {
            if address == 0 {
                continue;
            }
            let size = if data.len() <= SHORT { 1 } else { data.len() };
            let back: Vec<u8> =
                data.chunks(size.max(1)).flat_map(|piece| frame(address, piece)).collect();
            if stream.get_mut().write_all(&back).await.is_err() {
                return;
            }
        }
    }
}

/// Serves the page, and returns the channel of what it reports.
async fn serve_page() -> (SocketAddr, Receiver<String>) {
    let (results, receiver) = channel(1);
    let page = get(async || Html(include_str!("browser/page.html")));
    let result = post(async move |body: String| {
        let _nobody_waits = results.send(body).await;
    });
    let router = Router::new().route("/", page).route("/result", result);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, receiver)
}

fn browse(url: &str, profile: &TempDir, node: SocketAddr) -> Child {
    Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-dev-shm-usage", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        // Some ports are not for browsers.
        .arg(format!("--explicitly-allowed-ports={}", node.port()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("this test needs chromium; tests/run installs it")
}

#[tokio::test]
async fn a_page_pairs_two_web_sockets_and_attaches_to_a_gateway() {
    let node = Node::start();
    let gateway = tokio::spawn(echo(register(node.stream).await));
    let (page, mut results) = serve_page().await;
    let url = format!("http://{page}/?node=ws://{}/&gateway={}", node.web_socket, uuid(GATEWAY));
    let profile = TempDir::new().expect("a directory");
    let mut browser = browse(&url, &profile, node.web_socket);
    let result = tokio::select! {
        result = timeout(DEADLINE, results.recv()) => result,
        ended = browser.wait() => panic!("chromium has ended: {ended:?}"),
    };
    let result = result.expect("in time").expect("a result");
    browser.kill().await.expect("killed");
    assert_eq!(result, "paired\nattached\n");
    node.process.signal("TERM");
    timeout(DEADLINE, gateway).await.expect("in time").expect("no panic");
}
