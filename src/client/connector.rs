//! From a URL to an open connection, each step with its deadline and its error.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::either::Either;
use tracing::debug;
use url::{Host, Url};
use uuid::Uuid;

use super::tls::{self, OtherFingerprint, Pin};
use super::{ConnectError, SetupError, Waiting};
use crate::protocol::{Identity, Token};
use crate::trace_parent::TraceParent;

pub(super) type ByteStream = Either<TcpStream, Box<TlsStream<BufReader<TcpStream>>>>;
pub(super) type Socket = WebSocketStream<ByteStream>;

/// The connection after the handshake.
#[derive(Debug)]
pub(super) enum Opened {
    WebSocket(Box<Socket>),
    Bytes(ByteStream),
}

/// The port for connections without WebSocket, if the URL has none.
const STREAM_PORT: u16 = 2213;

/// Takes a write of 64 KiB and control frames, so that they leave together.
const WRITE_BUFFER: usize = 72 * 1024;

/// How to connect: options, each with a default, and then [`Connector::connect`].
///
/// One connector serves any number of connections.
///
/// ```
/// use std::time::Duration;
/// use nymea_remoteproxy::client::{Connector, SetupError};
///
/// let connector = Connector::new("wss://proxy.example.com:1212")?
///     .name("kitchen")
///     .waiting_timeout(Duration::from_secs(30));
/// assert!(connector.is_websocket());
/// assert!(matches!(Connector::new("https://proxy.example.com"), Err(SetupError::Scheme)));
/// # Ok::<(), SetupError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Connector {
    url: Url,
    /// Made on first use if none was chosen: loading the system's certificates takes a while.
    tls: OnceLock<Arc<ClientConfig>>,
    anonymous: bool,
    uuid: Option<Uuid>,
    trace_parent: Option<TraceParent>,
    name: String,
    buffer_size: usize,
    unsent_limit: Option<u32>,
    pub(super) message_limit: usize,
    connect_timeout: Duration,
    pub(super) authentication_timeout: Duration,
    pub(super) waiting_timeout: Duration,
    pub(super) close_timeout: Duration,
}

impl Connector {
    /// Connects to this URL: `wss://` or, without encryption, `ws://`. Without WebSocket it is
    /// `tls://` (or `ssl://`, `tcps://`) with TLS, and `tcp://` without (for a [`Gateway`](super::Gateway) or
    /// an [`App`](super::App) only).
    pub fn new(url: &str) -> Result<Self, SetupError> {
        let url = Url::parse(url).map_err(SetupError::Url)?;
        match url.scheme() {
            "tls" | "ssl" | "tcps" | "tcp" if url.host_str().is_none_or(str::is_empty) => {
                return Err(SetupError::Url(url::ParseError::EmptyHost));
            }
            "wss" | "ws" | "tls" | "ssl" | "tcps" | "tcp" => {}
            _ => return Err(SetupError::Scheme),
        }
        Ok(Self {
            url,
            tls: OnceLock::new(),
            anonymous: false,
            uuid: None,
            trace_parent: None,
            name: "nymea-remoteproxy-client".into(),
            buffer_size: 64 * 1024,
            unsent_limit: None,
            message_limit: 16 << 20,
            connect_timeout: Duration::from_secs(10),
            authentication_timeout: Duration::from_secs(15),
            waiting_timeout: Duration::from_mins(5),
            close_timeout: Duration::from_mins(5),
        })
    }

    /// Trusts the certificates in this PEM file and those signed by them, instead of the system's.
    pub fn ca(self, file: impl AsRef<Path>) -> Result<Self, SetupError> {
        Ok(self.trust(tls::roots(file.as_ref())?))
    }

    /// Trusts the one certificate with this fingerprint, whatever name it bears: SHA-256 of its DER
    /// form in 64 hexadecimal digits of any case, with or without colons.
    pub fn fingerprint(self, sha256: &str) -> Result<Self, SetupError> {
        let pin = Pin::parse(sha256).ok_or(SetupError::Fingerprint)?;
        Ok(self.trust(tls::pinned(pin)))
    }

    /// Trusts any certificate, so that the connection can be intercepted.
    #[must_use]
    pub fn insecure(self) -> Self {
        self.trust(tls::anything())
    }

    fn trust(mut self, tls: ClientConfig) -> Self {
        self.tls = OnceLock::from(Arc::new(tls));
        self
    }

    /// The name to send to the other endpoint or the proxy.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The UUID to send to the other endpoint; by default a random one for each connection.
    #[must_use]
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// The trace (W3C Trace Context) that connections belong to; by default each begins its own. If
    /// it is sampled, the proxy is asked to record what it does for them.
    #[must_use]
    pub fn trace_parent(mut self, parent: TraceParent) -> Self {
        self.trace_parent = Some(parent);
        self
    }

