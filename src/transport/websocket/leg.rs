//! A WebSocket as a [`Leg`]: frames become chunks, chunks become frames.
//!
//! One task owns both directions, so no lock and no waker in between is needed. Its buffers are
//! there only while there is something in them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::codec::{Event, Opcode, Reader, Violation, Writer, control_frame};
use crate::protocol::{Chunk, Close, Kind, TextOrBinary};
use crate::transport::keepalive::{Keepalive, Tick};
use crate::transport::wire::blocks::give_back;
use crate::transport::wire::{STAGE, Wire};
use crate::transport::{End, Leg};

/// The largest message until [`Leg::set_message_limit`] says otherwise. One message may hold
/// several requests.
const FIRST_MESSAGE_LIMIT: u64 = 64 * 1024;
/// Events handled in one go; other tasks of this thread get their turn behind them.
const EVENTS_PER_POLL: usize = 64;
/// How long the beginning of a code point waits for its rest, when what is sent comes from a stream
/// of bytes. Longer than a network keeps the parts of a message apart, and too short to be noticed
/// where they are not text and the endpoint waits for them.
const PART_WAITS: Duration = Duration::from_millis(100);
/// The codes that tell of no failure: "normal" and "going away".
const IN_ORDER: [u16; 2] = [1000, 1001];

/// The server's end of a WebSocket.
pub(super) struct WebSocketLeg<W> {
    wire: W,
    inbox: BytesMut,
    reader: Reader,
    writer: Writer,
    /// Makes messages of a stream of bytes.
    stream: TextOrBinary,
    /// When what it holds back goes out nevertheless.
    part_due: Option<Instant>,
    /// When data that waits must have got an answer, as somebody asked for a sign of life.
    answer_by: Option<Instant>,
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
            stream: TextOrBinary::default(),
            part_due: None,
            answer_by: None,
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

    /// Stages a message, or a piece of one.
    fn stage(&mut self, chunk: &Chunk) {
        let header = self.writer.header(chunk);
        self.wire.stage(header.as_ref());
        self.wire.stage(&chunk.data);
    }

    /// Stages what the next bytes of a stream make.
    fn stage_stream(&mut self, cx: &mut Context<'_>, chunk: Chunk) {
        if let Some(message) = self.stream.push(chunk.data) {
            self.stage(&message);
        }
        self.part_due = self.stream.is_waiting().then(|| Instant::now() + PART_WAITS);
        if let Some(due) = self.part_due
            && due < self.timer.deadline().into_std()
        {
            self.timer.as_mut().reset(due.into());
            if self.timer.poll_unpin(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Stages the part of a code point that is held back, as nothing comes that belongs to it.
    fn stage_part(&mut self) {
        self.part_due = None;
        if let Some(message) = self.stream.flush() {
            self.stage(&message);
        }
    }

    /// When there is something to do, if nothing happens before.
    fn due(&self) -> Instant {
        let others = [self.part_due, self.answer_by].into_iter().flatten();
        others.fold(self.keepalive.deadline(), Instant::min)
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
        self.part_due = None;
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
                Ok(Event::Pong) => {
                    if self.keepalive.answered(Instant::now) {
                        let due = self.due().into();
                        self.timer.as_mut().reset(due);
                    }
                }
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
        match chunk.kind {
            Kind::Stream => self.stage_stream(cx, chunk),
            Kind::Text | Kind::Binary => {
                self.stage_part();
                self.stage(&chunk);
            }
        }
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
            let due = self.due().into();
            // Moved only when it must ring earlier: resetting it for each message would cost more
            // than waking up once for nothing.
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
            if !self.keepalive.may_tick() {
                ready!(self.timer.poll_unpin(cx));
            }
            let now = Instant::now();
            Keepalive::beat(now);
            if self.answer_by.is_some_and(|due| now >= due) {
                self.answer_by = None;
                if self.wire.is_unanswered() {
                    return Poll::Ready(End::Fault(Close::Unresponsive));
                }
            }
            if self.part_due.is_some_and(|due| now >= due) {
                self.stage_part();
                let _shows_later = self.poll_drain(cx);
            }
            match self.keepalive.tick(now) {
                Tick::Nothing => {}
                Tick::GiveUp(close) => return Poll::Ready(End::Fault(close)),
                Tick::Ping if self.said_goodbye => {}
                Tick::Ping => self.send_control(cx, Opcode::Ping, &[]),
            }
            let due = self.due().into();
            self.timer.as_mut().reset(due);
        }
    }

    fn set_message_limit(&mut self, bytes: usize) {
        self.reader.limit = bytes as u64;
    }

    fn probe(&mut self, cx: &mut Context<'_>, within: Duration) {
        if self.said_goodbye {
            return;
        }
        let until = Instant::now() + within;
        if self.keepalive.probe(until) {
            self.send_control(cx, Opcode::Ping, &[]);
        } else {
            self.answer_by = Some(until);
        }
        // Its waker is that of the last look, which may have been for a later time.
        let due = self.due().into();
        self.timer.as_mut().reset(due);
        if self.timer.poll_unpin(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn has_pings(&self) -> bool {
        true
    }

    fn is_probed(&self) -> bool {
        self.keepalive.is_probed() || self.answer_by.is_some()
    }

    fn send_close(&mut self, cx: &mut Context<'_>, close: Close) {
        if !self.said_goodbye {
            self.stage_part();
            self.said_goodbye = true;
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
                Err(End::Left | End::Finished | End::Failed | End::Closed(_) | End::Lost(_)) => {
                    return Poll::Ready(());
                }
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
#[path = "leg_tests.rs"]
mod tests;
