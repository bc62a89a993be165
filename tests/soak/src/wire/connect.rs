//! Opens connections, and speaks the protocol on them until there is a tunnel.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpSocket, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::Way;
use super::halves::{Closing, Reader, Writer};

/// How long a connection may take, with TLS and upgrade.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest line of the node's that is read.
const LINE: usize = 64 * 1024;

/// A stream of bytes to a node.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where a node listens in some way.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Ip(SocketAddr),
    Unix(PathBuf),
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The node has answered with an error.
    Answer(String),
    /// The node has closed the connection, or the connection broke.
    Closed(Closing),
}

/// A connection on which both sides still speak the protocol.
pub(crate) struct Dialogue {
    io: Opened,
    /// Data received after the last message.
    held: Vec<u8>,
}

enum Opened {
    WebSocket(Box<WebSocketStream<Box<dyn Io>>>),
    Bytes(Box<dyn Io>),
}

/// Trusts the certificates in a file.
pub(crate) fn trust(ca: &std::path::Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Connects from an address of this machine.
pub(crate) async fn connect(
    way: Way,
    place: &Place,
    from: Option<SocketAddr>,
    tls: &TlsConnector,
) -> anyhow::Result<Dialogue> {
    timeout(CONNECT, Box::pin(open(way, place, from, tls)))
        .await
        .context("no connection in time")?
}

async fn open(
    way: Way,
    place: &Place,
    from: Option<SocketAddr>,
    tls: &TlsConnector,
) -> anyhow::Result<Dialogue> {
    let io: Box<dyn Io> = match place {
        Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Place::Ip(address) => {
            let socket = TcpSocket::new_v4()?;
            if let Some(from) = from {
                socket.bind(from)?;
            }
            let tcp = socket.connect(*address).await?;
            tcp.set_nodelay(true)?;
            match way {
                Way::Tls | Way::SecureWebSocket => {
                    let name = ServerName::try_from("localhost")?;
                    Box::new(tls.connect(name, tcp).await?)
                }
                Way::WebSocket | Way::Tcp | Way::Unix => Box::new(tcp),
            }
        }
    };
    let io = if way.is_websocket() {
        let (websocket, _) = client_async("ws://localhost/", io).await?;
        Opened::WebSocket(Box::new(websocket))
    } else {
        Opened::Bytes(io)
    };
    Ok(Dialogue { io, held: Vec::new() })
}

impl Dialogue {
    /// Sends text.
    pub(crate) async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        match &mut self.io {
            Opened::WebSocket(websocket) => websocket.send(Message::text(text)).await?,
            Opened::Bytes(io) => {
                io.write_all(text.as_bytes()).await?;
                io.flush().await?;
            }
        }
        Ok(())
    }

    /// Sends a request.
    pub(crate) async fn request(&mut self, method: &str, params: &Value) -> Result<(), Refused> {
        let request = json!({ "id": 7, "method": method, "params": params });
        let sent = self.send(&format!("{request}\n")).await;
        sent.map_err(|error| Refused::Closed(Closing::Broken(format!("{error:#}"))))
    }

    /// The next message of the node.
    pub(crate) async fn message(&mut self) -> Result<Value, Refused> {
        let line = loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let rest = self.held.split_off(end + 1);
                break std::mem::replace(&mut self.held, rest);
            }
            let more = self.more().await.map_err(Refused::Closed)?;
            self.held.extend(more);
            if self.held.len() > LINE {
                return Err(Refused::Answer("a message without end".into()));
            }
        };
        serde_json::from_slice(&line)
            .map_err(|_| Refused::Answer(format!("no JSON: {:?}", String::from_utf8_lossy(&line))))
    }

    /// Sends a request, and returns the params of the answer, which must be a success.
    pub(crate) async fn call(&mut self, method: &str, params: &Value) -> Result<Value, Refused> {
        self.request(method, params).await?;
        let mut answer = self.message().await?;
        if answer["status"] == "success" {
            Ok(answer["params"].take())
        } else {
            Err(Refused::Answer(answer["error"].as_str().unwrap_or("no error").to_owned()))
        }
    }

    /// Reads until the node closes the connection.
    pub(crate) async fn closing(&mut self) -> Closing {
        loop {
            if let Err(closing) = self.more().await {
                return closing;
            }
        }
    }

    async fn more(&mut self) -> Result<Vec<u8>, Closing> {
        match &mut self.io {
            Opened::WebSocket(websocket) => loop {
                match websocket.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text.as_bytes().to_vec()),
                    Some(Ok(Message::Binary(bytes))) => return Ok(bytes.to_vec()),
                    Some(Ok(Message::Close(frame))) => return Err(Closing::of_frame(frame)),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Closing::Broken(error.to_string())),
                    None => return Err(Closing::Broken("no close frame".into())),
                }
            },
            Opened::Bytes(io) => {
                let mut bytes = vec![0; 4096];
                match io.read(&mut bytes).await {
                    Ok(0) => Err(Closing::Unknown),
                    Ok(length) => {
                        bytes.truncate(length);
                        Ok(bytes)
                    }
                    Err(error) => Err(Closing::Broken(error.to_string())),
                }
            }
        }
    }

    /// Leaves in order.
    pub(crate) async fn leave(mut self) -> anyhow::Result<()> {
        match &mut self.io {
            Opened::WebSocket(websocket) => websocket.close().await?,
            Opened::Bytes(io) => io.shutdown().await?,
        }
        let _closed = timeout(CONNECT, self.closing()).await;
        Ok(())
    }

    /// The connection as what carries the data.
    pub(crate) fn into_halves(self, way: Way) -> (Reader, Writer) {
        match self.io {
            Opened::WebSocket(websocket) => {
                let (sink, stream) = (*websocket).split();
                (Reader::websocket(stream, self.held), Writer::websocket(sink))
            }
            Opened::Bytes(io) => {
                let (read, write) = split(io);
                let tells_ends = way == Way::Tls;
                (
                    Reader::bytes(Box::new(read), self.held, tells_ends),
                    Writer::bytes(Box::new(write)),
                )
            }
        }
    }

    /// Authenticates, and waits until the tunnel is established. Returns the name of the other
    /// endpoint, which is empty for generation 1.
    pub(crate) async fn authenticate(&mut self, params: &Value) -> Result<(), Refused> {
        self.call("Authentication.Authenticate", params).await.map(|_| ())
    }

    /// Waits until the tunnel is established. Returns the name of the other endpoint.
    pub(crate) async fn established(&mut self) -> Result<String, Refused> {
        let message = self.message().await?;
        let name = message["notification"].as_str().unwrap_or_default();
        if !name.ends_with("Established") {
            return Err(Refused::Answer(format!("{message} in place of the tunnel")));
        }
        Ok(message["params"]["name"].as_str().unwrap_or_default().to_owned())
    }

    /// Registers as a gateway or an app.
    pub(crate) async fn register(&mut self, method: &str, params: &Value) -> Result<(), Refused> {
        let answer = self.call(method, params).await?;
        match answer["tunnelProxyError"].as_str() {
            Some("TunnelProxyErrorNoError") => Ok(()),
            other => Err(Refused::Answer(other.unwrap_or("no tunnelProxyError").to_owned())),
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(answer) => f.write_str(answer),
            Self::Closed(closing) => write!(f, "{closing}"),
        }
    }
}

impl From<Refused> for anyhow::Error {
    fn from(refused: Refused) -> Self {
        anyhow::anyhow!("{refused}")
    }
}
