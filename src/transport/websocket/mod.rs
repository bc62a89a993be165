//! Endpoints that come by WebSocket (RFC 6455), with TLS or without. `upgrade` gets a connection to
//! its first frame, `codec` knows what frames look like, `leg` moves them.

mod codec;
pub mod forwarded;
mod leg;
mod upgrade;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::ServerConfig;
use tokio::net::TcpStream;

use self::leg::WebSocketLeg;
use self::upgrade::Upgraded;
use super::keepalive::Keepalive;
use super::tls::ServerTls;
use super::wire::{Plain, Secure, Wire};
use super::{AcceptError, Accepted, Patience, Refusal, Transport};

/// Secure or plain WebSocket.
pub struct WebSocketTransport {
    tls: Option<Arc<ServerConfig>>,
    patience: Patience,
}

impl WebSocketTransport {
    /// `wss://` if there is TLS, `ws://` otherwise.
    pub fn new(tls: Option<&ServerTls>, patience: Patience) -> Arc<Self> {
        Arc::new(Self { tls: tls.map(ServerTls::config), patience })
    }

    async fn upgrade<W: Wire + 'static>(
        &self,
        mut wire: W,
        tls: Option<(&'static str, Instant)>,
        refusal: Option<Refusal>,
    ) -> Result<Accepted, AcceptError> {
        let Upgraded { rest, trace_parent } = upgrade::upgrade(&mut wire, refusal).await?;
        let keepalive = Keepalive::new(self.patience, Instant::now());
        let leg = Box::new(WebSocketLeg::new(wire, rest, keepalive));
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
                Some(config) => {
                    let secure = Secure::accept(tcp, Arc::clone(config));
                    let secure = secure.await.map_err(AcceptError::Tls)?;
                    let tls = (secure.version(), Instant::now());
                    self.upgrade(secure, Some(tls), refusal).await
                }
                None => self.upgrade(Plain::new(tcp), None, refusal).await,
            }
        }
        .boxed()
    }

    fn label(&self) -> &'static str {
        "websocket"
    }
}
