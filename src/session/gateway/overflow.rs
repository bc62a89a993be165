//! What waits for the apps of a node beyond the backlog that each of them has for itself: together,
//! they have one bounded overflow.
//!
//! An app may use as much of it as is left to the others, so that one that takes nothing leaves them
//! half of it. What an app may not use any more, its gateway keeps: it is not read while it waits
//! for that app, which it does for a bounded time ([`Patience`]). While a gateway waits for room, the
//! app that uses most of the overflow and takes nothing is closed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::lane::{Goodbye, Lane};
use crate::ids::OfferId;
use crate::lock::lock;
use crate::observability::Metrics;
use crate::protocol::Close;

/// An app that is beyond its backlog and takes nothing at all for this long is closed when there is
/// no room for it, or for another app.
pub(super) const STALLED: Duration = Duration::from_secs(2);
/// The same when its gateway has waited too much lately.
const STALLED_AGAIN: Duration = Duration::from_millis(250);
/// An app that takes as many bytes per second costs its gateway nothing: it is slowed down as any
/// writer is by its reader.
const ENOUGH_PER_SECOND: u64 = 256 * 1024;
/// The part of its time that a gateway waits for apps which take less, in the long run.
const SHARE: u32 = 20;

/// See the module.
pub(in crate::session) struct Overflow {
    limit: usize,
    used: AtomicUsize,
    /// The apps that use any of it.
    apps: Mutex<BTreeMap<OfferId, User>>,
}

struct User {
    gateway: OfferId,
    lane: Weak<Lane>,
    /// What it had taken in all, and since when it has taken nothing more.
    taken: u64,
    since: Instant,
}

/// An app that has been closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) gateway: OfferId,
    pub(super) app: OfferId,
}

