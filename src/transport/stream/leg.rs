//! A stream of bytes as a [`Leg`].
//!
//! One task owns both directions. As with WebSocket, buffers are there only while there is
//! something in them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use crate::protocol::{Chunk, Close};
use crate::transport::wire::blocks::give_back;
use crate::transport::wire::{STAGE, Watch, Wire};
use crate::transport::{End, Leg, Patience};
use crate::turn::{Turn, yield_turn};

/// Intervals of the keepalive without any sign of life that end a connection.
const INTERVALS: u32 = 3;

/// The server's end of a byte stream.
pub(super) struct StreamLeg<W> {
    wire: W,
    inbox: BytesMut,
    /// The other end has finished.
    heard_end: bool,
    sending: Sending,
    patience: Patience,
    /// Since when the other end takes no data, and what wakes us up for that.
    blocked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The system does not give up for data that waits: the deadline of `blocked` does.
    lenient: bool,
    /// Until when signs of life are wanted sooner than usual.
    probed: Option<Instant>,
    /// When data that waits must have got an answer.
    answer_by: Option<Instant>,
}

/// The state of the direction to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    /// Ends in order after the staged data.
    Finish,
    /// Ends after the staged data, and not in order.
    Cut,
}

impl<W: Wire> StreamLeg<W> {
    pub(super) fn new(wire: W, patience: Patience) -> Self {
        let leg = Self {
            wire,
            inbox: BytesMut::new(),
            heard_end: false,
            sending: Sending::Open,
            patience,
            blocked: None,
            timer: None,
            lenient: false,
            probed: None,
            answer_by: None,
        };
        leg.watch();
        leg
    }

    /// Tells the system how long to wait for signs of life.
    fn watch(&self) {
        let every = self.patience.ping_interval;
        let give_up = (!self.lenient).then_some(every * INTERVALS);
        self.wire.watch(Watch { every, give_up });
    }

