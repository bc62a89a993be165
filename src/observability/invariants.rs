//! What must be true whatever happens, checked while a node runs, where it is about to be relied
//! on and where it is given up. The checks are where the state is; here is what becomes of one that
//! fails: an error in the log and a metric. Its caller ends the one tunnel that is concerned.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tracing::error;

use super::Metrics;

use crate::lock::lock;

/// The time between two errors in the log about one invariant. The metric counts all.
const PAUSE: Duration = Duration::from_secs(1);

/// A rule that the node relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A key has one tunnel on a node, with two legs.
    TwoLegsPerKey,
    /// The entry of a tunnel is released by the endpoint that made it.
    ReleasedByOwner,
    /// What is delivered, and what is held for it, is what was accepted.
    DeliveredAsAccepted,
    /// The right to be connected is returned once.
    PermitReturnedOnce,
    /// A gauge is not negative.
    GaugeNotNegative,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::TwoLegsPerKey,
        Self::ReleasedByOwner,
        Self::DeliveredAsAccepted,
        Self::PermitReturnedOnce,
        Self::GaugeNotNegative,
    ];

    /// A short constant name, for the log and the metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TwoLegsPerKey => "two_legs_per_key",
            Self::ReleasedByOwner => "released_by_owner",
            Self::DeliveredAsAccepted => "delivered_as_accepted",
            Self::PermitReturnedOnce => "permit_returned_once",
            Self::GaugeNotNegative => "gauge_not_negative",
        }
    }
}

/// When a violation of each invariant was logged last.
#[derive(Debug, Default)]
pub(super) struct Reported(Mutex<BTreeMap<Invariant, Instant>>);

impl Reported {
    fn is_due(&self, invariant: Invariant) -> bool {
        let mut reported = lock(&self.0);
        let now = Instant::now();
        let is_due = reported.get(&invariant).is_none_or(|last| now - *last >= PAUSE);
        if is_due {
            reported.insert(invariant, now);
        }
        is_due
    }
}

/// How many there are of something that a gauge shows.
#[derive(Debug, Default)]
pub(super) struct Level(AtomicI64);

impl Metrics {
    /// Records that an invariant is violated; `details` is what helps to find out why, without
    /// anything that a client wrote.
    pub fn violated(&self, invariant: Invariant, details: fmt::Arguments<'_>) {
        self.count_violation(invariant);
        if self.reported.is_due(invariant) {
            let invariant = invariant.label();
            error!(invariant, "a fault of this program, please report it: {details}");
        }
    }

    /// Takes one off a count of rights that are out, such as that to be connected.
    pub fn returned(&self, count: &mut usize, what: &'static str) {
        match count.checked_sub(1) {
            Some(less) => *count = less,
            None => self.violated(
                Invariant::PermitReturnedOnce,
                format_args!("{what} is returned, and none is out"),
            ),
        }
    }

    /// Changes a level by one. False if it would be negative, and then it is left as it is.
    pub(super) fn change(&self, level: &Level, change: i64, what: &'static str) -> bool {
        let before = level.0.fetch_add(change, Ordering::Relaxed);
        if before + change >= 0 {
            return true;
        }
        level.0.fetch_sub(change, Ordering::Relaxed);
        self.violated(
            Invariant::GaugeNotNegative,
            format_args!("the number of {what} would be {}", before + change),
        );
        false
    }
}

#[cfg(test)]
#[path = "invariants_tests.rs"]
mod tests;
