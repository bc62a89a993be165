//! Clients on every transport, byte for byte.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::tunnel_proxy::{Frames, call, frame, uuid};
use super::{Listening, soon, tls};

/// An address that is listened on.
struct At(SocketAddr);

impl Listening for At {
    fn address(&self) -> SocketAddr {
        self.0
    }
}

async fn tcp(address: SocketAddr) -> TcpStream {
    let tcp = soon("TCP", TcpStream::connect(address)).await.expect("TCP");
    tcp.set_nodelay(true).expect("TCP");
    tcp
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

enum Io {
    Stream(Box<dyn Stream>),
    WebSocket(Box<WebSocketStream<TcpStream>>),
}

/// Data that arrived in one piece.
#[derive(Clone, PartialEq)]
pub enum Piece {
    /// Bytes of a stream; where they are cut means nothing.
    Bytes(Vec<u8>),
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
}

impl Piece {
    pub fn payload(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) | Self::Binary(bytes) => bytes,
            Self::Text(text) => text.into_bytes(),
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Bytes(_) => "bytes",
            Self::Text(_) => "text",
            Self::Binary(_) => "binary",
        };
        write!(f, "{kind} {:?}", String::from_utf8_lossy(&self.clone().payload()))
    }
}

/// A connection, without any knowledge of the protocol above it.
pub struct Client {
    io: Io,
    /// What has come with what was asked for.
    held: Vec<u8>,
}

impl Client {
    pub async fn tcp(address: SocketAddr) -> Self {
        Self::new(Io::Stream(Box::new(tcp(address).await)))
    }

    pub async fn tls(address: SocketAddr) -> Self {
        Self::new(Io::Stream(Box::new(tls(&At(address)).await)))
    }

    pub async fn unix(path: &Path) -> Self {
        let unix = soon("a connection", UnixStream::connect(path)).await;
        Self::new(Io::Stream(Box::new(unix.expect("a socket"))))
    }

    pub async fn web_socket(address: SocketAddr) -> Self {
        let upgrade = client_async("ws://localhost/", tcp(address).await);
        let (ws, _) = Box::pin(soon("upgrade", upgrade)).await.expect("upgrade");
        Self::new(Io::WebSocket(Box::new(ws)))
    }

    fn new(io: Io) -> Self {
        Self { io, held: Vec::new() }
    }

    /// Sends text, which is also bytes.
    pub async fn say(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends bytes.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec())).await;
    }

    async fn send(&mut self, message: Message) {
        let sent = match &mut self.io {
            Io::Stream(stream) => {
                let bytes = message.into_data();
                let sending = async {
                    stream.write_all(&bytes).await?;
                    stream.flush().await
                };
                soon("sending", sending).await.map_err(|error| error.to_string())
            }
            Io::WebSocket(ws) => {
                soon("sending", ws.send(message)).await.map_err(|error| error.to_string())
            }
        };
        sent.expect("sent");
    }

    /// Receives the next piece; `None` at the end.
    pub async fn piece(&mut self) -> Option<Piece> {
        if !self.held.is_empty() {
            return Some(Piece::Bytes(std::mem::take(&mut self.held)));
        }
        match &mut self.io {
            Io::Stream(stream) => {
                let mut bytes = vec![0; 4096];
                let read = soon("bytes", stream.read(&mut bytes)).await.unwrap_or(0);
                bytes.truncate(read);
                (read > 0).then_some(Piece::Bytes(bytes))
            }
            Io::WebSocket(ws) => loop {
                match soon("a message", ws.next()).await {
                    Some(Ok(Message::Text(text))) => return Some(Piece::Text(text.to_string())),
                    Some(Ok(Message::Binary(bytes))) => return Some(Piece::Binary(bytes.into())),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            },
        }
    }

    /// The next message of the proxy: a line of JSON, on WebSocket a text message.
    pub async fn message(&mut self) -> Value {
        let mut line = Vec::new();
        while !line.contains(&b'\n') {
            let piece = self.piece().await.expect("a message, not the end");
            assert!(!matches!(piece, Piece::Binary(_)), "a message in a binary one: {piece:?}");
            line.extend(piece.payload());
        }
        let end = line.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        self.held = line.split_off(end);
        assert!(line.ends_with(b"}\n"), "{:?}", String::from_utf8_lossy(&line));
        serde_json::from_slice(&line).expect("JSON")
    }

    /// So many bytes of payload.
    pub async fn payload(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            let piece = self.piece().await;
            let piece = piece.unwrap_or_else(|| panic!("the end after {} bytes", all.len()));
            all.extend(piece.payload());
        }
        self.held = all.split_off(length);
        all
    }

    /// The end must come next.
    pub async fn ends(&mut self) {
        assert_eq!(self.piece().await, None);
    }

    /// Leaves in order.
    pub async fn leave(&mut self) {
        match &mut self.io {
            Io::Stream(stream) => drop(soon("leaving", stream.shutdown()).await),
            Io::WebSocket(ws) => {
                soon("leaving", ws.send(Message::Close(None))).await.expect("closed");
            }
        }
    }

    /// Sends a request, and gives the response.
    pub async fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.say(&call(method, params)).await;
        self.message().await
    }

    /// Asks who the server is.
    pub async fn hello(&mut self) -> Value {
        self.say(r#"{"id":3,"method":"RemoteProxy.Hello"}"#).await;
        self.message().await
    }

    /// Sends a request, and gives the error in its response, which is a success all the same.
    pub async fn error(&mut self, method: &str, params: &Value) -> String {
        error_in(&self.ask(method, params).await)
    }

    /// Registers as a gateway.
    pub async fn gateway(mut self, number: u128) -> Gateway {
        let answer = self.ask("RegisterServer", &server(number)).await;
        assert_eq!(error_in(&answer), "NoError");
        Gateway { client: self, frames: Frames::default(), events: VecDeque::new() }
    }

    /// Attaches as an app.
    pub async fn app(mut self, number: u128, gateway: u128) -> Self {
        assert_eq!(self.error("RegisterClient", &client(number, gateway)).await, "NoError");
        self
    }
}