    /// Shows neither name nor UUID: a client of generation 1.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// How much may be read from the socket at once, in bytes. Default 64 KiB; 4 KiB suits
    /// connections that are many and idle.
    #[must_use]
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.buffer_size = bytes;
        self
    }

    /// How much unsent data the system may keep for the connection, in bytes. By default its own
    /// limit, which on Linux is 4 MiB: a thousand connections to peers that read nothing use up the
    /// memory that a machine has for TCP. Without effect on other systems.
    #[must_use]
    pub fn unsent_limit(mut self, bytes: u32) -> Self {
        self.unsent_limit = Some(bytes);
        self
    }

    /// The largest message to send or receive, in bytes. Default 16 MiB, as on nodes.
    #[must_use]
    pub fn message_limit(mut self, bytes: usize) -> Self {
        self.message_limit = bytes;
        self
    }

    /// For TCP, TLS and the WebSocket handshake together. Default 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// For the answer to the token or the registration. Default 15 s.
    #[must_use]
    pub fn authentication_timeout(mut self, timeout: Duration) -> Self {
        self.authentication_timeout = timeout;
        self
    }

    /// For the other endpoint to come. Default 5 minutes; nodes usually wait for one only.
    #[must_use]
    pub fn waiting_timeout(mut self, timeout: Duration) -> Self {
        self.waiting_timeout = timeout;
        self
    }

    /// How long a node may be silent when a tunnel is shut down and it has yet to confirm that it
    /// took all data. Default 5 minutes: it takes no more than the other endpoint does.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// Connects and authenticates. Endpoints with equal token and nonce get a tunnel.
    pub async fn connect(
        &self,
        token: &Token,
        nonce: Option<&str>,
    ) -> Result<Waiting, ConnectError> {
        if !self.is_websocket() {
            return Err(SetupError::NotWebSocket.into());
        }
        let socket = self.open().await?;
        let deadline = Instant::now() + self.authentication_timeout;
        timeout_at(deadline, Waiting::authenticate(socket, self, token, nonce))
            .await
            .map_err(|_| ConnectError::Timeout("authentication"))?
    }

    /// The name and UUID for a registration.
    pub(super) fn name_and_uuid(&self) -> (&str, Uuid) {
        (&self.name, self.uuid.unwrap_or_else(Uuid::new_v4))
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        let uuid = self.uuid.unwrap_or_else(Uuid::new_v4).to_string();
        (!self.anonymous).then(|| Identity { uuid, name: self.name.clone() })
    }

    /// Whether the URL is one of a WebSocket.
    pub fn is_websocket(&self) -> bool {
        matches!(self.url.scheme(), "wss" | "ws")
    }

    pub(super) async fn open(&self) -> Result<Opened, ConnectError> {
        // The handshakes need much room, which the caller's future should not keep for them.
        Box::pin(self.open_until(Instant::now() + self.connect_timeout)).await
    }

    async fn open_until(&self, deadline: Instant) -> Result<Opened, ConnectError> {
        let stream = self.open_stream(deadline).await?;
        if !self.is_websocket() {
            return Ok(Opened::Bytes(stream));
        }
        let socket = self.upgrade(stream, deadline).await?;
        Ok(Opened::WebSocket(Box::new(socket)))
    }

    async fn open_stream(&self, deadline: Instant) -> Result<ByteStream, ConnectError> {
        let tcp = timeout_at(deadline, self.connect_tcp())
            .await
            .map_err(|_| ConnectError::Timeout("a TCP connection"))??;
        if matches!(self.url.scheme(), "ws" | "tcp") {
            return Ok(Either::Left(tcp));
        }
        let tls = timeout_at(deadline, self.handshake_tls(tcp));
        Ok(Either::Right(Box::new(tls.await.map_err(|_| ConnectError::Timeout("TLS"))??)))
    }

    async fn upgrade(&self, stream: ByteStream, deadline: Instant) -> Result<Socket, ConnectError> {
        let mut request = self.url.as_str().into_client_request().map_err(upgrade_error)?;
        // The log of the proxy shows it, also if the trace is not recorded.
        let trace = self.trace_parent.map_or_else(|| TraceParent::new(false), TraceParent::child);
        if let Ok(value) = trace.to_string().parse() {
            request.headers_mut().insert("traceparent", value);
        }
        debug!(trace_id = %trace.trace_id(), "connecting");
        let upgrade = client_async_with_config(request, stream, Some(self.websocket()));
        let (socket, _) = timeout_at(deadline, upgrade)
            .await
            .map_err(|_| ConnectError::Timeout("the WebSocket handshake"))?
            .map_err(upgrade_error)?;
        Ok(socket)
    }

    async fn connect_tcp(&self) -> Result<TcpStream, ConnectError> {
        let port = self.url.port_or_known_default().unwrap_or(STREAM_PORT);
        let connected = match self.url.host() {
            Some(Host::Domain(domain)) => TcpStream::connect((domain, port)).await,
            Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await,
            Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await,
            None => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        let prepared = connected.and_then(|tcp| {
            prepare(&tcp)?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if let Some(bytes) = self.unsent_limit {
                SockRef::from(&tcp).set_tcp_notsent_lowat(bytes)?;
            }
            Ok(tcp)
        });
        prepared.map_err(|source| {
            let address = format!("{}:{port}", self.url.host_str().unwrap_or_default());
            ConnectError::Unreachable { address, source }
        })
    }

    async fn handshake_tls(
        &self,
        tcp: TcpStream,
    ) -> Result<TlsStream<BufReader<TcpStream>>, ConnectError> {
        let config = match self.tls.get() {
            Some(config) => config,
            None => self.tls.get_or_init({
                let config = Arc::new(tls::system()?);
                || config
            }),
        };
        let name = match self.url.host() {
            Some(Host::Ipv4(address)) => ServerName::from(std::net::IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => ServerName::from(std::net::IpAddr::V6(address)),
            domain => server_name(domain.map(|host| host.to_string()).unwrap_or_default())?,
        };
        // rustls reads 4 KiB at a time by itself.
        let tcp = BufReader::with_capacity(self.buffer_size, tcp);
        TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(tls_error)
    }

    fn websocket(&self) -> WebSocketConfig {
        // The room beyond one message is for control frames; without a bound here, pongs could pile
        // up while nothing can be sent.
        WebSocketConfig::default()
            .read_buffer_size(self.buffer_size)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(self.message_limit.saturating_add(2 * WRITE_BUFFER))
            .max_message_size(Some(self.message_limit))
            .max_frame_size(Some(self.message_limit))
    }
}

/// Sends at once, and notices a peer that vanished without a word.
fn prepare(tcp: &TcpStream) -> std::io::Result<()> {
    const INTERVAL: Duration = Duration::from_secs(20);
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(INTERVAL).with_interval(INTERVAL);
    let socket = SockRef::from(tcp);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(3 * INTERVAL))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// URLs other than those of the web give an IPv4 address as a domain.
fn server_name(domain: String) -> Result<ServerName<'static>, SetupError> {
    ServerName::try_from(domain)
        .map_err(|_| SetupError::Url(url::ParseError::InvalidDomainCharacter))
}

