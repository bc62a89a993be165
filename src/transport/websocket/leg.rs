//! A WebSocket as a [`Leg`]: frames become chunks, chunks become frames.
//!
//! One task owns both directions, so no lock and no waker in between is needed. Its buffers are
//! there only while there is something in them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::codec::{Event, Reader, Violation};
use super::idle::Prelude;
use super::outbox::Outbox;
use crate::protocol::{Chunk, Close, Kind, TextOrBinary};
use crate::transport::keepalive::{Keepalive, Tick};
use crate::transport::wire::Wire;
use crate::transport::wire::blocks::give_back;
use crate::transport::{End, Leg};
use crate::turn::{Turn, yield_turn};

/// The largest message until [`Leg::set_message_limit`] says otherwise. One message may hold
/// several requests.
const FIRST_MESSAGE_LIMIT: u64 = 64 * 1024;
/// Frames without data that are handled in one go.
const CONTROL_FRAMES: u32 = 16;
/// The cost of a pong, which may be a separate write, in bytes.
const PONG: usize = 12 * 1024;
/// How long the beginning of a code point from a stream of bytes waits for its rest. Longer than a
/// network delays parts of a message, and too short to be noticed if they are not text and the
/// endpoint waits for them.
const PART_WAITS: Duration = Duration::from_millis(100);
/// The codes without a failure: "normal" and "going away".
const IN_ORDER: [u16; 2] = [1000, 1001];

/// The server's end of a WebSocket.
pub(super) struct WebSocketLeg<W> {
    wire: W,
    inbox: BytesMut,
    reader: Reader,
    outbox: Outbox,
    prelude: Prelude,
    /// Makes messages of a stream of bytes.
    stream: TextOrBinary,
    /// When what it holds back goes out nevertheless.
    part_due: Option<Instant>,
    /// The time by which pending data must be acknowledged, because of a probe.
    answer_by: Option<Instant>,
    /// The frames that come make no sense any more, only bytes can be read.
    broken: bool,
    said_goodbye: bool,
    heard_goodbye: bool,
    keepalive: Keepalive,
    timer: Pin<Box<Sleep>>,
}

impl<W: Wire> WebSocketLeg<W> {
    /// The inbox holds the data after the upgrade request.
    pub(super) fn new(wire: W, inbox: BytesMut, keepalive: Keepalive) -> Self {
        Self {
            wire,
            inbox,
            reader: Reader::new(FIRST_MESSAGE_LIMIT),
            outbox: Outbox::default(),
            prelude: Prelude::new(Instant::now()),
            stream: TextOrBinary::default(),
            part_due: None,
            answer_by: None,
            broken: false,
            said_goodbye: false,
            heard_goodbye: false,
            timer: Box::pin(sleep_until(keepalive.deadline().into())),
            keepalive,
        }
    }

    /// Writes what there is to write.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            self.outbox.fill(&mut self.wire, self.keepalive.is_blocked());
            let before = self.wire.staged();
            let drained = self.wire.poll_drain(cx);
            let has_taken = drained.is_ready() || self.wire.staged() < before;
            let blocked = drained.is_pending();
            if let Some(time) = self.keepalive.set_blocked(blocked, has_taken, Instant::now) {
                self.outbox.has_waited(time);
            }
            ready!(drained).map_err(End::Lost)?;
            if !self.outbox.is_waiting() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn put(&mut self, chunk: Chunk) {
        self.outbox.put(&mut self.wire, chunk);
    }

