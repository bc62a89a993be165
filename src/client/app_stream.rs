//! A gateway's end of the connection to one app.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{PollSemaphore, PollSender};

use super::TunnelError;
use crate::protocol::FRAME_OVERHEAD;

/// The largest frame made of written bytes; small enough that many apps take turns.
const FRAME: usize = 16 * 1024;

/// The identity that an app claims, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppInfo {
    /// As the app wrote it.
    pub name: String,
    /// With braces, in lower case.
    pub uuid: String,
    /// The IP address of the app, as the proxy saw it.
    pub peer_address: String,
}

/// An attached app: a stream of bytes.
///
/// - It ends when the app leaves; whether it did so in order, the proxy does not tell. When the
///   gateway's own connection is lost, reading and writing fail ([`TunnelError::Lost`]), and so
///   they do once the app was given up because its data was left unread
///   ([`TunnelError::TooSlow`]).
/// - Shutting down has the proxy close the app after all written data. Dropping it without that
///   discards data still in flight.
pub struct AppStream {
    info: AppInfo,
    place: Place,
    inbound: mpsc::UnboundedReceiver<Inbound>,
    /// The piece that is being read, and its place in the backlog.
    piece: Bytes,
    room: Option<OwnedSemaphorePermit>,
    end: Option<Result<(), TunnelError>>,
    outbound: PollSender<Outbound>,
    /// The bytes that may be sent before the app has taken more, if the proxy has flow control.
    window: Option<PollSemaphore>,
    /// The most data in a frame, which is no more than half of the window.
    frame: usize,
    /// The part of the window for the next frame.
    credit: Option<OwnedSemaphorePermit>,
    dropped: mpsc::UnboundedSender<Place>,
    left: Arc<AtomicBool>,
    shut: bool,
}

/// A socket address, and a number that no other app of this process has: addresses are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: u16,
    pub(super) number: u64,
}

/// Data from the connection for an app. If the channel closes without an end, the connection was
/// lost.
pub(super) enum Inbound {
    Data(Bytes, OwnedSemaphorePermit),
    End(Result<(), TunnelError>),
}

/// Data from an app for the connection.
pub(super) enum Outbound {
    Data(Place, Bytes),
    End(Place),
}

/// The ways between an app and the connection.
pub(super) struct Ways {
    pub(super) inbound: mpsc::UnboundedReceiver<Inbound>,
    pub(super) outbound: mpsc::Sender<Outbound>,
    pub(super) dropped: mpsc::UnboundedSender<Place>,
    pub(super) window: Option<Arc<Semaphore>>,
    pub(super) left: Arc<AtomicBool>,
}

impl AppStream {
    pub(super) fn new(info: AppInfo, place: Place, ways: Ways) -> Self {
        Self {
            info,
            place,
            inbound: ways.inbound,
            piece: Bytes::new(),
            room: None,
            end: None,
            outbound: PollSender::new(ways.outbound),
            frame: ways.window.as_ref().map_or(FRAME, |window| {
                FRAME.min((window.available_permits() / 2).saturating_sub(FRAME_OVERHEAD))
            }),
            window: ways.window.map(PollSemaphore::new),
            credit: None,
            dropped: ways.dropped,
            left: ways.left,
            shut: false,
        }
    }

    /// The identity of the app.
    pub fn info(&self) -> &AppInfo {
        &self.info
    }

    /// Ready when a frame with some of `data` fits into the window: how much of it.
    fn poll_window(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        let count = data.len().min(self.frame);
        let Some(window) = &mut self.window else { return Poll::Ready(Ok(count)) };
        if self.credit.is_none() {
            let size = u32::try_from(count + FRAME_OVERHEAD).unwrap_or(u32::MAX);
            let credit = ready!(window.poll_acquire_many(cx, size));
            // Closed when the app or the connection is gone.
            let left = self.left.load(Ordering::Acquire);
            let gone = || if left { TunnelError::OtherLeft } else { lost() };
            self.credit = Some(credit.ok_or_else(gone)?);
        }
        let credit = self.credit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        Poll::Ready(Ok(count.min(credit.saturating_sub(FRAME_OVERHEAD))))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if self.shut {
            return Poll::Ready(Err(TunnelError::SentAfterClose));
        }
        if self.left.load(Ordering::Acquire) {
            return Poll::Ready(Err(TunnelError::OtherLeft));
        }
        self.outbound.poll_reserve(cx).map_err(|_| lost())
    }
}

fn lost() -> TunnelError {
    TunnelError::Lost(Arc::new(io::ErrorKind::ConnectionReset.into()))
}

impl fmt::Debug for AppStream {
    /// Without the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppStream").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Drop for AppStream {
    fn drop(&mut self) {
        if !self.shut && !self.left.load(Ordering::Acquire) {
            // If the connection is gone, so is the app.
            let _told = self.dropped.send(self.place);
        }
    }
}

impl AsyncRead for AppStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.piece.is_empty() {
            self.room = None;
            if let Some(end) = &self.end {
                return Poll::Ready(end.clone().map_err(Into::into));
            }
            match ready!(self.inbound.poll_recv(cx)) {
                Some(Inbound::Data(piece, room)) => {
                    self.piece = piece;
                    self.room = Some(room);
                }
                Some(Inbound::End(end)) => self.end = Some(end),
                None => self.end = Some(Err(lost())),
            }
        }
        let count = self.piece.len().min(buf.remaining());
        buf.put_slice(&self.piece[..count]);
        self.piece.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AppStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // First: an app that waits for its window must not keep the others from sending.
        let count = ready!(self.poll_window(cx, data))?;
        ready!(self.poll_room(cx))?;
        if let Some(mut credit) = self.credit.take() {
            // What is left of it is given back.
            let _spent = credit.split(count + FRAME_OVERHEAD).map(OwnedSemaphorePermit::forget);
        }
        let frame = Outbound::Data(self.place, Bytes::copy_from_slice(&data[..count]));
        self.outbound.send_item(frame).map_err(|_| lost())?;
        Poll::Ready(Ok(count))
    }

    /// Written data is sent without a flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut || self.left.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_room(cx))?;
        let end = Outbound::End(self.place);
        self.outbound.send_item(end).map_err(|_| lost())?;
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}
