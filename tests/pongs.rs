//! A client that takes its data slowly still gets the answers to its pings soon: they wait for what
//! is in the system's buffers, and not for all that is to be sent.

mod support;

use std::time::{Duration, Instant};

use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::Node;
use support::cluster::Cluster;
use support::raw::{client, server};
use support::stream::{Io, Stream, Way, ip};
use support::tunnel_proxy::call;
use support::{FREE, node_with, soon, tls_over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::sleep;

/// What a slow client reads at once, and how often: 50 KB/s.
const READ: usize = 2500;
const PAUSE: Duration = Duration::from_millis(50);
/// What its system takes before it reads.
const SYSTEM: u32 = 16 * 1024;
/// How long it is flooded before it pings: then all buffers are full.
const FLOOD: Duration = Duration::from_secs(3);
/// At 50 KB/s, what may be in front of an answer takes half as long.
const SOON: Duration = Duration::from_secs(5);

fn listen_everywhere(config: &mut Config) {
    config.listen = vec![
        Listen::WebSocket { address: FREE, tls: false },
        Listen::WebSocket { address: FREE, tls: true },
        Listen::Tcp { address: FREE, tls: false },
    ];
    config.tunnel_proxy.enabled = Some(true);
}

/// A WebSocket of single frames.
struct Client {
    io: Box<dyn Io>,
    read: Vec<u8>,
    is_slow: bool,
}

impl Client {
    async fn connect(node: &Node, scheme: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(SYSTEM).expect("a small buffer");
        let tcp = soon("TCP", socket.connect(ip(node, scheme))).await.expect("TCP");
        tcp.set_nodelay(true).expect("TCP");
        let io: Box<dyn Io> =
            if scheme == "wss" { Box::new(tls_over(tcp).await) } else { Box::new(tcp) };
        let mut client = Self { io, read: Vec::new(), is_slow: false };
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.io.write_all(request.as_bytes()).await.expect("sent");
        while !client.read.ends_with(b"\r\n\r\n") {
            client.fill().await;
        }
        client.read.clear();
        client
    }

    /// Sends a text message, and gives the answer.
    async fn ask(&mut self, request: &str) -> String {
        let length = u16::try_from(request.len()).expect("short").to_be_bytes();
        let header = [&[0x81, 0x80 | 0x7e], &length[..], &[0; 4]].concat();
        self.send(&[&header, request.as_bytes()].concat()).await;
        self.text().await
    }

    async fn text(&mut self) -> String {
        let (first, payload) = soon("an answer", self.frame()).await;
        assert_eq!(first, 0x81);
        String::from_utf8(payload).expect("UTF-8")
    }

    async fn send(&mut self, frame: &[u8]) {
        self.io.write_all(frame).await.expect("sent");
        self.io.flush().await.expect("sent");
    }

    async fn fill(&mut self) {
        let mut buffer = [0; READ];
        let read = self.io.read(&mut buffer).await.expect("open");
        assert!(read > 0, "the connection ended");
        self.read.extend_from_slice(&buffer[..read]);
        if self.is_slow {
            sleep(PAUSE.mul_f64(f64::from(u32::try_from(read).expect("small")) / 2500.0)).await;
        }
    }

    /// The next frame: its first byte, and its payload.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some((header, length)) = header(&self.read)
                && self.read.len() >= header + length
            {
                let rest = self.read.split_off(header + length);
                let frame = std::mem::replace(&mut self.read, rest);
                return (frame[0], frame[header..].to_vec());
            }
            self.fill().await;
        }
    }

    /// How long it takes until a ping is answered, while a lot of data is read slowly.
    async fn time_of_pong(&mut self) -> Duration {
        self.is_slow = true;
        let since = Instant::now();
        while since.elapsed() < FLOOD {
            self.frame().await;
        }
        let since = Instant::now();
        self.send(b"\x89\x82\0\0\0\0hi").await;
        let (_, payload) = soon("the answer to a ping", async {
            loop {
                let frame = self.frame().await;
                if frame.0 == 0x8a {
                    return frame;
                }
            }
        })
        .await;
        assert_eq!(payload, b"hi");
        since.elapsed()
    }
}

/// The sizes of a frame's header and payload, if the header is there.
fn header(read: &[u8]) -> Option<(usize, usize)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    match *read.get(1)? {
        126 => Some((4, number(read.get(2..4)?))),
        127 => Some((10, number(read.get(2..10)?))),
        length => Some((2, length.into())),
    }
}

fn authenticate(token: &str) -> String {
    format!(r#"{{"id":0,"method":"Authentication.Authenticate","params":{{"token":"{token}"}}}}"#)
}

/// A slow client at one node, flooded by its partner at another one.
async fn flooded_endpoint(near: &Node, far: &Node, scheme: &str) -> Duration {
    let token = format!("{scheme} {}", near.address_of(far));
    let mut slow = Client::connect(near, scheme).await;
    assert!(slow.ask(&authenticate(&token)).await.contains("success"));
    let mut partner = Client::connect(far, "ws").await;
    assert!(partner.ask(&authenticate(&token)).await.contains("success"));
    assert!(slow.text().await.contains("Established"));
    let mut message = vec![0x82, 0x80 | 127];
    message.extend(60_000_u64.to_be_bytes());
    message.extend([0; 4]);
    message.extend(vec![7; 60_000]);
    tokio::select! {
        time = slow.time_of_pong() => time,
        () = async { loop { partner.send(&message).await } } => unreachable!("it goes on"),
    }
}

/// A slow gateway, flooded by its app at another node.
async fn flooded_gateway(near: &Node, far: &Node, number: u128) -> Duration {
    let mut slow = Client::connect(near, "ws").await;
    assert!(slow.ask(&call("RegisterServer", &server(number))).await.contains("NoError"));
    let mut app = Stream::connect(far, Way::Tcp).await;
    app.send(call("RegisterClient", &client(number + 1, number)).as_bytes()).await;
    assert!(app.line().await.expect("an answer").contains("NoError"));
    tokio::select! {
        time = slow.time_of_pong() => time,
        () = async {
            // Slower than any deadline of sending.
            while app.io.write_all(&[7; 10_000]).await.is_ok() {}
        } => panic!("the app was closed"),
    }
}

trait Pair {
    fn address_of(&self, other: &Self) -> String;
}

impl Pair for Node {
    fn address_of(&self, other: &Self) -> String {
        format!("{} {}", ip(self, "ws"), ip(other, "ws"))
    }
}

#[expect(clippy::print_stderr, reason = "shown when a test fails")]
fn check(times: &[Duration]) {
    eprintln!("pongs after {times:?}");
    assert!(times.iter().all(|time| *time < SOON), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_its_pongs_soon() {
    let node = node_with(listen_everywhere);
    let (plain, secure, gateway) = tokio::join!(
        flooded_endpoint(&node, &node, "ws"),
        flooded_endpoint(&node, &node, "wss"),
        flooded_gateway(&node, &node, 1),
    );
    check(&[plain, secure, gateway]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_its_pongs_soon_over_two_nodes() {
    let cluster = Cluster::start_with(2, listen_everywhere).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let (first, second, gateway) = tokio::join!(
        flooded_endpoint(a, b, "ws"),
        flooded_endpoint(b, a, "wss"),
        flooded_gateway(a, b, 11),
    );
    check(&[first, second, gateway]);
}
