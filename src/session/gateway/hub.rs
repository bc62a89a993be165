//! Where apps meet the task of their gateway: addresses are given out, newcomers and signs of data
//! are left for the gateway's task, which takes them when it can.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Waker};

use super::lane::{Goodbye, Lane};
use super::overflow::Overflow;
use super::port::GatewayPort;
use crate::lock::lock;
use crate::observability::{AppRecord, GatewayRecord};
use crate::protocol::{APP_ADDRESSES, App, Profile};
use crate::rendezvous::Secret;

/// A gateway as those know it who want to be attached to it.
pub(in crate::session) struct Hub {
    /// What is known of it.
    pub(in crate::session) record: Arc<GatewayRecord>,
    /// What it says of itself.
    pub(in crate::session) profile: Profile,
    /// Other nodes must know it to attach apps.
    pub(in crate::session) secret: Secret,
    room: Room,
    state: Mutex<State>,
}

/// How much may wait for an app.
#[derive(Clone)]
pub(in crate::session) struct Room {
    /// Bytes that it has for itself.
    pub(in crate::session) backlog: usize,
    /// What it shares with all apps of the node.
    pub(in crate::session) overflow: Arc<Overflow>,
}

struct State {
    /// It takes apps.
    open: bool,
    addresses: Addresses,
    newcomers: VecDeque<Newcomer>,
    /// Apps that have sent something, or left; in the order in which they are served.
    ready: VecDeque<u16>,
    gateway: Option<Waker>,
}

/// An app that is not announced to the gateway yet.
pub(super) struct Newcomer {
    pub(super) app: App,
    pub(super) record: Arc<AppRecord>,
    pub(super) lane: Arc<Lane>,
}

/// Why an app cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum NotAttached {
    /// The gateway has left.
    Gone,
    /// It has no address left.
    Full,
}

impl Hub {
    pub(in crate::session) fn new(
        record: Arc<GatewayRecord>,
        profile: Profile,
        secret: Secret,
        room: Room,
    ) -> Arc<Self> {
        let state = State {
            open: true,
            addresses: Addresses::new(APP_ADDRESSES),
            newcomers: VecDeque::new(),
            ready: VecDeque::new(),
            gateway: None,
        };
        Arc::new(Self { record, profile, secret, room, state: Mutex::new(state) })
    }

    /// Attaches an app. Its record is made for the address it gets.
    pub(in crate::session) fn attach(
        self: &Arc<Self>,
        app: App,
        record: impl FnOnce(u16) -> AppRecord,
    ) -> Result<GatewayPort, NotAttached> {
        let mut state = self.lock();
        if !state.open {
            return Err(NotAttached::Gone);
        }
        let address = state.addresses.take().ok_or(NotAttached::Full)?;
        let (record, lane) = (Arc::new(record(address)), Arc::new(Lane::new(self.room.clone())));
        let port = GatewayPort::new(Arc::clone(self), address, Arc::clone(&lane));
        state.newcomers.push_back(Newcomer { app, record, lane });
        wake(state);
        Ok(port)
    }

    /// What the apps of the node share.
    pub(super) fn overflow(&self) -> &Overflow {
        &self.room.overflow
    }

    /// The app with this address has something for the gateway's task.
    pub(super) fn announce(&self, address: u16) {
        let mut state = self.lock();
        state.ready.push_back(address);
        wake(state);
    }

    /// The gateway's task is to look again.
    pub(super) fn nudge(&self) {
        wake(self.lock());
    }

    /// The gateway's task is woken from now on when there is something for it.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        let mut state = self.lock();
        match &mut state.gateway {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.gateway = Some(cx.waker().clone()),
        }
    }

    pub(super) fn newcomer(&self) -> Option<Newcomer> {
        self.lock().newcomers.pop_front()
    }

    /// Returns the address of the app that has its turn.
    pub(super) fn next_ready(&self) -> Option<u16> {
        self.lock().ready.pop_front()
    }

    /// An app has more, and waits for its next turn.
    pub(super) fn requeue(&self, address: u16) {
        self.lock().ready.push_back(address);
    }

    /// An app is gone: after all other addresses, another one may have its.
    pub(super) fn free_address(&self, address: u16) {
        self.lock().addresses.free_address(address);
    }

    /// Accepts no more apps, and closes those that are not announced yet.
    pub(super) fn close(&self, why: Goodbye) {
        let newcomers = {
            let mut state = self.lock();
            state.open = false;
            std::mem::take(&mut state.newcomers)
        };
        for newcomer in newcomers {
            newcomer.lane.end(why, false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Wakes the gateway's task without holding the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    if let Some(waker) = state.gateway.take() {
        drop(state);
        waker.wake();
    }
}

/// Gives out addresses, each as late as possible after it was last used: what is still under way to
/// an app that is gone must not reach another one.
struct Addresses {
    all: RangeInclusive<u16>,
    next: u16,
    used: HashSet<u16>,
}

impl Addresses {
    fn new(all: RangeInclusive<u16>) -> Self {
        Self { next: *all.start(), all, used: HashSet::new() }
    }

    fn take(&mut self) -> Option<u16> {
        if self.used.len() >= self.all.len() {
            return None;
        }
        loop {
            let address = self.next;
            self.next = if address == *self.all.end() { *self.all.start() } else { address + 1 };
            if self.used.insert(address) {
                return Some(address);
            }
        }
    }

    fn free_address(&mut self, address: u16) {
        self.used.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_come_again_as_late_as_can_be() {
        let mut addresses = Addresses::new(1..=4);
        let given: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(given, [1, 2, 3, 4]);
        addresses.free_address(3);
        addresses.free_address(2);
        assert_eq!(addresses.take(), Some(2));
        addresses.free_address(2);
        assert_eq!([addresses.take(), addresses.take()], [Some(3), Some(2)]);
        assert_eq!(addresses.take(), None);
    }

    #[test]
    fn all_addresses_of_the_protocol_are_given_out() {
        let mut addresses = Addresses::new(APP_ADDRESSES);
        let given: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(given.len(), 0xFFFE);
        assert_eq!((given[0], given[given.len() - 1]), (1, 0xFFFE));
    }
}
