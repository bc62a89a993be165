//! When to ping an endpoint, and when to close it. The time is an argument, except for a beat that
//! all connections of the process share.

use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::protocol::Close;

/// How long an endpoint may be silent or stalled.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An endpoint silent for this long is pinged, up to a quarter earlier; after an answered ping,
    /// the next one follows after twice as long.
    pub ping_interval: Duration,
    /// An endpoint that reads no data for this long is closed.
    pub stalled: Duration,
}

/// Pings that may stay unanswered.
const MISSED_PONGS: u32 = 2;
/// The extra time to read an overdue sign of life.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// Ticks of all endpoints fall on multiples of this, so that one awakening of the node serves those
/// that are due, and not each its own: with many idle endpoints, most of their cost.
const BEAT_MS: u64 = 100;
/// When the beat began.
static FIRST_BEAT: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The last beat at which some endpoint ticked, counted from the first one: a clock that costs
/// nothing to read, and goes only while there is anything to do.
static LAST_BEAT: AtomicU64 = AtomicU64::new(0);
/// The part of an interval by which a tick may come earlier when its task is awake anyway, as for the
/// other end of the tunnel: the two keep in step from then on.
const EARLY: u64 = 4;

/// The liveness of one endpoint.
#[derive(Debug)]
pub(super) struct Keepalive {
    patience: Patience,
    next_tick: Instant,
    /// The beat from which on the next tick may be made.
    may_tick: u64,
    heard: bool,
    /// Whether everything that came has been read: only then does silence mean anything.
    caught_up: bool,
    blocked_since: Option<Instant>,
    unanswered: u32,
    /// The time by which a probed endpoint must give a sign of life.
    probed_until: Option<Instant>,
    /// That time is over: what has come by then is still to be read.
    overdue: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tick {
    Nothing,
    Ping,
    GiveUp(Close),
}

impl Keepalive {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        let mut keepalive = Self {
            patience,
            next_tick: now,
            may_tick: 0,
            heard: true,
            caught_up: false,
            blocked_since: None,
            unanswered: 0,
            probed_until: None,
            overdue: false,
        };
        // Jitter, so that connections opened together are not pinged together forever.
        keepalive.tick_again(now, 0.5..1.0);
        keepalive
    }

    /// Something came in.
    pub(super) fn heard(&mut self) {
        self.heard = true;
        self.caught_up = false;
        self.probed_until = None;
        self.overdue = false;
    }

    /// A pong came in. A ping that was answered leaves the endpoint in peace for two intervals: at the
    /// end of the first one there would be nothing to do. True if that changed the deadline.
    pub(super) fn answered(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let awaited = std::mem::take(&mut self.unanswered) > 0;
        if awaited {
            self.heard = false;
            self.tick_again(now(), 1.8..2.0);
        }
        awaited
    }

    /// Something must be heard until then, and the caller is to ping for it; false if that would
    /// tell nothing, as data waits in front of the ping.
    pub(super) fn probe(&mut self, until: Instant) -> bool {
        let tells = self.blocked_since.is_none();
        if tells {
            self.probed_until.get_or_insert(until);
        }
        tells
    }

    /// Whether what was probed for has still to be heard.
    pub(super) fn is_probed(&self) -> bool {
        self.probed_until.is_some()
    }

    /// All that came in has been read.
    pub(super) fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// Notes whether data is `blocked`, waiting for the endpoint to take it, and whether the
    /// endpoint has taken some of it. Returns for how long it had taken none before that.
    pub(super) fn set_blocked(
        &mut self,
        blocked: bool,
        has_taken: bool,
        now: impl FnOnce() -> Instant,
    ) -> Option<Duration> {
        if blocked && !has_taken {
            self.blocked_since.get_or_insert_with(now);
            return None;
        }
        let since = self.blocked_since.take();
        if !blocked && since.is_none() {
            return None;
        }
        let now = now();
        self.blocked_since = blocked.then_some(now);
        since.map(|since| now.saturating_duration_since(since))
    }

    /// Whether data waits for the endpoint to take it.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Whether [`Keepalive::tick`] may be called before it is due.
    pub(super) fn may_tick(&self) -> bool {
        LAST_BEAT.load(Ordering::Relaxed) >= self.may_tick
    }

    /// Tells all others of the time at which this one ticks.
    pub(super) fn beat(now: Instant) {
        LAST_BEAT.fetch_max(beats_until(now), Ordering::Relaxed);
    }

    /// When [`Keepalive::tick`] is due.
    pub(super) fn deadline(&self) -> Instant {
        let stalled_at = self.blocked_since.map(|since| since + self.patience.stalled);
        let others = [stalled_at, self.probed_until].into_iter().flatten();
        others.fold(self.next_tick, Instant::min)
    }