/// The error in a response, without what they all begin with.
pub fn error_in(answer: &Value) -> String {
    assert_eq!((&answer["id"], &answer["status"]), (&json!(7), &json!("success")), "{answer}");
    let error = answer["params"]["tunnelProxyError"].as_str().expect("an error");
    error.strip_prefix("TunnelProxyError").expect("an error of the tunnel proxy").to_owned()
}

/// The params of a gateway that registers.
pub fn server(number: u128) -> Value {
    json!({ "serverName": "the gateway", "serverUuid": uuid(number) })
}

/// The params of an app that attaches.
pub fn client(number: u128, gateway: u128) -> Value {
    json!({ "clientName": "the app", "clientUuid": uuid(number), "serverUuid": uuid(gateway) })
}

/// What a gateway gets.
#[derive(Debug, PartialEq)]
pub enum Event {
    Message(Value),
    Data(u16, Vec<u8>),
}

/// A registered gateway.
pub struct Gateway {
    pub client: Client,
    frames: Frames,
    events: VecDeque<Event>,
}

impl Gateway {
    /// Sends a frame.
    pub async fn send(&mut self, address: u16, data: &[u8]) {
        self.client.bytes(&frame(address, data)).await;
    }

    /// Receives the next event; `None` at the end. On WebSocket, it must be in binary messages.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let piece = self.client.piece().await?;
            assert!(!matches!(piece, Piece::Text(_)), "frames in a text message: {piece:?}");
            let frames = self.frames.push(&piece.payload());
            self.events.extend(frames.into_iter().map(|(address, data)| match address {
                0 => Event::Message(message_of(&data)),
                _ => Event::Data(address, data),
            }));
        }
    }

    /// The next must be a message of the proxy.
    pub async fn message(&mut self) -> Value {
        match self.event().await {
            Some(Event::Message(message)) => message,
            other => panic!("no message: {other:?}"),
        }
    }

    /// Sends a request to the proxy, and gives the response.
    pub async fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.send(0, call(method, params).as_bytes()).await;
        self.message().await
    }

    /// The next must be this notification; its params.
    pub async fn notification(&mut self, name: &str) -> Value {
        let message = self.message().await;
        assert_eq!(message["notification"], format!("TunnelProxy.{name}"), "{message}");
        assert!(message["id"].is_i64(), "{message}");
        message["params"].clone()
    }

    /// The next must say that an app is there; its address.
    pub async fn connected(&mut self) -> u16 {
        let params = self.notification("ClientConnected").await;
        let address = params["socketAddress"].as_u64().expect("an address");
        let address = u16::try_from(address).expect("an address");
        assert!((1..=0xFFFE).contains(&address), "{address}");
        address
    }

    /// The next must say that this app is gone.
    pub async fn disconnected(&mut self, address: u16) {
        let params = self.notification("ClientDisconnected").await;
        assert_eq!(params, json!({ "socketAddress": address }));
    }

    /// So much data of one app; nothing else may come.
    pub async fn data(&mut self, from: u16, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            match self.event().await {
                Some(Event::Data(address, data)) if address == from => all.extend(data),
                other => panic!("not of {from}: {other:?}"),
            }
        }
        all
    }

    /// The end must come next.
    pub async fn ends(&mut self) {
        assert_eq!(self.event().await, None);
    }
}

fn message_of(data: &[u8]) -> Value {
    assert!(data.ends_with(b"}\n"), "{:?}", String::from_utf8_lossy(data));
    serde_json::from_slice(data).expect("JSON")
}
