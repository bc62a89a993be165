//! Whether the node at the other end of a connection is still there, and how far away it is.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::task::AtomicWaker;
use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use super::KEEPALIVE_INTERVAL;
use super::tls::Heard;

/// The interval of checks for a requested sign of life.
const LOOK: Duration = Duration::from_secs(1);
/// So many checks in a row without a sign of life end a connection with all its tunnels. No fewer
/// than the seconds of a node's lease: a node that is frozen for a shorter time is not taken for
/// dead by the rendezvous, and must not be by its peers. Looks are counted, not time: a node that
/// was frozen itself has missed signs of life, and looks again before it gives up.
const LOOKS: u32 = 10;
/// The window of a tunnel at first, and while the other node is near, in bytes.
pub(super) const WINDOW: u32 = 256 << 10;
/// The largest window of a tunnel, in bytes: with its share of the budget, it bounds what a stalled
/// one keeps in the memory of a node. As h2 says that there is room again when a third of it has been taken, no less than 2 MiB
/// are always under way, which is 100 MiB/s at a round trip of 20 ms.
pub(super) const MAX_WINDOW: u32 = 3 << 20;
/// The bytes per second that a tunnel should reach at any round trip, up to [`MAX_WINDOW`].
const SPEED: u64 = 100 << 20;
/// The number of long round trips in a row before the windows grow: one may be long because a node
/// is busy.
const ROUND_TRIPS: usize = 3;

/// The state of a connection, shared by all its users.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// A sign of life was requested, and none has arrived for a while.
    suspect: AtomicBool,
    /// A sign of life is wanted now.
    wanted: AtomicBool,
    /// The other node has answered, or the connection is over; `changed` rings then.
    has_answered: AtomicBool,
    is_over: AtomicBool,
    changed: Notify,
    /// Wakes the task of the connection.
    waker: AtomicWaker,
}

impl Health {
    /// Whether a sign of life is overdue. Such a connection may be alive, but others are better.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Asks the other node for a sign of life at once.
    pub(super) fn check(&self) {
        self.wanted.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Waits for the first answer of the other node; false if the connection ends before.
    pub(super) async fn answered(&self) -> bool {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From now on: it may ring before it is waited for.
            changed.as_mut().enable();
            if self.has_answered.load(Ordering::Acquire) {
                return true;
            }
            if self.is_over.load(Ordering::Acquire) {
                return false;
            }
            changed.await;
        }
    }

    fn note_answer(&self) {
        self.note(false);
        if !self.has_answered.swap(true, Ordering::AcqRel) {
            self.changed.notify_waiters();
        }
    }

    /// Has the task of the connection look what is to be done.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    fn is_wanted(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.wanted.swap(false, Ordering::AcqRel)
    }

    fn note(&self, suspect: bool) {
        self.suspect.store(suspect, Ordering::Relaxed);
    }
}

/// The result of a [`Watch`].
pub(super) enum Seen {
    /// The round trip is so long that tunnels need windows of so many bytes.
    Far(u32),
    /// The other node has given no sign of life.
    Silent,
}

/// Asks the other node for signs of life, and measures how long they take.
pub(super) struct Watch {
    pings: PingPong,
    /// Something else has arrived from it.
    heard: Heard,
    health: Arc<Health>,
    /// When the sign of life was requested, and how many checks found none since.
    asked: Option<Instant>,
    looks: u32,
    timer: Pin<Box<Sleep>>,
    distance: Distance,
}

impl Watch {
    pub(super) fn new(pings: PingPong, heard: Heard, health: Arc<Health>) -> Self {
        let timer = Box::pin(sleep(Duration::ZERO));
        Self { pings, heard, health, asked: None, looks: 0, timer, distance: Distance::default() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        if self.health.is_wanted(cx) && self.asked.is_none() {
            self.wait(Duration::ZERO);
        }
        loop {
            if let Some(asked) = self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = None;
                        self.health.note_answer();
                        let window = self.distance.measured(asked.elapsed());
                        // The first questions follow one another.
                        let is_known = self.distance.is_known();
                        self.wait(if is_known { KEEPALIVE_INTERVAL } else { Duration::ZERO });
                        if let Some(window) = window {
                            return Poll::Ready(Seen::Far(window));
                        }
                    }
                    // The connection has ended, and its own poll returns why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.poll_unpin(cx));
                        if self.look() == LOOKS {
                            return Poll::Ready(Seen::Silent);
                        }
                        self.wait(LOOK);
                    }
                }
            } else {
                ready!(self.timer.poll_unpin(cx));
                self.heard.take();
                if self.pings.send_ping(Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                (self.asked, self.looks) = (Some(Instant::now()), 0);
                self.wait(LOOK);
            }
        }
    }

    /// Returns how many looks in a row have found no sign of life. Much data may be before the
    /// answer: all that arrives is one.
    fn look(&mut self) -> u32 {
        self.looks = if self.heard.take() { 0 } else { self.looks + 1 };
        self.health.note(self.looks > 0);
        self.looks
    }

    fn wait(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.health.is_over.store(true, Ordering::Release);
        self.health.changed.notify_waiters();
    }
}

/// The distance to the other node.
struct Distance {
    /// The last [`ROUND_TRIPS`].
    round_trips: VecDeque<Duration>,
    /// The size for windows of tunnels.
    window: u32,
}

impl Default for Distance {
    fn default() -> Self {
        Self { round_trips: VecDeque::with_capacity(ROUND_TRIPS), window: WINDOW }
    }
}

impl Distance {
    fn is_known(&self) -> bool {
        self.round_trips.len() == ROUND_TRIPS
    }

    /// Notes a round trip, and returns the windows that it takes if they must grow. They never
    /// shrink for that: data may be under way.
    fn measured(&mut self, round_trip: Duration) -> Option<u32> {
        if self.is_known() {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(round_trip);
        let window = window_for(*self.round_trips.iter().min()?);
        let grows = self.is_known() && window > self.window;
        grows.then(|| {
            self.window = window;
            window
        })
    }
}

/// The window of a tunnel to a node that is so far away, in bytes.
fn window_for(round_trip: Duration) -> u32 {
    let under_way = u128::from(SPEED) * round_trip.as_micros() / 1_000_000;
    // A third of it may have been taken before the other node is notified.
    let window = under_way * 3 / 2;
    u32::try_from(window).map_or(MAX_WINDOW, |window| window.clamp(WINDOW, MAX_WINDOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_with_the_round_trip_up_to_a_limit() {
        assert_eq!(window_for(Duration::from_micros(300)), WINDOW);
        assert_eq!(window_for(Duration::from_millis(10)), (100 << 20) / 100 * 3 / 2);
        assert_eq!(window_for(Duration::from_millis(20)), MAX_WINDOW);
        assert_eq!(window_for(Duration::from_hours(1)), MAX_WINDOW);
    }

    #[test]
    fn one_long_round_trip_among_short_ones_changes_nothing() {
        let mut distance = Distance::default();
        let mut after = |milliseconds| distance.measured(Duration::from_millis(milliseconds));
        assert_eq!([20, 20, 1, 20, 20].map(&mut after), [None; 5]);
        assert_eq!(after(20), Some(MAX_WINDOW));
        assert_eq!([20, 1, 1, 1].map(&mut after), [None; 4]);
    }
}