    /// Writes what is staged.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let before = self.wire.staged();
        let drained = self.wire.poll_drain(cx);
        if drained.is_ready() || self.wire.staged() < before {
            self.blocked = None;
            if std::mem::replace(&mut self.lenient, false) {
                self.watch();
            }
        }
        if drained.is_pending() && self.blocked.is_none() {
            let now = Instant::now();
            self.blocked = Some(now);
            self.wake_at(cx, now + self.patience.ping_interval.min(self.patience.stalled));
        }
        drained.map_err(End::Lost)
    }

    /// Has [`Leg::poll_health`] called at this time at the latest.
    fn wake_at(&mut self, cx: &mut Context<'_>, due: Instant) {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        if timer.is_elapsed() || timer.deadline() > due.into() {
            timer.as_mut().reset(due.into());
        }
        if timer.poll_unpin(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    /// Does the work that is due at this time, and returns when more is due.
    fn tick(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, End> {
        // As the input has ended, a leg without data to write would not notice a loss.
        if self.heard_end && self.wire.is_gone(cx) {
            return Err(End::Lost(io::ErrorKind::ConnectionReset.into()));
        }
        if self.probed.is_some_and(|until| now >= until) {
            self.probed = None;
            self.watch();
        }
        if self.answer_by.is_some_and(|due| now >= due) {
            self.answer_by = None;
            // The system asks for signs of life only where no data waits.
            if self.wire.is_unanswered() {
                return Err(End::Fault(Close::Unresponsive));
            }
        }
        let blocked_until = match self.blocked {
            Some(since) if now >= since + self.patience.stalled => {
                return Err(End::Fault(Close::Stalled));
            }
            // A live endpoint that takes no data for long looks to the system like a dead one.
            Some(since) if now >= since + self.patience.ping_interval => {
                if !std::mem::replace(&mut self.lenient, true) {
                    self.watch();
                }
                Some(since + self.patience.stalled)
            }
            Some(since) => Some(since + self.patience.ping_interval.min(self.patience.stalled)),
            None => None,
        };
        let look_at = self.heard_end.then(|| now + self.patience.ping_interval);
        Ok([self.probed, self.answer_by, blocked_until, look_at].into_iter().flatten().min())
    }
}

impl<W: Wire> Leg for StreamLeg<W> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        if self.heard_end {
            return Poll::Ready(Err(End::Finished));
        }
        let filled = self.wire.poll_fill(cx, &mut self.inbox);
        give_back(&mut self.inbox);
        Poll::Ready(match ready!(filled) {
            Ok(0) => {
                self.heard_end = true;
                self.wake_at(cx, Instant::now() + self.patience.ping_interval);
                Err(End::Finished)
            }
            Ok(_) => {
                self.answer_by = None;
                Ok(Chunk::stream(self.inbox.split().freeze()))
            }
            Err(error) => Err(End::Lost(error)),
        })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.wire.staged() < STAGE { Poll::Ready(Ok(())) } else { self.poll_drain(cx) }
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        if self.sending != Sending::Open {
            return Err(End::Left);
        }
        self.wire.stage(&chunk.data);
        if self.wire.staged() >= STAGE
            && let Poll::Ready(drained) = self.poll_drain(cx)
        {
            return drained;
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        ready!(self.poll_drain(cx))?;
        match self.sending {
            Sending::Open => Poll::Ready(Ok(())),
            Sending::Finish => self.wire.poll_shutdown(cx).map_err(End::Lost),
            Sending::Cut => self.wire.poll_cut(cx).map_err(End::Lost),
        }
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            // Left to ring for nothing: resetting it for each write would cost more.
            ready!(timer.poll_unpin(cx));
            match self.tick(cx, Instant::now()) {
                Err(end) => return Poll::Ready(end),
                Ok(None) => self.timer = None,
                Ok(Some(due)) => {
                    if let Some(timer) = &mut self.timer {
                        timer.as_mut().reset(due.into());
                    }
                }
            }
        }
    }

    fn set_message_limit(&mut self, _bytes: usize) {
        // There are no messages.
    }

    fn send_end(&mut self, cx: &mut Context<'_>) -> bool {
        if self.sending == Sending::Open {
            self.sending = Sending::Finish;
            // Whether it goes out shows when the leg is flushed.
            let _shows_later = self.poll_flush(cx);
        }
        true
    }

    fn probe(&mut self, cx: &mut Context<'_>, within: Duration) {
        let now = Instant::now();
        // A little later than the system would give up what is silent.
        let answer_by = now + within + within / 8;
        self.answer_by = Some(answer_by);
        self.wake_at(cx, answer_by);
        // What waits for a slow reader would look to the system like the silence of a dead one.
        if self.blocked.is_some() {
            return;
        }
        self.wire.watch(Watch { every: within / INTERVALS, give_up: Some(within) });
        let until = now + 2 * within;
        self.probed = Some(until);
        self.wake_at(cx, until);
    }

    fn is_probed(&self) -> bool {
        self.answer_by.is_some()
    }

    fn has_finished(&self) -> bool {
        self.heard_end
    }

    fn send_close(&mut self, cx: &mut Context<'_>, close: Close) {
        if self.sending == Sending::Open {
            // After a loss, a drain or a fault, the data sent is not complete.
            let in_order = !matches!(close.code(), 1001 | 1011);
            self.sending = if in_order { Sending::Finish } else { Sending::Cut };
            let _shows_later = self.poll_flush(cx);
        }
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turn = Turn::new();
        while !turn.is_over() {
            match ready!(self.poll_recv(cx)) {
                Ok(chunk) => turn.spend(chunk.data.len()),
                Err(_) => return Poll::Ready(()),
            }
        }
        yield_turn(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = match self.sending {
            Sending::Cut => self.wire.poll_cut(cx),
            Sending::Open | Sending::Finish => self.wire.poll_shutdown(cx),
        };
        ended.map(|_gone_anyway| ())
    }
}

#[cfg(test)]
#[path = "leg_tests.rs"]
mod tests;