impl Overflow {
    /// For so many bytes in all.
    pub(in crate::session) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), apps: Mutex::default() })
    }

    /// Tells operators how much of it is in use.
    pub(in crate::session) fn observe(self: &Arc<Self>, metrics: &Metrics) {
        let overflow = Arc::downgrade(self);
        #[expect(clippy::cast_precision_loss, reason = "2^52 bytes are enough")]
        let used = move || overflow.upgrade().map(|overflow| overflow.used() as f64);
        metrics.observe(
            ("remoteproxy.gateway.overflow", "By"),
            "Bytes buffered for apps beyond their own backlog (limit: tunnel_proxy.overflow)",
            used,
        );
    }

    /// Bytes that are in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that an app may use: as many as are unused.
    pub(super) fn share(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// An app uses so many bytes now, and used so many before.
    pub(super) fn change(&self, before: usize, now: usize) {
        if now > before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// The app with this id begins to use it.
    pub(super) fn enter(&self, gateway: OfferId, app: OfferId, lane: &Arc<Lane>, now: Instant) {
        let mut apps = self.lock();
        apps.retain(|_, user| user.lane.upgrade().is_some_and(|lane| lane.usage().over > 0));
        let user =
            User { gateway, lane: Arc::downgrade(lane), taken: lane.usage().taken, since: now };
        apps.insert(app, user);
    }

    /// Makes room: of the apps that have taken nothing for [`STALLED`], the one that uses most is
    /// closed.
    pub(super) fn relieve(&self, now: Instant) -> Option<Closed> {
        let mut apps = self.lock();
        let mut worst: Option<(usize, OfferId, Arc<Lane>)> = None;
        apps.retain(|app, user| {
            let Some(lane) = user.lane.upgrade() else { return false };
            let usage = lane.usage();
            if usage.taken != user.taken {
                (user.taken, user.since) = (usage.taken, now);
            } else if now.saturating_duration_since(user.since) >= STALLED
                && worst.as_ref().is_none_or(|(most, ..)| usage.over > *most)
            {
                worst = Some((usage.over, *app, lane));
            }
            usage.over > 0
        });
        let (_, app, lane) = worst.filter(|(over, ..)| *over > 0)?;
        let user = apps.remove(&app)?;
        drop(apps);
        let gateway = user.gateway;
        lane.end(Goodbye::Closed(Close::Backlog), true).then_some(Closed { gateway, app })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OfferId, User>> {
        lock(&self.apps)
    }
}

/// How long a gateway still waits for apps that take too little.
pub(super) struct Patience {
    left: Duration,
    at: Instant,
}

/// A time for which a gateway has waited for an app.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited {
    pub(super) time: Duration,
    /// Bytes that the app has taken in this time.
    pub(super) taken: u64,
}

/// What waiting for one app has cost its gateway.
#[derive(Clone, Copy, Default)]
pub(super) struct Cost(Duration);

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: STALLED, at: now }
    }

    /// Notes that the gateway has waited for an app until now. True if that app has cost it too much.
    pub(super) fn spend(&mut self, cost: &mut Cost, waited: Waited, now: Instant) -> bool {
        let Waited { time, taken } = waited;
        let back = now.saturating_duration_since(self.at) / SHARE;
        self.left = (self.left + back).min(STALLED);
        self.at = now;
        let paid = Duration::from_micros(taken.saturating_mul(1_000_000) / ENOUGH_PER_SECOND);
        cost.0 = (cost.0 + time).saturating_sub(paid);
        self.left = self.left.saturating_sub(time.saturating_sub(paid));
        cost.0 >= if self.left.is_zero() { STALLED_AGAIN } else { STALLED }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::hub::Room;
    use super::super::lane::Pushed;
    use super::*;

    const PIECE: usize = 32 * 1024;

    fn lane(overflow: &Arc<Overflow>) -> Arc<Lane> {
        Arc::new(Lane::new(Room { backlog: 64 * 1024, overflow: Arc::clone(overflow) }))
    }

    /// Pushes until there is no room, and enters the lane.
    fn fill(overflow: &Overflow, lane: &Arc<Lane>, now: Instant) -> OfferId {
        let app = OfferId::random();
        loop {
            match lane.push_down(Bytes::from(vec![7; PIECE])) {
                Pushed::Taken => {}
                Pushed::Over => overflow.enter(OfferId::random(), app, lane, now),
                Pushed::Full => return app,
                Pushed::Gone => panic!("it is there"),
            }
        }
    }

    #[test]
    fn one_app_leaves_half_of_the_overflow_to_the_others_and_gives_all_of_it_back() {
        let overflow = Overflow::new(1 << 20);
        let (one, other) = (lane(&overflow), lane(&overflow));
        let now = Instant::now();
        fill(&overflow, &one, now);
        let slack = 2 * PIECE;
        assert!((512 * 1024..512 * 1024 + slack).contains(&one.usage().over), "{:?}", one.usage());
        fill(&overflow, &other, now);
        assert!(other.usage().over >= 200 * 1024, "{:?}", other.usage());
        assert_eq!(overflow.used(), one.usage().over + other.usage().over);
        assert!(overflow.used() <= 1 << 20);
        drop(one);
        assert_eq!(overflow.used(), other.usage().over);
        assert!(other.has_room());
        other.leave();
        assert_eq!(overflow.used(), 0);
    }

    #[test]
    fn the_app_that_uses_most_and_takes_nothing_is_closed() {
        let overflow = Overflow::new(1 << 20);
        let lanes = [lane(&overflow), lane(&overflow), lane(&overflow)];
        let began = Instant::now();
        let apps = lanes.each_ref().map(|lane| fill(&overflow, lane, began));
        assert_eq!(overflow.relieve(began + STALLED / 2), None);
        // The first one, which uses most, takes something.
        let waker = futures_util::task::noop_waker();
        let cx = std::task::Context::from_waker(&waker);
        assert!(lanes[0].poll_down(&cx).is_ready());
        let used = overflow.used();
        let closed = overflow.relieve(began + STALLED).expect("it is closed");
        assert_eq!(closed.app, apps[1]);
        assert!(overflow.used() < used && lanes[1].usage().over == 0);
        assert_eq!(lanes[1].push_down(Bytes::from_static(b"more")), Pushed::Gone);
    }

    #[test]
    fn what_takes_enough_costs_nothing_and_what_takes_nothing_costs_little_time() {
        let now = Instant::now();
        let look = Duration::from_millis(50);
        let waits = |patience: &mut Patience, taken, from: Instant| {
            let mut cost = Cost::default();
            let looks = (1..=1000_u32).find(|looks| {
                patience.spend(&mut cost, Waited { time: look, taken }, from + look * *looks)
            });
            looks.map(|looks| look * looks)
        };
        let mut patience = Patience::new(now);
        assert_eq!(waits(&mut patience, ENOUGH_PER_SECOND / 20, now), None);
        let first = waits(&mut patience, 0, now + Duration::from_mins(1)).expect("it is closed");
        assert!(first <= STALLED, "{first:?}");
        let second = waits(&mut patience, 0, now + Duration::from_secs(63)).expect("it is closed");
        assert!(second <= STALLED_AGAIN * 2, "{second:?}");
        // An app that takes next to nothing gains nothing by it.
        let third = waits(&mut patience, 100, now + Duration::from_secs(64)).expect("it is closed");
        assert!(third <= STALLED_AGAIN * 2, "{third:?}");
    }
}