    /// Stages what the next bytes of a stream make.
    fn stage_stream(&mut self, cx: &mut Context<'_>, chunk: Chunk) {
        if let Some(message) = self.stream.push(chunk.data) {
            self.put(message);
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

    /// Stages the part of a code point that is held back, as its rest has not arrived.
    fn stage_part(&mut self) {
        self.part_due = None;
        if let Some(message) = self.stream.flush() {
            self.put(message);
        }
    }

    /// When there is something to do, if nothing happens before.
    fn due(&self) -> Instant {
        let others = [self.part_due, self.answer_by].into_iter().flatten();
        others.fold(self.keepalive.deadline(), Instant::min)
    }

    /// Sends a ping at once, if that can be.
    fn ping(&mut self, cx: &mut Context<'_>) {
        Outbox::stage_ping(&mut self.wire);
        // Whether it goes out shows when the leg is read or flushed.
        let _shows_later = self.poll_drain(cx);
    }

    /// Says goodbye, after what is to be sent before.
    fn say_goodbye(&mut self, cx: &mut Context<'_>, payload: &[u8]) {
        self.outbox.stage_close(&mut self.wire, payload);
        let _shows_later = self.poll_drain(cx);
    }

    /// Counts a frame without data.
    fn count_idle_frame(&mut self) -> Result<(), End> {
        if self.prelude.add_idle() { Err(End::Fault(Close::IdleFrames)) } else { Ok(()) }
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
            self.say_goodbye(cx, payload.as_ref().map_or(&[], |code| &code[..]));
        }
        if code.is_none_or(|code| IN_ORDER.contains(&code)) { End::Left } else { End::Failed }
    }

    /// Reads and forgets bytes.
    fn poll_discard_bytes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turn = Turn::new();
        while !turn.is_over() {
            self.inbox.clear();
            let filled = self.wire.poll_fill(cx, &mut self.inbox);
            turn.spend(self.inbox.len());
            self.inbox.clear();
            give_back(&mut self.inbox);
            if matches!(ready!(filled), Ok(0) | Err(_)) {
                return Poll::Ready(());
            }
        }
        yield_turn(cx)
    }

    fn has_room(&self) -> bool {
        self.outbox.has_room(&self.wire, self.keepalive.is_blocked())
    }
}

impl<W: Wire> Leg for WebSocketLeg<W> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        let mut turn = Turn::of(CONTROL_FRAMES);
        while !turn.is_over() {
            let event = ready!(self.poll_event(cx));
            if !matches!(event, Ok(Event::Data(_)) | Err(_)) {
                self.count_idle_frame()?;
            }
            turn.spend(0);
            match event {
                Ok(Event::Data(chunk)) => match self.prelude.is_rest(&chunk) {
                    Ok(true) => {}
                    Ok(false) => return Poll::Ready(Ok(chunk)),
                    Err(()) => return Poll::Ready(Err(End::Fault(Close::EarlyData))),
                },
                Ok(Event::Empty) => {}
                Ok(Event::Ping(payload)) => {
                    if !self.said_goodbye {
                        self.outbox.put_ping(&payload);
                    }
                    turn.spend(PONG);
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
        yield_turn(cx)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.has_room() {
            return Poll::Ready(Ok(()));
        }
        match self.poll_drain(cx) {
            Poll::Pending if self.has_room() => Poll::Ready(Ok(())),
            drained => drained,
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        if self.said_goodbye {
            return Err(End::Left);
        }
        match chunk.kind {
            Kind::Stream => self.stage_stream(cx, chunk),
            Kind::Text | Kind::Binary => {
                self.stage_part();
                self.put(chunk);
            }
        }
        if self.outbox.is_full(&self.wire)
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
        if self.keepalive.is_blocked() {
            // A pong must not wait until there is other data.
            let _shows_later = self.poll_drain(cx);
        }
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
                Tick::Ping => self.ping(cx),
            }
            let due = self.due().into();
            self.timer.as_mut().reset(due);
        }
    }

    fn set_message_limit(&mut self, bytes: usize) {
        self.reader.limit = bytes as u64;
        self.prelude.ends(self.reader.is_within_message());
    }

    fn probe(&mut self, cx: &mut Context<'_>, within: Duration) {
        if self.said_goodbye {
            return;
        }
        let until = Instant::now() + within;
        if self.keepalive.probe(until) {
            self.ping(cx);
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
            self.say_goodbye(cx, &payload);
        }
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turn = Turn::new();
        while !turn.is_over() {
            if self.broken {
                return self.poll_discard_bytes(cx);
            }
            match ready!(self.poll_recv(cx)) {
                Ok(chunk) => turn.spend(chunk.data.len()),
                Err(End::Fault(_)) => turn.spend(0),
                Err(End::Left | End::Finished | End::Failed | End::Closed(_) | End::Lost(_)) => {
                    return Poll::Ready(());
                }
            }
        }
        yield_turn(cx)
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

#[cfg(test)]
#[path = "leg_tests.rs"]
mod tests;
