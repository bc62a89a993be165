//! How long a task works before others of its thread get their turn.
//!
//! Input of a client can be had without waiting for as long as it floods: a loop over it counts
//! what it does, and yields when its [`Turn`] is over. Work is counted, not bytes alone: a message
//! costs about the same whether it has one byte or none.

use std::pin::pin;
use std::task::{Context, Poll};

/// Small events in one turn: well below a millisecond of work, whatever they are.
const EVENTS: u32 = 64;
/// So many bytes are as much work as a small event.
const BYTES_PER_EVENT: usize = 16 * 1024;

/// A byte of an answer counts for so many that are moved.
const ANSWER: usize = 64;

/// What is left of a task's turn.
#[derive(Debug)]
pub(crate) struct Turn {
    left: u32,
}

impl Turn {
    pub(crate) const fn new() -> Self {
        Self::of(EVENTS)
    }

    /// A turn of so many small events, for a loop within another one.
    pub(crate) const fn of(events: u32) -> Self {
        Self { left: events }
    }

    /// Counts an event, and yields before it if the turn is over: then another one begins.
    pub(crate) async fn next(&mut self) {
        if self.is_over() {
            tokio::task::yield_now().await;
            *self = Self::new();
        }
        self.spend(0);
    }

    /// Counts an event with this many bytes.
    pub(crate) fn spend(&mut self, bytes: usize) {
        let more = u32::try_from(bytes / BYTES_PER_EVENT).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(more.saturating_add(1));
    }

    /// Counts the answer to a request, of this many bytes: to make it costs far more than to move it.
    pub(crate) fn spend_answer(&mut self, bytes: usize) {
        self.spend(bytes.saturating_mul(ANSWER));
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left == 0
    }
}

/// Has the current task polled again, after those that are ready, and after the runtime has looked
/// for events of other connections. A task that wakes itself would come before the latter.
pub(crate) fn yield_turn<T>(cx: &mut Context<'_>) -> Poll<T> {
    let mut yielding = pin!(tokio::task::yield_now());
    if yielding.as_mut().poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_after_many_small_events_or_few_large_ones() {
        let events = |bytes: usize| {
            let mut turn = Turn::new();
            std::iter::from_fn(|| (!turn.is_over()).then(|| turn.spend(bytes))).count()
        };
        assert_eq!((events(0), events(1000)), (64, 64));
        assert_eq!((events(16 * 1024), events(64 * 1024)), (32, 13));
        assert_eq!(events(usize::MAX), 1);
    }

    #[tokio::test]
    async fn another_task_runs_when_one_yields() {
        let (first, second) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let busy = std::future::poll_fn(|cx| {
            first.set(first.get() + 1);
            if second.get() == 3 { Poll::Ready(()) } else { yield_turn(cx) }
        });
        let other = async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
                second.set(second.get() + 1);
            }
        };
        tokio::join!(busy, other);
        assert!(first.get() > 1);
    }
}
