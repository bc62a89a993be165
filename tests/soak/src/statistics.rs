//! How long until honest endpoints met, by kind of fault, and what else is counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::faults::{History, Kind};
use crate::journal::say;

/// The longest time that is recorded, in milliseconds; longer ones count as this.
const LONGEST: u64 = 600_000;

/// Who meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meeting {
    /// Two endpoints with the same token.
    Pair,
    /// An app and its gateway.
    App,
}

/// What was measured and counted.
#[derive(Default)]
pub(crate) struct Statistics {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    met: BTreeMap<(Meeting, Option<Kind>), Histogram<u64>>,
    counts: BTreeMap<String, u64>,
}

impl Statistics {
    /// Two endpoints have met after so long, and this was the last fault before.
    pub(crate) fn met(&self, meeting: Meeting, kind: Option<Kind>, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(LONGEST).clamp(1, LONGEST);
        let mut state = self.state();
        let histogram = state.met.entry((meeting, kind)).or_insert_with(empty);
        histogram.saturating_record(millis);
    }

    /// Counts something.
    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.state().counts.entry(what.into()).or_default() += 1;
    }

    /// Prints all of it.
    pub(crate) fn print(&self, history: &History) {
        let state = self.state();
        say("\nHow long until two honest endpoints met, by the last fault (ms):");
        say(&format!(
            "{:<18} {:>6}  {:<5} {:>7} {:>7} {:>7} {:>7} {:>7}",
            "fault", "faults", "who", "met", "p50", "p90", "p99", "max"
        ));
        let kinds = std::iter::once(None).chain(Kind::ALL.map(Some));
        for kind in kinds {
            for (meeting, who) in [(Meeting::Pair, "pairs"), (Meeting::App, "apps")] {
                if let Some(histogram) = state.met.get(&(meeting, kind)) {
                    say(&row(kind, history, who, histogram));
                }
            }
        }
        say("\nCounts:");
        for (what, count) in &state.counts {
            say(&format!("{count:>8}  {what}"));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row(kind: Option<Kind>, history: &History, who: &str, histogram: &Histogram<u64>) -> String {
    let name = kind.map_or_else(|| "(quiet)".into(), Kind::name);
    let faults = kind.map(|kind| history.count(kind).to_string()).unwrap_or_default();
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| histogram.value_at_quantile(share));
    format!(
        "{name:<18} {faults:>6}  {who:<5} {:>7} {p50:>7} {p90:>7} {p99:>7} {:>7}",
        histogram.len(),
        histogram.max()
    )
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("valid bounds")
}
