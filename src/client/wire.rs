//! A registered connection as a stream of bytes, over WebSocket or without.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Tunnel;
use super::connector::{ByteStream, Connector, Opened};
use crate::protocol::Identity;

#[derive(Debug)]
pub(super) enum Wire {
    /// A write is a binary message; of the messages that come only the payload counts.
    WebSocket(Box<Tunnel>),
    Bytes {
        stream: ByteStream,
        /// Data received together with the proxy's last message.
        rest: Bytes,
    },
}

impl Wire {
    pub(super) fn new(opened: Opened, rest: Vec<u8>, connector: &Connector) -> Self {
        match opened {
            Opened::WebSocket(socket) => {
                let (limit, timeout) = (connector.message_limit, connector.close_timeout);
                Self::WebSocket(Box::new(Tunnel::new(*socket, Identity::default(), limit, timeout)))
            }
            Opened::Bytes(stream) => Self::Bytes { stream, rest: rest.into() },
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(tunnel) => Pin::new(tunnel).poll_read(cx, buf),
            Self::Bytes { stream, rest } if rest.is_empty() => Pin::new(stream).poll_read(cx, buf),
            Self::Bytes { rest, .. } => {
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                rest.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::WebSocket(tunnel) => Pin::new(tunnel).poll_write(cx, data),
            Self::Bytes { stream, .. } => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(tunnel) => AsyncWrite::poll_flush(Pin::new(tunnel), cx),
            Self::Bytes { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
            Self::Bytes { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