fn tls_error(error: std::io::Error) -> ConnectError {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(certificate)) = source else {
        return ConnectError::Tls(error);
    };
    if let CertificateError::Other(other) = certificate
        && let Some(OtherFingerprint { found }) = other.0.downcast_ref()
    {
        return ConnectError::FingerprintMismatch { found: found.to_string() };
    }
    ConnectError::CertificateNotTrusted(certificate.clone().into())
}

fn upgrade_error(error: tungstenite::Error) -> ConnectError {
    use tungstenite::error::ProtocolError::HandshakeIncomplete;
    match error {
        tungstenite::Error::Http(response) if response.status() == 503 => {
            ConnectError::TryAgainLater
        }
        tungstenite::Error::Http(response) => {
            ConnectError::NotARemoteProxy(format!("it answered with HTTP {}", response.status()))
        }
        tungstenite::Error::Io(error) => ConnectError::Lost(error),
        tungstenite::Error::Protocol(HandshakeIncomplete) => {
            ConnectError::NotARemoteProxy("it closed the connection".into())
        }
        error => ConnectError::NotARemoteProxy(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_must_be_a_websocket_url() {
        for url in ["wss://127.0.0.1:1212", "ws://[::1]:1", "wss://proxy.example.com/path"] {
            assert!(Connector::new(url).is_ok(), "{url}");
        }
        assert!(matches!(Connector::new("https://example.com"), Err(SetupError::Scheme)));
        for url in
            ["tls://127.0.0.1", "ssl://127.0.0.1:2213", "tcps://[::1]", "tcp://proxy.example.com"]
        {
            assert!(Connector::new(url).is_ok_and(|connector| !connector.is_websocket()), "{url}");
        }
        for url in ["", "127.0.0.1", "wss://", "wss://a:99999", "tcp://", "tcp:a", "ssl://:1"] {
            assert!(matches!(Connector::new(url), Err(SetupError::Url(_))), "{url}");
        }
    }

    #[test]
    fn each_connection_gets_an_own_uuid_unless_one_is_set() {
        let connector = Connector::new("ws://localhost").expect("valid");
        assert_ne!(connector.identity(), connector.identity());
        let connector = connector.uuid(Uuid::nil());
        assert_eq!(connector.identity(), connector.identity());
        assert_eq!(connector.anonymous().identity(), None);
    }
}
