//! Events that strangers, or the death of another node, can cause any number of times: the first one
//! of a kind is logged at once, the following ones are summed up, so that refused connections can
//! neither fill a disk nor hide other lines.
//!
//! The caller writes the first line itself, with all fields it has. [`Telemetry::watch`] writes the
//! sums, each second at first and less often as long as the events go on.
//!
//! [`Telemetry::watch`]: super::Telemetry::watch

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::EventKind;

use crate::lock::lock;

/// How long events are summed up before the first sum is written. It doubles with each sum.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two sums of one kind.
const LONGEST_INTERVAL: Duration = Duration::from_secs(16);
/// Kinds that are distinguished. Events of further kinds are summed up as one.
const MAX_KINDS: usize = 256;
/// Networks that one sum counts; further ones are only counted as "or more".
const MAX_NETWORKS: usize = 1024;
/// The reason of the events beyond [`MAX_KINDS`].
const OTHER_REASONS: &str = "other reasons";

/// One occurrence of an event that may happen very often.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// The event, as in its log line.
    pub what: &'static str,
    /// Why: one of few values, never a text that a client chooses.
    pub reason: Cow<'static, str>,
    /// Whether an operator should look.
    pub severity: Severity,
    /// The kind of its journal entry.
    pub kind: EventKind,
    /// The address that caused it, where that is known.
    pub from: Option<IpAddr>,
}

/// The level of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// INFO
    Info,
    /// WARN
    Warn,
}

impl Occurrence {
    /// A connection, a tunnel or a registration is refused.
    pub fn refused(what: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        let (severity, kind) = (Severity::Info, EventKind::Refused);
        Self { what, reason: reason.into(), severity, kind, from: None }
    }

    /// Something does not work, and an operator should look.
    pub fn trouble(what: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        let (severity, kind) = (Severity::Warn, EventKind::Trouble);
        Self { what, reason: reason.into(), severity, kind, from: None }
    }

    /// Adds the address that caused it.
    #[must_use]
    pub fn from(self, from: Option<IpAddr>) -> Self {
        Self { from, ..self }
    }
}

/// Sums events up.
#[derive(Debug, Default)]
pub struct Recurring {
    tallies: Mutex<BTreeMap<Kind, Tally>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    what: &'static str,
    reason: Cow<'static, str>,
}

/// The events of one kind since the last line about it.
#[derive(Debug)]
struct Tally {
    severity: Severity,
    since: Instant,
    interval: Duration,
    count: u64,
    networks: BTreeMap<IpAddr, u64>,
    has_more_networks: bool,
}

impl Recurring {
    /// Counts an event. True if it is the first one of its kind for a while: the caller logs it.
    #[must_use]
    pub(super) fn count(&self, occurrence: &Occurrence, now: Instant) -> bool {
        let mut tallies = self.tallies();
        let mut kind = Kind { what: occurrence.what, reason: occurrence.reason.clone() };
        if tallies.len() >= MAX_KINDS && !tallies.contains_key(&kind) {
            kind.reason = Cow::Borrowed(OTHER_REASONS);
        }
        match tallies.entry(kind) {
            Slot::Vacant(slot) => {
                slot.insert(Tally::new(occurrence.severity, now));
                true
            }
            Slot::Occupied(mut slot) => {
                slot.get_mut().add(occurrence.from);
                false
            }
        }
    }

    /// Logs the sums that are due. What did not happen again is forgotten.
    pub(super) fn report(&self, now: Instant) {
        self.report_where(now, |tally| {
            now.saturating_duration_since(tally.since) >= tally.interval
        });
    }

    /// Logs all sums, for the end of the node.
    pub(super) fn report_all(&self, now: Instant) {
        self.report_where(now, |_| true);
    }

    fn report_where(&self, now: Instant, is_due: impl Fn(&Tally) -> bool) {
        let mut sums = Vec::new();
        self.tallies().retain(|kind, tally| {
            if !is_due(tally) {
                return true;
            }
            let goes_on = tally.count > 0;
            if goes_on {
                let next = Tally {
                    interval: (tally.interval * 2).min(LONGEST_INTERVAL),
                    ..Tally::new(tally.severity, now)
                };
                sums.push((kind.clone(), std::mem::replace(tally, next)));
            }
            goes_on
        });
        // Not under the lock, which sessions wait for.
        for (Kind { what, reason }, tally) in sums {
            let within = now.saturating_duration_since(tally.since);
            let (reason, count) = (&*reason, tally.count);
            match tally.severity {
                Severity::Info => {
                    info!(reason, count, "{what}, {count} more within {within:.1?}{tally}");
                }
                Severity::Warn => {
                    warn!(reason, count, "{what}, {count} more within {within:.1?}{tally}");
                }
            }
        }
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Kind, Tally>> {
        lock(&self.tallies)
    }
}

impl Tally {
    fn new(severity: Severity, since: Instant) -> Self {
        Self {
            severity,
            since,
            interval: FIRST_INTERVAL,
            count: 0,
            networks: BTreeMap::new(),
            has_more_networks: false,
        }
    }

    fn add(&mut self, from: Option<IpAddr>) {
        self.count += 1;
        let Some(network) = from.map(network_of) else { return };
        let is_full = self.networks.len() >= MAX_NETWORKS;
        match self.networks.entry(network) {
            Slot::Occupied(mut slot) => *slot.get_mut() += 1,
            Slot::Vacant(_) if is_full => self.has_more_networks = true,
            Slot::Vacant(slot) => {
                slot.insert(1);
            }
        }
    }
}

/// From where, as the end of a sentence; nothing where that is not known.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((network, most)) = self.networks.iter().max_by_key(|(_, count)| **count) else {
            return Ok(());
        };
        match (self.networks.len(), self.has_more_networks) {
            (1, _) => write!(f, ", all from {network}"),
            (count, false) => write!(f, ", from {count} networks, {most} from {network}"),
            (count, true) => write!(f, ", from {count} networks or more, {most} from {network}"),
        }
    }
}

/// An IPv6 user has a /64: single addresses of it say nothing.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
pub(super) use tests::logged;
#[cfg(test)]
#[path = "recurring_tests.rs"]
mod tests;
