//! The state of a tunnel: received data, confirmations, and its end.
//!
//! A tunnel may be split between a task that reads and one that writes. Both drive the whole
//! connection: each of them, when polled, reads into a bounded inbox, so that pings are answered and
//! a close is noticed also while only writing; and any event of the socket wakes both.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use futures_util::{Sink, Stream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{self, Bytes, Message};

use super::TunnelError;
use super::connector::Socket;

/// How much is read ahead, in bytes; one message of any size may come on top.
const INBOX: usize = 64 * 1024;
/// The largest message made of written bytes, in bytes.
const WRITE: usize = 64 * 1024;
/// The cost of a message in the inbox besides its payload.
const OVERHEAD: usize = 64;

/// The side that polls; each has one task that waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reader,
    Writer,
}

pub(super) struct Flow {
    socket: Socket,
    message_limit: usize,
    inbox: VecDeque<Message>,
    inbox_bytes: usize,
    end: Option<Result<(), TunnelError>>,
    waiters: Arc<Waiters>,
    /// Messages sent, and how many of them a ping has been sent and answered for.
    sent: u64,
    asked: u64,
    confirmed: u64,
    /// Written bytes are still on their way to the socket; either task flushes them when polled.
    unflushed: bool,
    close_sent: bool,
    heard: Instant,
    close_timeout: Duration,
    impatience: Option<Pin<Box<Sleep>>>,
}

impl Flow {
    pub(super) fn new(socket: Socket, message_limit: usize, close_timeout: Duration) -> Self {
        Self {
            socket,
            message_limit,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            end: None,
            waiters: Arc::default(),
            sent: 0,
            asked: 0,
            confirmed: 0,
            unflushed: false,
            close_sent: false,
            heard: Instant::now(),
            close_timeout,
            impatience: None,
        }
    }

