//! When to ping an endpoint, and when to give it up. Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::protocol::Close;

/// How long an endpoint may be silent or stuck.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An endpoint silent for this long is pinged, with up to 10 % of it taken off at random.
    pub ping_interval: Duration,
    /// An endpoint that takes no data for this long is given up.
    pub stalled: Duration,
}

/// Pings that may stay unanswered.
const MISSED_PONGS: u32 = 2;

/// What is known of one endpoint's liveliness.
#[derive(Debug)]
pub(super) struct Keepalive {
    patience: Patience,
    next_tick: Instant,
    heard: bool,
    /// Whether everything that came has been read: only then does silence mean anything.
    caught_up: bool,
    blocked_since: Option<Instant>,
    unanswered: u32,
    /// By when it must be heard of, as somebody wants to know whether it is alive.
    probed_until: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tick {
    Nothing,
    Ping,
    GiveUp(Close),
}

impl Keepalive {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        // Jitter, so that connections opened together are not pinged together forever.
        let next_tick = now + patience.ping_interval.mul_f64(rand::random_range(0.5..1.0));
        let heard = true;
        Self {
            patience,
            next_tick,
            heard,
            caught_up: false,
            blocked_since: None,
            unanswered: 0,
            probed_until: None,
        }
    }

    /// Something came in.
    pub(super) fn heard(&mut self) {
        self.heard = true;
        self.caught_up = false;
        self.probed_until = None;
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

    /// Whether data is waiting for the endpoint to take it.
    pub(super) fn set_blocked(&mut self, blocked: bool, now: impl FnOnce() -> Instant) {
        if blocked {
            self.blocked_since.get_or_insert_with(now);
        } else {
            self.blocked_since = None;
        }
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
        if self.probed_until.is_some_and(|until| now >= until) {
            self.probed_until = None;
            // What is not read is not heard.
            if self.blocked_since.is_none() && self.caught_up {
                return Tick::GiveUp(Close::Unresponsive);
            }
        }
        if now < self.next_tick {
            return Tick::Nothing;
        }
        self.next_tick = now + self.patience.ping_interval.mul_f64(rand::random_range(0.9..1.0));
        if std::mem::take(&mut self.heard) {
            self.unanswered = 0;
            return Tick::Nothing;
        }
        // A ping would wait behind the data that it does not take, and its pong behind the data
        // that we do not read: neither tells anything.
        if self.blocked_since.is_some() || !self.caught_up {
            return Tick::Nothing;
        }
        if self.unanswered == MISSED_PONGS {
            return Tick::GiveUp(Close::Unresponsive);
        }
        self.unanswered += 1;
        Tick::Ping
    }
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
        let ticks = ticks(&mut keepalive, start, Duration::from_secs(200));
        assert_eq!(ticks, [(within, Tick::GiveUp(Close::Unresponsive))]);

        let mut keepalive = Keepalive::new(PATIENCE, start);
        assert!(keepalive.probe(start + within));
        keepalive.heard();
        keepalive.caught_up();
        assert_eq!(keepalive.tick(start + within), Tick::Nothing);
        keepalive.set_blocked(true, || start);
        assert!(!keepalive.probe(start + within));
    }

    #[test]
    fn an_endpoint_that_takes_nothing_is_given_up_as_stalled_only() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(PATIENCE, start);
        keepalive.caught_up();
        keepalive.set_blocked(true, || start);
        let ticks = ticks(&mut keepalive, start, Duration::from_secs(1000));
        assert_eq!(ticks, [(PATIENCE.stalled, Tick::GiveUp(Close::Stalled))]);
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
