//! A WebSocket as a [`Leg`]: messages become chunks, chunks become frames.
//!
//! It drives tungstenite's protocol context by itself instead of going through
//! `WebSocketStream`: one task owns both directions, so no lock and no waker in between is needed,
//! and limits can change when the tunnel stands.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use crate::protocol::{Chunk, Close, Kind};
use crate::transport::keepalive::{Keepalive, Tick};
use crate::transport::{End, Leg};

/// Read at once from a connection, and kept by an idle one: it decides what an endpoint costs.
const READ_BUFFER: usize = 4 * 1024;
/// Frames are collected up to this size before they are written: about one TLS record.
const WRITE_BUFFER: usize = 16 * 1024;
/// The largest message until [`Leg::set_message_limit`] says otherwise. One message may hold
/// several requests.
const FIRST_MESSAGE_LIMIT: usize = 64 * 1024;
/// Frames handled in one go; other tasks of this thread get their turn behind them.
const FRAMES_PER_POLL: usize = 64;

/// The server's end of a WebSocket.
pub(super) struct WebSocketLeg<S> {
    stream: S,
    context: WebSocketContext,
    /// The frames that come make no sense any more, only bytes can be read.
    broken: bool,
    /// The next chunk to send goes on with a message.
    within_message: bool,
    /// What was last sent did not go out completely.
    blocked: bool,
    keepalive: Keepalive,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketLeg<S> {
    /// `rest` are bytes that came behind the upgrade request.
    pub(super) fn new(stream: S, rest: Vec<u8>, keepalive: Keepalive) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(FIRST_MESSAGE_LIMIT))
            .max_frame_size(Some(FIRST_MESSAGE_LIMIT));
        Self {
            stream,
            context: WebSocketContext::from_partially_read(rest, Role::Server, Some(config)),
            broken: false,
            within_message: false,
            blocked: false,
            timer: Box::pin(sleep_until(keepalive.deadline().into())),
            keepalive,
        }
    }

    /// The context together with the stream it reads and writes.
    fn parts<'a, 'b>(
        &'a mut self,
        cx: &'a mut Context<'b>,
    ) -> (&'a mut WebSocketContext, Polled<'a, 'b, S>) {
        (&mut self.context, Polled { stream: &mut self.stream, cx })
    }

    fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        self.keepalive.set_blocked(blocked, Instant::now);
    }

    fn end_of(&mut self, error: WsError) -> End {
        match error {
            WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Protocol(ProtocolError::SendAfterClosing) => End::Left,
            WsError::Io(error) => End::Lost(error),
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                End::Lost(io::ErrorKind::UnexpectedEof.into())
            }
            WsError::Capacity(_) => self.fault(Close::MessageTooLarge),
            WsError::Utf8(_) => self.fault(Close::InvalidText),
            _ => self.fault(Close::TransportViolation),
        }
    }

    fn fault(&mut self, close: Close) -> End {
        self.broken = true;
        End::Fault(close)
    }

    /// Reads and forgets bytes.
    fn poll_discard_bytes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; READ_BUFFER];
        for _ in 0..FRAMES_PER_POLL {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        yield_now(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Leg for WebSocketLeg<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        for _ in 0..FRAMES_PER_POLL {
            let (context, mut stream) = self.parts(cx);
            let message = context.read(&mut stream);
            let (kind, data) = match message {
                Ok(Message::Text(text)) => (Kind::Text, text.into()),
                Ok(Message::Binary(data)) => (Kind::Binary, data),
                Ok(Message::Close(frame)) => {
                    return Poll::Ready(Err(goodbye(frame.map(|frame| frame.code))));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    self.keepalive.heard();
                    continue;
                }
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.keepalive.caught_up();
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(self.end_of(error))),
            };
            self.keepalive.heard();
            return Poll::Ready(Ok(Chunk { kind, data, last: true }));
        }
        yield_now(cx)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.blocked { self.poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        let data = match (self.within_message, chunk.kind) {
            (true, _) => Data::Continue,
            (false, Kind::Text) => Data::Text,
            (false, Kind::Binary) => Data::Binary,
        };
        self.within_message = !chunk.last;
        let frame = Frame::message(chunk.data, OpCode::Data(data), chunk.last);
        let (context, mut stream) = self.parts(cx);
        match context.write(&mut stream, Message::Frame(frame)) {
            Ok(()) => Ok(()),
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.set_blocked(true);
                Ok(())
            }
            Err(error) => Err(self.end_of(error)),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let (context, mut stream) = self.parts(cx);
        let flushed = match context.flush(&mut stream) {
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.set_blocked(true);
                return Poll::Pending;
            }
            // The answer to the endpoint's goodbye is written; nothing more can be.
            Ok(()) | Err(WsError::ConnectionClosed) => Ok(()),
            Err(error) => Err(self.end_of(error)),
        };
        self.set_blocked(false);
        Poll::Ready(flushed)
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let due = self.keepalive.deadline().into();
            // Moved only when it must ring earlier: resetting it for each message would cost more
            // than waking up once for nothing.
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.poll_unpin(cx));
            match self.keepalive.tick(Instant::now()) {
                Tick::Nothing => {}
                Tick::GiveUp(close) => return Poll::Ready(End::Fault(close)),
                Tick::Ping => {
                    let (context, mut stream) = self.parts(cx);
                    let sent = context
                        .write(&mut stream, Message::Ping(bytes::Bytes::new()))
                        .and_then(|()| context.flush(&mut stream));
                    if let Err(error) = sent
                        && !matches!(&error, WsError::Io(io) if io.kind() == io::ErrorKind::WouldBlock)
                    {
                        return Poll::Ready(self.end_of(error));
                    }
                }
            }
            let due = self.keepalive.deadline().into();
            self.timer.as_mut().reset(due);
        }
    }

    fn set_message_limit(&mut self, bytes: usize) {
        self.context.set_config(|config| {
            config.max_message_size = Some(bytes);
            config.max_frame_size = Some(bytes);
        });
    }

    fn send_close(&mut self, cx: &mut Context<'_>, close: Close) {
        let frame = CloseFrame { code: close.code().into(), reason: close.reason().into() };
        let (context, mut stream) = self.parts(cx);
        // Whether it goes out shows when the connection is flushed.
        let _shows_later = context.close(&mut stream, Some(frame));
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..FRAMES_PER_POLL {
            if self.broken {
                return self.poll_discard_bytes(cx);
            }
            match ready!(self.poll_recv(cx)) {
                // Our goodbye is answered once a further read finds the WebSocket closed.
                Ok(_) | Err(End::Fault(_)) => {}
                Err(End::Left | End::Failed | End::Lost(_)) => return Poll::Ready(()),
            }
        }
        yield_now(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.stream).poll_shutdown(cx).map(|_gone_anyway| ())
    }
}

/// Codes other than "normal", "going away" and none tell of a failure.
fn goodbye(code: Option<CloseCode>) -> End {
    match code {
        None | Some(CloseCode::Normal | CloseCode::Away | CloseCode::Status) => End::Left,
        Some(_) => End::Failed,
    }
}

/// Asks to be polled again, behind what else there is to do.
fn yield_now<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// An asynchronous stream within one poll, as the blocking stream that tungstenite wants.
struct Polled<'a, 'b, S> {
    stream: &'a mut S,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> Read for Polled<'_, '_, S> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(space);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buffer) {
            Poll::Ready(read) => read.map(|()| buffer.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Polled<'_, '_, S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.stream).poll_write(self.cx, data))
    }

    fn flush(&mut self) -> io::Result<()> {
        or_would_block(Pin::new(&mut *self.stream).poll_flush(self.cx))
    }
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
