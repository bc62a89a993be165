//! A connection without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::blocks::{Purpose, Queue, reserve};
use super::{FILL, Line, Watch, Wire};

/// See the module.
pub(in crate::transport) struct Plain<S> {
    io: S,
    outgoing: Queue,
}

impl<S> Plain<S> {
    pub(in crate::transport) fn new(io: S) -> Self {
        Self { io, outgoing: Queue::new(Purpose::Outgoing) }
    }
}

impl<S: Line> Wire for Plain<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>, inbox: &mut BytesMut) -> Poll<io::Result<usize>> {
        reserve(inbox, FILL.saturating_sub(inbox.len()).max(1));
        poll_read_buf(Pin::new(&mut self.io), cx, inbox)
    }

    fn stage(&mut self, data: &[u8]) {
        self.outgoing.room(data.len())[..data.len()].copy_from_slice(data);
        self.outgoing.put(data.len());
    }

    fn staged(&self) -> usize {
        self.outgoing.len()
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_write_all(&mut self.io, cx, &mut self.outgoing)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        self.io.is_gone(cx)
    }

    fn watch(&self, watch: Watch) {
        self.io.watch(watch);
    }

    fn is_unanswered(&self) -> bool {
        self.io.is_unanswered()
    }
}

/// Writes all that is in the queue.
pub(super) fn poll_write_all<S: AsyncWrite + Unpin>(
    io: &mut S,
    cx: &mut Context<'_>,
    queue: &mut Queue,
) -> Poll<io::Result<()>> {
    while !queue.is_empty() {
        let written = ready!(Pin::new(&mut *io).poll_write(cx, queue.bytes()))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        queue.take(written);
    }
    Poll::Ready(Ok(()))
}
