//! An endpoint that attaches to a gateway.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::registration::register;
use super::wire::Wire;
use super::{ConnectError, Connector};
use crate::protocol::{Token, braced};

/// Attaches to a gateway, any number of times.
///
/// Name and UUID are those of the [`Connector`]; by default each attachment has a random UUID.
#[derive(Clone, Debug)]
pub struct App {
    connector: Connector,
    gateway: Uuid,
    token: Option<Token>,
}

impl App {
    /// Attaches to the gateway that has registered under this UUID.
    pub fn new(connector: Connector, gateway: Uuid) -> Self {
        Self { connector, gateway, token: None }
    }

    /// Shows this token, for proxies that demand one.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Connects to the proxy and attaches to the gateway.
    pub async fn attach(&self) -> Result<Attachment, ConnectError> {
        let (name, uuid) = self.connector.name_and_uuid();
        let params = json!({
            "clientName": name,
            "clientUuid": braced(uuid),
            "serverUuid": braced(self.gateway),
        });
        let method = "TunnelProxy.RegisterClient";
        let (wire, _) = register(&self.connector, method, params, self.token.as_ref()).await?;
        Ok(Attachment { wire })
    }
}

/// A stream of bytes to and from a gateway.
///
/// - Over WebSocket it ends as a [`Tunnel`](super::Tunnel) does; there is no half-close.
/// - Over TLS and TCP, shutting down ends the sending direction; data is received until the proxy
///   ends it. Only over TLS a broken connection is distinguished from an orderly end.
pub struct Attachment {
    wire: Wire,
}

impl fmt::Debug for Attachment {
    /// Without the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

impl AsyncRead for Attachment {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Attachment {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
