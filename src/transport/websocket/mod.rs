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

use self::leg::WebSocketLeg;
use self::upgrade::Upgraded;
use super::keepalive::Keepalive;
use super::tls::ServerTls;
use super::wire::{Line, Plain, Secure, Wire};
use super::{AcceptError, Accepted, Admit, ClientAddr, Patience, Socket, Transport};

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
        client_addr: ClientAddr,
        admit: &mut Admit<'_>,
    ) -> Result<Accepted, AcceptError> {
        let refusal = admit(client_addr).err();
        let Upgraded { rest, trace_parent } = upgrade::upgrade(&mut wire, refusal).await?;
        let keepalive = Keepalive::new(self.patience, Instant::now());
        let leg = Box::new(WebSocketLeg::new(wire, rest, keepalive));
        Ok(Accepted { leg, client_addr, trace_parent, tls })
    }

    async fn secured<S: Line + 'static>(
        &self,
        line: S,
        client_addr: ClientAddr,
        admit: &mut Admit<'_>,
    ) -> Result<Accepted, AcceptError> {
        match &self.tls {
            Some(config) => {
                let secure = Secure::accept(line, Arc::clone(config));
                let secure = secure.await.map_err(AcceptError::Tls)?;
                let tls = (secure.version(), Instant::now());
                self.upgrade(secure, Some(tls), client_addr, admit).await
            }
            None => self.upgrade(Plain::new(line), None, client_addr, admit).await,
        }
    }
}

impl Transport for WebSocketTransport {
    fn accept<'a>(
        &'a self,
        socket: Socket,
        peer: ClientAddr,
        admit: &'a mut Admit<'_>,
    ) -> BoxFuture<'a, Result<Accepted, AcceptError>> {
        async move {
            match socket {
                Socket::Tcp(tcp) => {
                    // Small messages must not wait for the acknowledgement of those before them.
                    tcp.set_nodelay(true).map_err(AcceptError::Io)?;
                    self.secured(tcp, peer, admit).await
                }
                Socket::Unix(unix) => self.secured(unix, peer, admit).await,
            }
        }
        .boxed()
    }

    fn label(&self) -> &'static str {
        "websocket"
    }
}
