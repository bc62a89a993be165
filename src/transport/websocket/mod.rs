//! Endpoints that come by WebSocket (RFC 6455), with TLS or without: the only place that knows
//! tungstenite on the server's side. `upgrade` gets a connection to its first frame, `leg`
//! moves the frames.

pub mod forwarded;
mod leg;
mod upgrade;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::leg::WebSocketLeg;
use self::upgrade::Upgraded;
use super::keepalive::Keepalive;
use super::tls::ServerTls;
use super::{AcceptError, Accepted, Patience, Refusal, Transport};

/// Secure or plain WebSocket.
pub struct WebSocketTransport {
    tls: Option<TlsAcceptor>,
    patience: Patience,
}

impl WebSocketTransport {
    /// `wss://` if there is TLS, `ws://` otherwise.
    pub fn new(tls: Option<&ServerTls>, patience: Patience) -> Arc<Self> {
        Arc::new(Self { tls: tls.map(ServerTls::acceptor), patience })
    }

    async fn upgrade<S>(
        &self,
        mut stream: S,
        tls: Option<(&'static str, Instant)>,
        refusal: Option<Refusal>,
    ) -> Result<Accepted, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Upgraded { rest, trace_parent } = upgrade::upgrade(&mut stream, refusal).await?;
        let keepalive = Keepalive::new(self.patience, Instant::now());
        let leg = Box::new(WebSocketLeg::new(stream, rest, keepalive));
        Ok(Accepted { leg, trace_parent, tls })
    }
}

impl Transport for WebSocketTransport {
    fn accept(
        &self,
        tcp: TcpStream,
        refusal: Option<Refusal>,
    ) -> BoxFuture<'_, Result<Accepted, AcceptError>> {
        async move {
            // Small messages must not wait for the acknowledgement of those before them.
            tcp.set_nodelay(true).map_err(AcceptError::Io)?;
            match &self.tls {
                Some(acceptor) => {
                    let stream = acceptor.accept(tcp).await.map_err(AcceptError::Tls)?;
                    let tls = (version_of(&stream), Instant::now());
                    self.upgrade(stream, Some(tls), refusal).await
                }
                None => self.upgrade(tcp, None, refusal).await,
            }
        }
        .boxed()
    }

    fn label(&self) -> &'static str {
        "websocket"
    }
}

fn version_of(stream: &TlsStream<TcpStream>) -> &'static str {
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        Some(_) | None => "unknown",
    }
}
