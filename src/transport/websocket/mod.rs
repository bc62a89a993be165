//! Endpoints that come by WebSocket (RFC 6455), with TLS or without: the only place that knows
//! tungstenite on the server's side. `upgrade` gets a connection to its first frame, `leg`
//! moves the frames.

mod leg;
mod upgrade;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use self::leg::WebSocketLeg;
use super::keepalive::Keepalive;
use super::tls::ServerTls;
use super::{AcceptError, Leg, Patience, Refusal, Transport};

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
        refusal: Option<Refusal>,
    ) -> Result<Box<dyn Leg>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let rest = upgrade::upgrade(&mut stream, refusal).await?;
        let keepalive = Keepalive::new(self.patience, Instant::now());
        Ok(Box::new(WebSocketLeg::new(stream, rest, keepalive)))
    }
}

impl Transport for WebSocketTransport {
    fn accept(
        &self,
        tcp: TcpStream,
        refusal: Option<Refusal>,
    ) -> BoxFuture<'_, Result<Box<dyn Leg>, AcceptError>> {
        async move {
            // Small messages must not wait for the acknowledgement of those before them.
            tcp.set_nodelay(true).map_err(AcceptError::Io)?;
            match &self.tls {
                Some(acceptor) => {
                    let stream = acceptor.accept(tcp).await.map_err(AcceptError::Tls)?;
                    self.upgrade(stream, refusal).await
                }
                None => self.upgrade(tcp, refusal).await,
            }
        }
        .boxed()
    }
}
