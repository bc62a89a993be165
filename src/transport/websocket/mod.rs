//! Endpoints on WebSocket (RFC 6455), with TLS or without. `upgrade` does the HTTP handshake, `codec`
//! reads and writes frames, `leg` is the connection from then on, and `outbox` orders frames to be
//! sent.

mod codec;
pub mod forwarded;
mod idle;
mod leg;
mod outbox;
mod upgrade;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use rustls::ServerConfig;

use self::leg::WebSocketLeg;
use self::upgrade::Upgraded;
use super::keepalive::Keepalive;
use super::proxied::{client_in_front, client_in_request, forwards, speaks_for_others};
use super::tls::ServerTls;
use super::wire::{Line, Plain, Secure, Wire, tune};
use super::{AcceptError, Accepted, Admit, ClientAddr, Patience, Socket, Transport};
use crate::config::Proxies;

/// Secure or plain WebSocket.
pub struct WebSocketTransport {
    tls: Option<Arc<ServerConfig>>,
    patience: Patience,
    proxies: Proxies,
}

impl WebSocketTransport {
    /// `wss://` if there is TLS, `ws://` otherwise.
    pub fn new(tls: Option<&ServerTls>, patience: Patience, proxies: Proxies) -> Arc<Self> {
        Arc::new(Self { tls: tls.map(ServerTls::config), patience, proxies })
    }

    async fn upgrade<W: Wire + 'static>(
        &self,
        mut wire: W,
        tls: Option<(&'static str, Instant)>,
        peer: ClientAddr,
        admit: &mut Admit<'_>,
    ) -> Result<Accepted, AcceptError> {
        let mut client_addr = peer;
        let mut refuse = |headers: &HeaderMap| {
            client_addr = client_in_request(peer, headers, &self.proxies);
            admit(client_addr).err()
        };
        let Upgraded { rest, trace_parent } = upgrade::upgrade(&mut wire, &mut refuse).await?;
        let keepalive = Keepalive::new(self.patience, Instant::now());
        let leg = Box::new(WebSocketLeg::new(wire, rest, keepalive));
        Ok(Accepted { leg, client_addr, trace_parent, tls })
    }

    async fn secured<S: Line + 'static>(
        &self,
        line: S,
        peer: ClientAddr,
        admit: &mut Admit<'_>,
    ) -> Result<Accepted, AcceptError> {
        match &self.tls {
            Some(config) => {
                let secure = Secure::accept(line, Arc::clone(config));
                let secure = secure.await.map_err(AcceptError::Tls)?;
                let tls = (secure.version(), Instant::now());
                self.upgrade(secure, Some(tls), peer, admit).await
            }
            None => self.upgrade(Plain::new(line), None, peer, admit).await,
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
                Socket::Tcp(mut tcp) => {
                    let peer = client_in_front(&mut tcp, peer, &self.proxies).await?;
                    tune(&tcp).map_err(AcceptError::Io)?;
                    self.secured(tcp, peer, admit).await
                }
                Socket::Unix(unix) => self.secured(unix, peer, admit).await,
            }
        }
        .boxed()
    }

    fn client_of(&self, peer: ClientAddr) -> Option<ClientAddr> {
        let says_it = speaks_for_others(peer, &self.proxies) || forwards(peer, &self.proxies);
        (!says_it).then_some(peer)
    }

    fn label(&self) -> &'static str {
        "websocket"
    }
}