    pub(super) fn tick(&mut self, now: Instant) -> Tick {
        if self.blocked_since.is_some_and(|since| now >= since + self.patience.stalled) {
            return Tick::GiveUp(Close::Stalled);
        }
        if let Some(close) = self.end_probe(now) {
            return Tick::GiveUp(close);
        }
        if now < self.next_tick && beats_until(now) < self.may_tick {
            return Tick::Nothing;
        }
        self.tick_again(now, 0.9..1.0);
        if std::mem::take(&mut self.heard) {
            self.unanswered = 0;
            return Tick::Nothing;
        }
        // A ping would be queued after data that the endpoint does not read, and its pong after
        // data that is not read here: a missing pong proves nothing.
        if self.blocked_since.is_some() || !self.caught_up {
            return Tick::Nothing;
        }
        if self.unanswered == MISSED_PONGS {
            return Tick::GiveUp(Close::Unresponsive);
        }
        self.unanswered += 1;
        Tick::Ping
    }

    /// Ends a probe when its time is over. This node may have been stopped or busy, with the sign of
    /// life in the buffers of the system: it is missing only if it was not there after all of that
    /// was read.
    fn end_probe(&mut self, now: Instant) -> Option<Close> {
        if self.probed_until.is_none_or(|until| now < until) {
            return None;
        }
        if self.blocked_since.is_none() && !std::mem::replace(&mut self.overdue, true) {
            self.caught_up = false;
            self.probed_until = Some(now + LAST_LOOK);
            return None;
        }
        self.probed_until = None;
        self.overdue = false;
        // What is not read is not heard.
        (self.blocked_since.is_none() && self.caught_up).then_some(Close::Unresponsive)
    }

    /// Schedules the next tick after so many intervals.
    fn tick_again(&mut self, now: Instant, intervals: Range<f64>) {
        let interval = self.patience.ping_interval;
        let due = now + interval.mul_f64(rand::random_range(intervals));
        let early = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX) / EARLY / BEAT_MS;
        if early == 0 {
            // So short that beats would be too coarse for it.
            (self.next_tick, self.may_tick) = (due, u64::MAX);
            return;
        }
        let beat = beats_until(due);
        self.next_tick = *FIRST_BEAT + Duration::from_millis(beat * BEAT_MS);
        self.may_tick = beat.saturating_sub(early);
    }
}

