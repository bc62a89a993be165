//! What the integration tests have in common: real nodes in this process on ports of their own,
//! and bare endpoints that talk to them over real TLS WebSockets, byte for byte.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

pub mod cluster;
pub mod delay;
pub mod held_back;
pub mod places;
pub mod raw;
pub mod redis;
pub mod stream;
pub mod tunnel_proxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::config::Config;
use nymea_remoteproxy::node::{Node, Prepared};
use nymea_remoteproxy::trace_parent::TraceParent;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// How long anything may take. Far more than needed: it is not a measure of speed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A port of this machine that is free.
pub const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Waits for something, at most [`DEADLINE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let in_time = tokio::time::timeout(DEADLINE, future).await;
    in_time.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

/// A node in this process with its defaults on a free port.
pub fn node() -> Node {
    node_with(|_| {})
}

/// A node in this process on a free port, with other settings.
pub fn node_with(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::default();
    config.server.port = 0;
    config.admin.listen = Some(FREE);
    change(&mut config);
    Prepared::new(config).expect("valid settings").start().expect("a free port")
}

/// Something that listens for endpoints: a node, in this process or not.
pub trait Listening {
    fn address(&self) -> SocketAddr;
}

impl Listening for Node {
    fn address(&self) -> SocketAddr {
        self.local_addr().expect("an IP address")
    }
}

impl<T: Listening> Listening for Arc<T> {
    fn address(&self) -> SocketAddr {
        T::address(self)
    }
}

/// A TLS connection to a node, trusting any certificate.
pub async fn tls(node: &impl Listening) -> TlsStream<TcpStream> {
    let tcp = soon("TCP", TcpStream::connect(node.address())).await.expect("TCP");
    tcp.set_nodelay(true).expect("TCP");
    tls_over(tcp).await
}

/// TLS on a connection that may have carried something in front of it.
pub async fn tls_over(tcp: TcpStream) -> TlsStream<TcpStream> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnything(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connect = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    soon("TLS", connect).await.expect("TLS handshake")
}

#[derive(Debug)]
struct TrustAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A WebSocket to a node, without any knowledge of the protocol above it.
pub struct Endpoint {
    pub ws: Box<WebSocketStream<TlsStream<TcpStream>>>,
}

impl Endpoint {
    pub async fn connect(node: &impl Listening) -> Self {
        Self::try_connect(node).await.expect("upgrade")
    }

    pub async fn try_connect(node: &impl Listening) -> Result<Self, WsError> {
        let request = "wss://localhost/".into_client_request()?;
        Box::pin(Self::upgrade(node, request)).await
    }

    /// Its upgrade request has this `traceparent`.
    pub async fn traced(node: &impl Listening, trace_parent: TraceParent) -> Self {
        let mut request = "wss://localhost/".into_client_request().expect("a request");
        let value = trace_parent.to_string().parse().expect("a value");
        request.headers_mut().insert("traceparent", value);
        Box::pin(Self::upgrade(node, request)).await.expect("upgrade")
    }

    async fn upgrade(node: &impl Listening, request: Request) -> Result<Self, WsError> {
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let upgrade = client_async_with_config(request, tls(node).await, Some(config));
        let (ws, _) = Box::pin(soon("upgrade", upgrade)).await?;
        Ok(Self { ws: Box::new(ws) })
    }

    /// Authenticated as generation 1, and waiting.
    pub async fn waiting(node: &impl Listening, token: &str) -> Self {
        let mut endpoint = Self::connect(node).await;
        endpoint.authenticate(&format!(r#""token":"{token}""#)).await;
        endpoint
    }

    /// Authenticates with these params; the answer must be a success.
    pub async fn authenticate(&mut self, params: &str) {
        self.request(params).await;
        let answer = self.json().await;
        assert_eq!(answer["status"], "success", "{answer}");
    }

    /// Sends a request to authenticate with these params.
    pub async fn request(&mut self, params: &str) {
        let request =
            format!(r#"{{"id":0,"method":"Authentication.Authenticate","params":{{{params}}}}}"#);
        self.send(Message::text(request)).await;
    }

    pub async fn send(&mut self, message: Message) {
        soon("sending", self.ws.send(message)).await.expect("sent");
    }

    /// The next message that is no ping or pong.
    pub async fn next(&mut self) -> Option<Result<Message, WsError>> {
        loop {
            match soon("a message", self.ws.next()).await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other,
            }
        }
    }

    pub async fn message(&mut self) -> Message {
        self.next().await.expect("a message, not the end").expect("a message, not an error")
    }

    pub async fn text(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.to_string(),
            other => panic!("not a text: {other:?}"),
        }
    }

    pub async fn json(&mut self) -> Value {
        let text = self.text().await;
        assert!(text.ends_with("}\n"), "messages end with a line feed: {text:?}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Receives the notification that the tunnel is established.
    pub async fn established(&mut self) -> Value {
        let notification = self.json().await;
        let name = notification["notification"].as_str().expect("a notification");
        assert!(name.ends_with("Established"), "{notification}");
        notification
    }

    /// The code of the close that must come next.
    pub async fn close_code(&mut self) -> u16 {
        match self.message().await {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("not a close with a code: {other:?}"),
        }
    }

    /// Says goodbye in order.
    pub async fn leave(&mut self) {
        self.send(Message::Close(None)).await;
    }

    /// The next must be this close, and then the end.
    pub async fn closed_with(&mut self, code: u16) {
        assert_eq!(self.close_code().await, code);
        while let Some(Ok(_)) = self.next().await {}
    }
}

/// Two generation 1 endpoints on one node, with a tunnel between them.
pub async fn tunnel(node: &impl Listening, token: &str) -> (Endpoint, Endpoint) {
    tunnel_between(node, node, token).await
}

/// Two generation 1 endpoints on two nodes, with a tunnel between them.
pub async fn tunnel_between(
    one: &impl Listening,
    other: &impl Listening,
    token: &str,
) -> (Endpoint, Endpoint) {
    let mut first = Endpoint::waiting(one, token).await;
    let mut second = Endpoint::waiting(other, token).await;
    first.established().await;
    second.established().await;
    (first, second)
}

/// Bytes that differ from place to place, the same for the same seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
