//! An established tunnel, as a byte stream and as a stream of messages.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite;

use super::connector::Socket;
use super::flow::Flow;
use super::{Message, TunnelError};
use crate::protocol::Identity;

/// A tunnel to the other endpoint: a byte stream ([`AsyncRead`] and [`AsyncWrite`]) and a stream
/// of messages ([`Stream`] and [`Sink`]).
///
/// - A write becomes one binary message of at most 64 KiB; reads give the payload of all messages.
/// - A close with code 1000 is the end of the data. Anything else is an error, so that a transfer
///   that was cut does not look complete. [`io::Error`]s hold a [`TunnelError`].
/// - Shutting down (or closing the sink) succeeds once the proxy has confirmed all that was sent
///   and the close. There is no half-close: the other endpoint's tunnel ends with it.
///   A tunnel that is dropped instead counts as lost, for the other endpoint, too.
/// - Pings are answered whenever either side is polled. While writing, up to 64 KiB and one
///   message are kept for the reader. With more than that unread, the connection stalls, so read
///   and write at the same time (split the tunnel, or [`tokio::io::copy_bidirectional`]) unless you
///   know that the other endpoint sends little.
///
/// Messages instead of bytes, each answered in its kind:
///
/// ```no_run
/// use futures_util::{SinkExt, StreamExt};
/// use nymea_remoteproxy::client::{Tunnel, TunnelError};
///
/// async fn echo(mut tunnel: Tunnel) -> Result<(), TunnelError> {
///     while let Some(message) = tunnel.next().await {
///         tunnel.send(message?).await?;
///     }
///     // The other endpoint has closed the tunnel in order.
///     Ok(())
/// }
/// ```
pub struct Tunnel {
    flow: Flow,
    other: Identity,
    /// The rest of the message that is being read as bytes.
    rest: Bytes,
}

impl Tunnel {
    pub(super) fn new(
        socket: Socket,
        other: Identity,
        message_limit: usize,
        close_timeout: Duration,
    ) -> Self {
        Self { flow: Flow::new(socket, message_limit, close_timeout), other, rest: Bytes::new() }
    }

    /// The identity that the other endpoint claims; empty if it is of generation 1.
    pub fn other(&self) -> &Identity {
        &self.other
    }

    /// Whether the proxy has confirmed that it took all that was sent. It is asked to when the byte
    /// stream is flushed ([`AsyncWrite::poll_flush`]) or shut down.
    pub fn is_delivered(&self) -> bool {
        self.flow.is_delivered()
    }

    /// Keeps the tunnel alive until it ends, without taking data out of it, for the time until it is
    /// read. Cancel-safe.
    pub async fn ended(&mut self) {
        poll_fn(|cx| self.flow.poll_end(cx)).await;
    }

    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<tungstenite::Message, TunnelError>>> {
        self.flow.poll_recv(cx)
    }
}

impl fmt::Debug for Tunnel {
    /// Without the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("other", &self.other).finish_non_exhaustive()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.poll_message(cx)) {
                Some(message) => self.rest = message?.into_data(),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.flow.poll_write(cx, buf).map_err(Into::into)
    }

    /// Also asks the proxy to confirm what was sent, see [`Tunnel::is_delivered`].
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.poll_flush_and_ask(cx).map_err(Into::into)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.poll_close(cx).map_err(Into::into)
    }
}

impl Stream for Tunnel {
    type Item = Result<Message, TunnelError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Message::Binary(std::mem::take(&mut self.rest)))));
        }
        loop {
            match ready!(self.poll_message(cx)) {
                Some(Ok(message)) => {
                    if let Some(message) = Message::from_wire(message) {
                        return Poll::Ready(Some(Ok(message)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Sink<Message> for Tunnel {
    type Error = TunnelError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.flow.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), TunnelError> {
        self.flow.send(message.into())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.flow.poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.flow.poll_close(cx)
    }
}