/// How many whole beats there are from the first one until then.
fn beats_until(then: Instant) -> u64 {
    let since = then.saturating_duration_since(*FIRST_BEAT).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX) / BEAT_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { ping_interval: Duration::from_secs(20), stalled: Duration::from_mins(5) };

    /// The ticks within `time`, with their moments since the start.
    fn ticks(keepalive: &mut Keepalive, start: Instant, time: Duration) -> Vec<(Duration, Tick)> {
        let mut ticks = Vec::new();
        while keepalive.deadline() <= start + time {
            let now = keepalive.deadline();
            match keepalive.tick(now) {
                Tick::Nothing => {}
                Tick::Ping => ticks.push((now - start, Tick::Ping)),
                give_up @ Tick::GiveUp(_) => {
                    ticks.push((now - start, give_up));
                    break;
                }
            }
        }
        ticks
    }

    #[test]
    fn a_silent_endpoint_is_pinged_twice_and_given_up() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        let ticks = ticks(&mut keepalive, start, Duration::from_secs(200));
        let (times, ticks): (Vec<_>, Vec<_>) = ticks.into_iter().unzip();
        assert_eq!(ticks, [Tick::Ping, Tick::Ping, Tick::GiveUp(Close::Unresponsive)]);
        assert!(times[0] >= Duration::from_secs(28) && times[0] <= Duration::from_secs(40));
        assert!(times[2] <= Duration::from_secs(80));
    }

    #[test]
    fn all_tick_on_the_same_beat() {
        let start = Instant::now();
        let early = Duration::from_millis(9_900)..PATIENCE.ping_interval;
        for wait in [0, 7, 1234].map(Duration::from_millis) {
            let mut keepalive = Keepalive::new(PATIENCE, start + wait);
            assert!(early.contains(&(keepalive.deadline() - (start + wait))));
            for _ in 0..3 {
                let since = keepalive.deadline() - *FIRST_BEAT;
                assert_eq!(since.as_nanos() % Duration::from_millis(BEAT_MS).as_nanos(), 0);
                keepalive.tick(keepalive.deadline());
            }
        }
    }

    #[test]
    fn a_pong_starts_the_count_again() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        let mut pings = 0;
        for _ in 0..20 {
            keepalive.caught_up();
            match keepalive.tick(keepalive.deadline()) {
                Tick::Nothing => {}
                Tick::Ping => {
                    pings += 1;
                    keepalive.heard();
                }
                Tick::GiveUp(close) => panic!("gave up a live endpoint: {close}"),
            }
        }
        assert!(pings >= 5, "{pings}");
    }

    #[test]
    fn a_probe_ends_a_silent_endpoint_in_time() {
        let start = Instant::now();
        let within = Duration::from_secs(3);
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        assert!(keepalive.probe(start + within));
        assert_eq!(keepalive.tick(start + within), Tick::Nothing);
        keepalive.caught_up();
        let ticks = ticks(&mut keepalive, start, Duration::from_secs(200));
        assert_eq!(ticks, [(within + LAST_LOOK, Tick::GiveUp(Close::Unresponsive))]);

        let mut keepalive = Keepalive::new(PATIENCE, start);
        assert!(keepalive.probe(start + within));
        keepalive.heard();
        keepalive.caught_up();
        assert_eq!(keepalive.tick(start + within), Tick::Nothing);
        keepalive.set_blocked(true, false, || start);
        assert!(!keepalive.probe(start + within));
    }

    #[test]
    fn a_sign_of_life_that_came_while_the_node_was_stopped_counts() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        assert!(keepalive.probe(start + Duration::from_secs(3)));
        // It was stopped for ten seconds; its timers ring before anything is read.
        let resumed = start + Duration::from_secs(10);
        assert_eq!(keepalive.tick(resumed), Tick::Nothing);
        assert!(keepalive.is_probed());
        keepalive.heard();
        keepalive.caught_up();
        assert!(!keepalive.is_probed());
        assert_eq!(keepalive.tick(resumed + LAST_LOOK), Tick::Nothing);
        // Nor is it given up where nothing is read, as the other end of its tunnel takes nothing.
        assert!(keepalive.probe(resumed));
        assert_eq!(keepalive.tick(resumed), Tick::Nothing);
        assert_eq!(keepalive.tick(resumed + LAST_LOOK), Tick::Nothing);
        assert!(!keepalive.is_probed());
    }

    #[test]
    fn an_answered_ping_leaves_it_in_peace_for_two_intervals() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        assert_eq!(keepalive.tick(keepalive.deadline()), Tick::Nothing);
        let pinged = keepalive.deadline();
        assert_eq!(keepalive.tick(pinged), Tick::Ping);
        keepalive.heard();
        assert!(keepalive.answered(|| pinged));
        keepalive.caught_up();
        assert!(keepalive.deadline() - pinged >= PATIENCE.ping_interval.mul_f64(1.75));
        assert_eq!(keepalive.tick(keepalive.deadline()), Tick::Ping);
        // A pong without a ping.
        keepalive.answered(|| pinged);
        assert!(!keepalive.answered(|| unreachable!("it costs no look at the clock")));
    }

    #[test]
    fn short_intervals_are_kept_and_not_rounded() {
        let start = Instant::now();
        let ping_interval = Duration::from_millis(50);
        let keepalive = Keepalive::new(Patience { ping_interval, ..PATIENCE }, start);
        assert!(keepalive.deadline() >= start + ping_interval / 2);
        assert!(!keepalive.may_tick());
    }

    #[test]
    fn it_may_tick_early_but_not_much() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        let due = keepalive.deadline();
        let before = |part| start + (due - start).saturating_sub(PATIENCE.ping_interval / part);
        keepalive.tick(before(3));
        assert_eq!(keepalive.deadline(), due);
        keepalive.tick(before(5));
        assert!(keepalive.deadline() > due);
    }

    #[test]
    fn an_endpoint_that_takes_nothing_is_given_up_as_stalled_only() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        keepalive.set_blocked(true, false, || start);
        let ticks = ticks(&mut keepalive, start, Duration::from_secs(1000));
        assert_eq!(ticks, [(PATIENCE.stalled, Tick::GiveUp(Close::Stalled))]);
    }

    #[test]
    fn an_endpoint_that_takes_its_data_slowly_is_not_stalled() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        assert_eq!(keepalive.set_blocked(false, true, || unreachable!("nothing waited")), None);
        for round in 0..10 {
            let now = start + PATIENCE.stalled * round;
            assert_eq!(keepalive.tick(now), Tick::Nothing);
            keepalive.set_blocked(true, false, || now);
            let later = now + PATIENCE.stalled / 2;
            assert_eq!(keepalive.set_blocked(true, false, || later), None);
            let waited = keepalive.set_blocked(true, true, || later);
            let expected = if round == 0 { PATIENCE.stalled / 2 } else { PATIENCE.stalled };
            assert_eq!(waited, Some(expected));
        }
        let end = start + PATIENCE.stalled * 10;
        assert_eq!(keepalive.set_blocked(false, true, || end), Some(PATIENCE.stalled / 2));
        assert!(!keepalive.is_blocked());
    }

    #[test]
    fn an_endpoint_that_is_not_read_is_not_given_up() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        keepalive.heard();
        assert_eq!(ticks(&mut keepalive, start, Duration::from_secs(1000)), []);
    }
}
