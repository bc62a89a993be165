//! Endpoints on a stream of bytes: over TCP, with TLS or without, or over a unix socket.
//!
//! There are no frames and no pings here. Received data is passed on as chunks of
//! [`Kind::Stream`](crate::protocol::Kind::Stream), only the payload of chunks is sent, and the system
//! watches over the connection (TCP keepalive).

mod leg;

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::ServerConfig;

use self::leg::StreamLeg;
use super::proxied::{client_in_front, speaks_for_others};
use super::tls::ServerTls;
use super::wire::{Plain, Secure, Wire, tune};
use super::{AcceptError, Accepted, Admit, ClientAddr, Patience, Socket, Transport};
use crate::config::Proxies;

/// TCP, TLS, or a unix socket.
pub struct StreamTransport {
    tls: Option<Arc<ServerConfig>>,
    patience: Patience,
    proxies: Proxies,
    label: &'static str,
}

impl StreamTransport {
    /// TLS on TCP, or TCP alone.
    pub fn tcp(tls: Option<&ServerTls>, patience: Patience, proxies: Proxies) -> Arc<Self> {
        let tls = tls.map(|tls| {
            let mut config = ServerConfig::clone(&tls.config());
            // No protocol of that list is spoken here, so none is offered.
            config.alpn_protocols.clear();
            Arc::new(config)
        });
        Arc::new(Self { tls, patience, proxies, label: "tcp" })
    }

    /// A unix socket.
    pub fn unix(patience: Patience) -> Arc<Self> {
        let proxies = Proxies::default();
        Arc::new(Self { tls: None, patience, proxies, label: "unix" })
    }

    fn accepted(
        &self,
        wire: impl Wire + 'static,
        client_addr: ClientAddr,
        tls: Option<(&'static str, Instant)>,
    ) -> Accepted {
        let leg = Box::new(StreamLeg::new(wire, self.patience));
        Accepted { leg, client_addr, trace_parent: None, tls }
    }
}

impl Transport for StreamTransport {
    fn accept<'a>(
        &'a self,
        socket: Socket,
        peer: ClientAddr,
        admit: &'a mut Admit<'_>,
    ) -> BoxFuture<'a, Result<Accepted, AcceptError>> {
        async move {
            // There are no words for a refusal, so it costs no handshake.
            let mut admitted = |client| admit(client).map_err(AcceptError::Refused);
            let mut tcp = match socket {
                Socket::Tcp(tcp) => tcp,
                Socket::Unix(unix) => {
                    admitted(peer)?;
                    return Ok(self.accepted(Plain::new(unix), peer, None));
                }
            };
            let client = client_in_front(&mut tcp, peer, &self.proxies).await?;
            admitted(client)?;
            tune(&tcp).map_err(AcceptError::Io)?;
            Ok(match &self.tls {
                Some(config) => {
                    let secure = Secure::accept(tcp, Arc::clone(config));
                    let secure = secure.await.map_err(AcceptError::Tls)?;
                    let tls = (secure.version(), Instant::now());
                    self.accepted(secure, client, Some(tls))
                }
                None => self.accepted(Plain::new(tcp), client, None),
            })
        }
        .boxed()
    }

    fn client_of(&self, peer: ClientAddr) -> Option<ClientAddr> {
        (!speaks_for_others(peer, &self.proxies)).then_some(peer)
    }

    fn label(&self) -> &'static str {
        self.label
    }
}
