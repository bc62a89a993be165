//! A WebSocket as a [`Leg`]: frames become chunks, chunks become frames.
//!
//! One task owns both directions, so no lock and no waker in between is needed. Its buffers are
//! there only while there is something in them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::codec::{Event, Opcode, Reader, Violation, Writer, control_frame};
use crate::protocol::{Chunk, Close};
use crate::transport::keepalive::{Keepalive, Tick};
use crate::transport::wire::blocks::give_back;
use crate::transport::wire::{STAGE, Wire};
use crate::transport::{End, Leg};

/// The largest message until [`Leg::set_message_limit`] says otherwise. One message may hold
/// several requests.
const FIRST_MESSAGE_LIMIT: u64 = 64 * 1024;
/// Events handled in one go; other tasks of this thread get their turn behind them.
const EVENTS_PER_POLL: usize = 64;
/// The codes that tell of no failure: "normal" and "going away".
const IN_ORDER: [u16; 2] = [1000, 1001];

/// The server's end of a WebSocket.
pub(super) struct WebSocketLeg<W> {
    wire: W,
    inbox: BytesMut,
    reader: Reader,
    writer: Writer,
    /// A ping that has not been answered; a later one takes its place (RFC 6455, section 5.5.3).
    ping: Option<Bytes>,
    /// The frames that come make no sense any more, only bytes can be read.
    broken: bool,
    said_goodbye: bool,
    heard_goodbye: bool,
    keepalive: Keepalive,
    timer: Pin<Box<Sleep>>,
}

impl<W: Wire> WebSocketLeg<W> {
    /// The inbox holds what came behind the upgrade request.
    pub(super) fn new(wire: W, inbox: BytesMut, keepalive: Keepalive) -> Self {
        Self {
            wire,
            inbox,
            reader: Reader::new(FIRST_MESSAGE_LIMIT),
            writer: Writer::default(),
            ping: None,
            broken: false,
            said_goodbye: false,
            heard_goodbye: false,
            timer: Box::pin(sleep_until(keepalive.deadline().into())),
            keepalive,
        }
    }

