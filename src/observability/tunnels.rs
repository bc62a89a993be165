//! The established tunnels of a node with their traffic, and the sum of the traffic of ended ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::Metrics;
use super::metrics::TunnelGauge;
use crate::ids::{ClientAddr, ConnectionId, OfferId};
use crate::lock::lock;
use crate::protocol::{Close, Profile};

/// The place of a tunnel's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Both here.
    Local,
    /// One endpoint is on this node, one on another node.
    Bridged,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Local, Self::Bridged];

    /// The place as one lower-case word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Bridged => "bridged",
        }
    }
}

/// One end of a tunnel.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// On this node.
    Here {
        /// The connection of the endpoint.
        connection: ConnectionId,
        /// The address of the endpoint.
        client_addr: ClientAddr,
        /// The claims of the endpoint about itself.
        profile: Profile,
    },
    /// On another node.
    There {
        /// The name of that node, if it is known.
        node: String,
        /// The claims of the endpoint about itself.
        profile: Profile,
    },
}

impl Endpoint {
    /// The claims of the endpoint about itself.
    pub fn profile(&self) -> &Profile {
        match self {
            Self::Here { profile, .. } | Self::There { profile, .. } => profile,
        }
    }
}

/// The data about a tunnel that is known at its beginning.
#[derive(Clone, Debug)]
pub struct TunnelFacts {
    /// The id of the tunnel, the same on both nodes.
    pub id: OfferId,
    /// The place of its endpoints.
    pub kind: Kind,
    /// The endpoint that waited.
    pub first: Endpoint,
    /// The endpoint that came to it.
    pub second: Endpoint,
}

impl TunnelFacts {
    /// `1`, `2`, `3`, or `mixed` if its endpoints are of different generations.
    pub fn generation(&self) -> &'static str {
        use crate::protocol::Generation::{One, Three, Two};
        match (self.first.profile().generation, self.second.profile().generation) {
            (One, One) => "1",
            (Two, Two) => "2",
            (Three, Three) => "3",
            (One | Two | Three, One | Two | Three) => "mixed",
        }
    }
}

/// The traffic of a tunnel so far. Written by the tunnel's task only.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: [AtomicU64; 2],
    messages: [AtomicU64; 2],
}

/// The number of bytes and messages in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes.
    pub bytes: u64,
    /// Complete messages. Data from a byte stream has none.
    pub messages: u64,
}

impl Meter {
    /// Sets what went from the first endpoint to the second one, and back.
    pub fn set(&self, forth: Traffic, back: Traffic) {
        for (index, traffic) in [forth, back].into_iter().enumerate() {
            self.bytes[index].store(traffic.bytes, Ordering::Relaxed);
            self.messages[index].store(traffic.messages, Ordering::Relaxed);
        }
    }

    /// The traffic from the first endpoint to the second one, and back.
    pub fn get(&self) -> [Traffic; 2] {
        [0, 1].map(|index| Traffic {
            bytes: self.bytes[index].load(Ordering::Relaxed),
            messages: self.messages[index].load(Ordering::Relaxed),
        })
    }
}

/// An established tunnel.
#[derive(Debug)]
pub struct TunnelRecord {
    /// The data about the tunnel.
    pub facts: TunnelFacts,
    /// When it was established.
    pub since: SystemTime,
    /// The traffic of the tunnel.
    pub meter: Meter,
    began: Instant,
    close: CancellationToken,
}

impl TunnelRecord {
    /// The time since it was established.
    pub fn stands_for(&self) -> Duration {
        self.began.elapsed()
    }
}

/// See the module.
#[derive(Default)]
pub struct Tunnels {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    standing: BTreeMap<OfferId, Arc<TunnelRecord>>,
    /// By kind, and then forth and back.
    ended: [[Traffic; 2]; 2],
}

impl Tunnels {
    /// Lists a tunnel until the guard is dropped.
    pub fn begin(self: &Arc<Self>, facts: TunnelFacts, metrics: &Arc<Metrics>) -> TunnelGuard {
        let gauge = metrics.tunnel(facts.kind, facts.generation());
        let id = facts.id;
        let record = Arc::new(TunnelRecord {
            facts,
            since: SystemTime::now(),
            meter: Meter::default(),
            began: Instant::now(),
            close: CancellationToken::new(),
        });
        self.state().standing.insert(id, Arc::clone(&record));
        TunnelGuard { record, tunnels: Arc::clone(self), gauge, reason: Close::Fault }
    }

    /// Up to `count` tunnels that match `wanted`, ordered by id, beginning after `after`.
    pub fn list(
        &self,
        after: Option<OfferId>,
        count: usize,
        wanted: impl Fn(&TunnelRecord) -> bool,
    ) -> Vec<Arc<TunnelRecord>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let from = after.map_or(Unbounded, Excluded);
        let behind = state.standing.range((from, Unbounded)).map(|(_, record)| record);
        behind.filter(|record| wanted(record)).take(count).cloned().collect()
    }

    /// The established tunnel with this id.
    pub fn get(&self, id: OfferId) -> Option<Arc<TunnelRecord>> {
        self.state().standing.get(&id).cloned()
    }

    /// The number of tunnels.
    pub fn len(&self) -> usize {
        self.state().standing.len()
    }

    /// Whether there are no tunnels.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends a tunnel. False if there is none with this id.
    pub fn close(&self, id: OfferId) -> bool {
        self.state().standing.get(&id).map(|record| record.close.cancel()).is_some()
    }

    /// The traffic of all tunnels since the start, by kind, and then forth and back.
    pub fn traffic(&self) -> [(Kind, [Traffic; 2]); 2] {
        let state = self.state();
        let mut sums = state.ended;
        for record in state.standing.values() {
            add(&mut sums[record.facts.kind as usize], record.meter.get());
        }
        Kind::ALL.map(|kind| (kind, sums[kind as usize]))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn add(sums: &mut [Traffic; 2], more: [Traffic; 2]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        sum.bytes += more.bytes;
        sum.messages += more.messages;
    }
}

/// Keeps a tunnel in the list.
pub struct TunnelGuard {
    record: Arc<TunnelRecord>,
    tunnels: Arc<Tunnels>,
    gauge: TunnelGauge,
    reason: Close,
}

impl TunnelGuard {
    /// The data about the tunnel.
    pub fn record(&self) -> &TunnelRecord {
        &self.record
    }

    /// When it was established.
    pub fn began(&self) -> Instant {
        self.record.began
    }

    /// Done when an operator wants it to end.
    pub fn is_unwanted(&self) -> impl Future<Output = ()> + use<> {
        self.record.close.clone().cancelled_owned()
    }

    /// Says why it ends.
    pub fn ends(&mut self, reason: Close) {
        self.reason = reason;
    }
}

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        self.gauge.ended(self.reason.class(), self.record.began.elapsed());
        let TunnelRecord { facts, meter, .. } = &*self.record;
        let mut state = self.tunnels.state();
        state.standing.remove(&facts.id);
        add(&mut state.ended[facts.kind as usize], meter.get());
    }
}
