//! Endpoints without WebSocket: bare bytes over TCP, TLS or a unix socket. And nodes that listen
//! in every way there is.

use std::net::SocketAddr;
use std::path::PathBuf;

use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::{LocalAddr, Node};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::Message;

use super::{Endpoint, FREE, Listening, soon, tls};

/// How an endpoint reaches a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    WebSocket,
    Tls,
    Tcp,
    Unix,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::Tls, Self::Tcp, Self::Unix];
    pub const STREAMS: [Self; 3] = [Self::Tls, Self::Tcp, Self::Unix];
}

/// Has a node listen in every way; the folder is for its unix socket.
pub fn everywhere(config: &mut Config, folder: &TempDir) {
    let path = folder.path().join(format!("{}.socket", config.node.name));
    config.listen = vec![
        Listen::WebSocket { address: FREE, tls: true },
        Listen::Tcp { address: FREE, tls: true },
        Listen::Tcp { address: FREE, tls: false },
        Listen::Unix { path },
    ];
}

impl Listening for SocketAddr {
    fn address(&self) -> SocketAddr {
        *self
    }
}

/// Where a node listens with this scheme.
pub fn ip(node: &Node, scheme: &str) -> SocketAddr {
    let of = |address: &LocalAddr| match address {
        LocalAddr::Ip { scheme: its, address } if *its == scheme => Some(*address),
        _ => None,
    };
    node.addresses().iter().find_map(of).expect("it listens so")
}

/// Where the node's unix socket is.
pub fn socket_of(node: &Node) -> PathBuf {
    let of = |address: &LocalAddr| match address {
        LocalAddr::Unix(path) => Some(path.clone()),
        LocalAddr::Ip { .. } => None,
    };
    node.addresses().iter().find_map(of).expect("it listens so")
}

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream of bytes to a node, without any knowledge of the protocol above it.
pub struct Stream {
    pub io: BufReader<Box<dyn Io>>,
}

impl Stream {
    pub async fn connect(node: &Node, way: Way) -> Self {
        let io: Box<dyn Io> = match way {
            Way::Tls => Box::new(tls(&ip(node, "tls")).await),
            Way::Tcp => Box::new(tcp(ip(node, "tcp")).await),
            Way::Unix => {
                let connecting = UnixStream::connect(socket_of(node));
                Box::new(soon("a unix socket", connecting).await.expect("connected"))
            }
            Way::WebSocket => panic!("no stream"),
        };
        Self::over(io)
    }

    pub fn over(io: Box<dyn Io>) -> Self {
        Self { io: BufReader::new(io) }
    }

    pub async fn send(&mut self, data: &[u8]) {
        soon("sending", self.io.write_all(data)).await.expect("sent");
        soon("sending", self.io.flush()).await.expect("sent");
    }

    /// Ends the direction to the node.
    pub async fn finish(&mut self) {
        soon("an end", self.io.shutdown()).await.expect("ended");
    }

    /// The next line, as the node writes its messages; `None` at the end.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = soon("a line", self.io.read_line(&mut line)).await.expect("open");
        (read > 0).then_some(line)
    }

    pub async fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        soon("data", self.io.read_exact(&mut data)).await.expect("open");
        data
    }

    /// Receives all data until the end.
    pub async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut data = Vec::new();
        soon("an end", self.io.read_to_end(&mut data)).await?;
        Ok(data)
    }
}

pub async fn tcp(address: SocketAddr) -> TcpStream {
    let tcp = soon("TCP", TcpStream::connect(address)).await.expect("TCP");
    tcp.set_nodelay(true).expect("TCP");
    tcp
}

/// An endpoint on any transport, with the same methods for all of them.
pub enum Client {
    WebSocket(Endpoint),
    Stream(Stream),
}

impl Client {
    pub async fn connect(node: &Node, way: Way) -> Self {
        match way {
            Way::WebSocket => Self::WebSocket(Endpoint::connect(&ip(node, "wss")).await),
            _ => Self::Stream(Stream::connect(node, way).await),
        }
    }

    pub async fn send(&mut self, text: &str) {
        match self {
            Self::WebSocket(endpoint) => endpoint.send(Message::text(text)).await,
            Self::Stream(stream) => stream.send(text.as_bytes()).await,
        }
    }

    /// The next message of the node's.
    pub async fn json(&mut self) -> Value {
        match self {
            Self::WebSocket(endpoint) => endpoint.json().await,
            Self::Stream(stream) => {
                let line = stream.line().await.expect("a message, not the end");
                assert!(line.ends_with("}\n"), "{line:?}");
                serde_json::from_str(&line).expect("JSON")
            }
        }
    }

    pub async fn authenticate(&mut self, params: &str) -> Value {
        self.send(&authenticate(params)).await;
        self.json().await
    }

    /// Authenticated, and waiting.
    pub async fn waiting(node: &Node, way: Way, params: &str) -> Self {
        let mut client = Self::connect(node, way).await;
        let answer = client.authenticate(params).await;
        assert_eq!(answer["status"], "success", "{answer}");
        client
    }

    pub async fn established(&mut self) -> Value {
        let notification = self.json().await;
        let name = notification["notification"].as_str().expect("a notification");
        assert!(name.ends_with("Established"), "{notification}");
        notification
    }

    /// Expects the end and no data; with this code, if the transport has close codes.
    pub async fn ended(&mut self, code: u16) {
        match self {
            Self::WebSocket(endpoint) => endpoint.closed_with(code).await,
            Self::Stream(stream) => {
                let rest = stream.rest().await;
                // An end that is not in order may be an error, and has no data.
                assert_eq!(rest.unwrap_or_default(), b"", "data in place of the end");
            }
        }
    }

    pub fn web_socket(self) -> Endpoint {
        match self {
            Self::WebSocket(endpoint) => endpoint,
            Self::Stream(_) => panic!("no WebSocket"),
        }
    }

    pub fn stream(self) -> Stream {
        match self {
            Self::Stream(stream) => stream,
            Self::WebSocket(_) => panic!("no stream"),
        }
    }
}

pub fn authenticate(params: &str) -> String {
    format!(r#"{{"id":0,"method":"Authentication.Authenticate","params":{{{params}}}}}"#) + "\n"
}

/// Two endpoints with a tunnel between them.
pub async fn tunnel(
    (one, one_way): (&Node, Way),
    (other, other_way): (&Node, Way),
    token: &str,
) -> (Client, Client) {
    let params = format!(r#""token":"{token}""#);
    let mut first = Client::waiting(one, one_way, &params).await;
    let mut second = Client::waiting(other, other_way, &params).await;
    first.established().await;
    second.established().await;
    (first, second)
}