    /// Writes what is staged.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // Whoever pings and takes no answers must not make them pile up.
        if self.wire.staged() < STAGE
            && let Some(payload) = self.ping.take()
            && !self.said_goodbye
        {
            self.wire.stage(&control_frame(Opcode::Pong, &payload));
        }
        let drained = self.wire.poll_drain(cx);
        self.keepalive.set_blocked(drained.is_pending(), Instant::now);
        drained.map_err(End::Lost)
    }

    /// Sends a frame of our own at once, if that can be.
    fn send_control(&mut self, cx: &mut Context<'_>, opcode: Opcode, payload: &[u8]) {
        self.wire.stage(&control_frame(opcode, payload));
        // Whether it goes out shows when the leg is read or flushed.
        let _shows_later = self.poll_drain(cx);
    }

    /// The next event, or what ends the connection.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        if self.heard_goodbye {
            return Poll::Ready(Err(End::Left));
        }
        loop {
            match self.reader.next(&mut self.inbox) {
                Ok(Some(event)) => return Poll::Ready(Ok(event)),
                Ok(None) => {}
                Err(violation) => {
                    self.broken = true;
                    return Poll::Ready(Err(End::Fault(close_for(violation))));
                }
            }
            let filled = self.wire.poll_fill(cx, &mut self.inbox);
            give_back(&mut self.inbox);
            match filled {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(End::Lost(io::ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Ok(_)) => self.keepalive.heard(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Lost(error))),
                Poll::Pending => {
                    self.keepalive.caught_up();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Answers a goodbye by the same code, unless ours came first (RFC 6455, section 5.5.1).
    fn answer_goodbye(&mut self, cx: &mut Context<'_>, code: Option<u16>) -> End {
        self.heard_goodbye = true;
        if !std::mem::replace(&mut self.said_goodbye, true) {
            let payload = code.map(u16::to_be_bytes);
            self.send_control(cx, Opcode::Close, payload.as_ref().map_or(&[], |code| &code[..]));
        }
        if code.is_none_or(|code| IN_ORDER.contains(&code)) { End::Left } else { End::Failed }
    }

    /// Reads and forgets bytes.
    fn poll_discard_bytes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..EVENTS_PER_POLL {
            self.inbox.clear();
            let filled = self.wire.poll_fill(cx, &mut self.inbox);
            self.inbox.clear();
            give_back(&mut self.inbox);
            if matches!(ready!(filled), Ok(0) | Err(_)) {
                return Poll::Ready(());
            }
        }
        yield_now(cx)
    }
}

impl<W: Wire> Leg for WebSocketLeg<W> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        for _ in 0..EVENTS_PER_POLL {
            match ready!(self.poll_event(cx)) {
                Ok(Event::Data(chunk)) => return Poll::Ready(Ok(chunk)),
                Ok(Event::Ping(payload)) => {
                    // A copy: it may have to wait, and must not keep the block it is in.
                    self.ping = Some(Bytes::copy_from_slice(&payload));
                    let _shows_later = self.poll_drain(cx);
                }
                Ok(Event::Pong) => {}
                Ok(Event::Close(code)) => return Poll::Ready(Err(self.answer_goodbye(cx, code))),
                Err(end) => return Poll::Ready(Err(end)),
            }
        }
        yield_now(cx)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.wire.staged() < STAGE { Poll::Ready(Ok(())) } else { self.poll_drain(cx) }
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        if self.said_goodbye {
            return Err(End::Left);
        }
        let header = self.writer.header(&chunk);
        self.wire.stage(header.as_ref());
        self.wire.stage(&chunk.data);
        if self.wire.staged() >= STAGE
            && let Poll::Ready(drained) = self.poll_drain(cx)
        {
            return drained;
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.poll_drain(cx)
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
                Tick::Ping if self.said_goodbye => {}
                Tick::Ping => self.send_control(cx, Opcode::Ping, &[]),
            }
            let due = self.keepalive.deadline().into();
            self.timer.as_mut().reset(due);
        }
    }

    fn set_message_limit(&mut self, bytes: usize) {
        self.reader.limit = bytes as u64;
    }

    fn send_close(&mut self, cx: &mut Context<'_>, close: Close) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            let mut payload = close.code().to_be_bytes().to_vec();
            payload.extend_from_slice(close.reason().as_bytes());
            self.send_control(cx, Opcode::Close, &payload);
        }
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..EVENTS_PER_POLL {
            if self.broken {
                return self.poll_discard_bytes(cx);
            }
            match ready!(self.poll_recv(cx)) {
                Ok(_) | Err(End::Fault(_)) => {}
                Err(End::Left | End::Failed | End::Lost(_)) => return Poll::Ready(()),
            }
        }
        yield_now(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.poll_shutdown(cx).map(|_gone_anyway| ())
    }
}

fn close_for(violation: Violation) -> Close {
    match violation {
        Violation::Protocol(_) => Close::TransportViolation,
        Violation::TooLarge => Close::MessageTooLarge,
        Violation::NotText => Close::InvalidText,
    }
}

/// Asks to be polled again, behind what else there is to do.
fn yield_now<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::transport::Patience;
    use crate::transport::wire::Plain;

    fn leg(io: DuplexStream) -> WebSocketLeg<Plain<DuplexStream>> {
        let patience =
            Patience { ping_interval: Duration::from_mins(1), stalled: Duration::from_mins(1) };
        let keepalive = Keepalive::new(patience, Instant::now());
        WebSocketLeg::new(Plain::new(io), BytesMut::new(), keepalive)
    }

    /// A frame of a client whose mask changes nothing.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("a short one");
        [&[first, 0x80 + length, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test]
    async fn pongs_do_not_pile_up_for_a_client_that_takes_none() {
        let (here, mut there) = duplex(64 * 1024);
        let mut leg = leg(here);
        let pings = frame(0x89, &[7; 125]).repeat(400);
        let pinging = async {
            for _ in 0..20 {
                there.write_all(&pings).await.expect("it is read");
            }
        };
        tokio::select! {
            () = pinging => {}
            received = poll_fn(|cx| leg.poll_recv(cx)) => panic!("{received:?}"),
        }
        assert!(leg.wire.staged() < STAGE + 200, "{} bytes", leg.wire.staged());
        let mut pong = [0; 127];
        there.read_exact(&mut pong).await.expect("a pong");
        assert_eq!(pong[..3], [0x8a, 125, 7]);
    }
}
