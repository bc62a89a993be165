//! The memory for all bridged tunnels of a node: a sum that they share in equal parts, so
//! that many stalled ones cost no more than few.
//!
//! A window of HTTP/2 is a promise to take so many bytes, whatever else there is to do. So the
//! windows shrink as tunnels are added, in steps by half, and grow again when tunnels end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tracing::info;

use super::watch::Health;
use crate::lock::lock;
use crate::observability::Metrics;

/// The least that a tunnel gets in either direction, in bytes, however many there are.
const LEAST: u32 = 16 * 1024;
/// The most, in bytes.
const MOST: u32 = 4 << 20;

/// The sum, and what shares it.
pub struct Budget {
    bytes: usize,
    /// The bytes that each tunnel may buffer in each direction.
    share: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tunnels: usize,
    /// The connections with windows that follow the share.
    connections: Vec<Weak<Health>>,
}

/// The part of one tunnel, as long as it lives.
pub(super) struct Share(Arc<Budget>);

impl Budget {
    /// Shares out so many bytes.
    pub fn new(bytes: usize, metrics: &Metrics) -> Arc<Self> {
        let share = AtomicU32::new(share_of(bytes, 1));
        let budget = Arc::new(Self { bytes, share, state: Mutex::default() });
        let observed = Arc::downgrade(&budget);
        metrics.observe(
            ("remoteproxy.bridge.share", "By"),
            "Bytes that each bridged tunnel may buffer in each direction",
            move || observed.upgrade().map(|budget| f64::from(budget.share())),
        );
        budget
    }

    /// Adds a tunnel, and returns its share.
    pub(super) fn tunnel(self: &Arc<Self>) -> Share {
        self.change(|tunnels| tunnels.saturating_add(1));
        Share(Arc::clone(self))
    }

    /// The bytes that each tunnel may buffer in each direction.
    pub(super) fn share(&self) -> u32 {
        self.share.load(Ordering::Relaxed)
    }

    /// Has the task of this connection woken when the share changes.
    pub(super) fn follow(&self, health: &Arc<Health>) {
        let mut state = self.state();
        state.connections.retain(|connection| connection.strong_count() > 0);
        state.connections.push(Arc::downgrade(health));
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut state = self.state();
        state.tunnels = change(state.tunnels);
        let (tunnels, before) = (state.tunnels, self.share());
        let fair = share_of(self.bytes, tunnels);
        // Grows a little later than it shrinks: not back and forth with each tunnel.
        let grown = share_of(self.bytes, tunnels.saturating_add(tunnels / 4));
        let share = if fair < before { fair } else { grown.max(before) };
        if share == before {
            return;
        }
        self.share.store(share, Ordering::Relaxed);
        let connections: Vec<_> = state.connections.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        info!(tunnels, share, "the share of bridge.buffer for each bridged tunnel has changed");
        for connection in connections {
            connection.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Share {
    /// The bytes that this tunnel may buffer in each direction now.
    pub(super) fn bytes(&self) -> usize {
        self.0.share() as usize
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.change(|tunnels| tunnels.saturating_sub(1));
    }
}

/// The share of each of so many tunnels in each direction: a power of two.
fn share_of(bytes: usize, tunnels: usize) -> u32 {
    let fair = u32::try_from(bytes / 2 / tunnels.max(1)).unwrap_or(MOST).clamp(LEAST, MOST);
    1 << fair.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_within_the_budget() {
        const BYTES: usize = 512 << 20;
        for tunnels in [1, 2, 63, 64, 65, 1000, 1024, 1025, 16_000, 16_384] {
            let share = share_of(BYTES, tunnels);
            assert!(share.is_power_of_two());
            assert!(2 * tunnels * share as usize <= BYTES, "{tunnels} tunnels");
            assert!(share == MOST || 4 * tunnels * share as usize > BYTES, "{tunnels} tunnels");
        }
        assert_eq!(share_of(BYTES, usize::MAX), LEAST);
    }

    #[test]
    fn a_share_shrinks_at_once_and_grows_a_little_later() {
        let budget = Budget::new(8 << 20, &Metrics::off());
        assert_eq!(budget.share(), 4 << 20);
        let mut tunnels: Vec<_> = std::iter::repeat_with(|| budget.tunnel()).take(16).collect();
        assert_eq!(budget.share(), 256 << 10);
        tunnels.push(budget.tunnel());
        assert_eq!(budget.share(), 128 << 10);
        // One more and one less changes nothing.
        tunnels.pop();
        assert_eq!((budget.share(), tunnels[0].bytes()), (128 << 10, 128 << 10));
        tunnels.truncate(13);
        assert_eq!(budget.share(), 256 << 10);
        tunnels.clear();
        assert_eq!(budget.share(), 4 << 20);
    }
}