    /// The next message; `None` after a normal end.
    pub(super) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, TunnelError>>> {
        self.poll_inbox(cx, Side::Reader);
        if let Some(message) = self.inbox.pop_front() {
            self.inbox_bytes -= message.len() + OVERHEAD;
            return Poll::Ready(Some(Ok(message)));
        }
        match &self.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => Poll::Pending,
        }
    }

    /// Ready when nothing more will come than is in the inbox.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_inbox(cx, Side::Reader);
        if self.end.is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when [`Flow::send`] may be called.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.poll_inbox(cx, Side::Writer);
        match &self.end {
            Some(Ok(())) => return Poll::Ready(Err(TunnelError::OtherLeft)),
            Some(Err(error)) => return Poll::Ready(Err(error.clone())),
            None if self.close_sent => return Poll::Ready(Err(TunnelError::SentAfterClose)),
            None => {}
        }
        self.poll_socket(cx, Sink::poll_ready)
    }

    pub(super) fn send(&mut self, message: Message) -> Result<(), TunnelError> {
        if message.len() > self.message_limit {
            return Err(TunnelError::MessageTooLarge);
        }
        self.sent += 1;
        Pin::new(&mut self.socket).start_send(message).map_err(TunnelError::from)
    }

    /// Sends some of these bytes, and does not hold them back for a flush.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        ready!(self.poll_ready(cx))?;
        let count = data.len().min(WRITE).min(self.message_limit);
        self.send(Message::Binary(Bytes::copy_from_slice(&data[..count])))?;
        if count < WRITE && self.asked == self.confirmed {
            // In the same segment, so that it is confirmed before the other endpoint can answer
            // and leave. Not in bulk, where more follows anyway.
            self.ask()?;
        }
        match self.poll_socket(cx, Sink::poll_flush) {
            Poll::Ready(flushed) => flushed?,
            Poll::Pending => self.unflushed = true,
        }
        Poll::Ready(Ok(count))
    }

    /// Requests a confirmation of all data sent so far: the proxy answers the ping after it.
    fn ask(&mut self) -> Result<(), TunnelError> {
        self.asked = self.sent;
        let ping = Message::Ping(Bytes::copy_from_slice(&self.sent.to_be_bytes()));
        Pin::new(&mut self.socket).start_send(ping).map_err(TunnelError::from)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        ready!(self.poll_ready(cx))?;
        self.poll_socket(cx, Sink::poll_flush)
    }

    /// As [`Flow::poll_flush`], and asks the proxy to confirm what was sent, without waiting.
    pub(super) fn poll_flush_and_ask(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match ready!(self.poll_ready(cx)) {
            // It left, but not before everything had been taken.
            Err(TunnelError::OtherLeft) if self.is_delivered() => return Poll::Ready(Ok(())),
            ready => ready?,
        }
        if self.asked < self.sent {
            self.ask()?;
        }
        self.poll_socket(cx, Sink::poll_flush)
    }

    /// Whether the proxy has confirmed that it took everything.
    pub(super) fn is_delivered(&self) -> bool {
        self.confirmed == self.sent
    }

    /// Has everything confirmed, closes, and waits for the answer to that. The close frame is sent
    /// last, because pings cannot be answered after it, and the node may have to wait for the other
    /// endpoint before it reads the close frame.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        loop {
            self.poll_inbox(cx, Side::Writer);
            if let Some(end) = self.end.clone() {
                let lost = !self.is_delivered();
                return Poll::Ready(if lost { end.and(Err(TunnelError::OtherLeft)) } else { end });
            }
            if self.close_sent {
                ready!(self.poll_socket(cx, Sink::poll_flush))?;
                return self.poll_patience(cx);
            }
            ready!(self.poll_flush_and_ask(cx))?;
            if !self.is_delivered() {
                return self.poll_patience(cx);
            }
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            Pin::new(&mut self.socket).start_send(Message::Close(Some(normal)))?;
            self.close_sent = true;
        }
    }

    /// Fails when the proxy has been silent for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let heard = if self.impatience.is_some() { self.heard } else { Instant::now() };
        let deadline = heard + self.close_timeout;
        let sleep = self.impatience.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(Err(TunnelError::NotConfirmed));
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Reads until the inbox is full, the tunnel has ended or nothing is there.
    fn poll_inbox(&mut self, cx: &mut Context<'_>, side: Side) {
        self.waiters.of(side).register(cx.waker());
        let waker = Waker::from(self.waiters.clone());
        let mut cx = Context::from_waker(&waker);
        if self.unflushed {
            // Reading or writing returns the same error again, and can report it.
            self.unflushed = Pin::new(&mut self.socket).poll_flush(&mut cx).is_pending();
        }
        while self.end.is_none() && self.inbox_bytes < INBOX {
            let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(&mut cx) else {
                return;
            };
            self.heard = Instant::now();
            match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    self.inbox_bytes += message.len() + OVERHEAD;
                    self.inbox.push_back(message);
                    if side == Side::Writer {
                        self.waiters.of(Side::Reader).wake();
                    }
                }
                Some(Ok(Message::Pong(payload))) => self.confirm(&payload),
                // The socket answers by itself with the next read.
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    // As far as it goes at once; the connection ends here in any case.
                    let _ = Pin::new(&mut self.socket).poll_flush(&mut cx);
                    self.finish(match frame {
                        None if self.close_sent => Ok(()),
                        frame => TunnelError::from_close(frame),
                    });
                }
                Some(Err(error)) => self.finish(Err(error.into())),
                None => self.finish(Err(tungstenite::Error::ConnectionClosed.into())),
            }
        }
    }

    fn confirm(&mut self, pong: &[u8]) {
        if let Ok(count) = pong.try_into().map(u64::from_be_bytes)
            && count <= self.asked
        {
            self.confirmed = self.confirmed.max(count);
            self.waiters.wake_by_ref();
        }
    }

    fn finish(&mut self, end: Result<(), TunnelError>) {
        self.end.get_or_insert(end);
        self.waiters.wake_by_ref();
    }

    /// Writes to the socket. When that fails, the reason may have come in before: a close frame.
    fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<tungstenite::Result<()>>,
    ) -> Poll<Result<(), TunnelError>> {
        let waker = Waker::from(self.waiters.clone());
        let result = ready!(write(Pin::new(&mut self.socket), &mut Context::from_waker(&waker)));
        Poll::Ready(result.map_err(|error| {
            self.poll_inbox(cx, Side::Writer);
            self.finish(Err(error.into()));
            match &self.end {
                Some(Err(error)) => error.clone(),
                _ => TunnelError::OtherLeft,
            }
        }))
    }
}

/// The tasks that wait for something to happen on the socket.
#[derive(Debug, Default)]
struct Waiters {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Waiters {
    fn of(&self, side: Side) -> &AtomicWaker {
        match side {
            Side::Reader => &self.reader,
            Side::Writer => &self.writer,
        }
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}
