//! The faults of the run with their times, and what follows from them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, Target};

/// A fault that was injected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injected {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    pub(crate) begun: Instant,
    /// When what it harmed could work again; `None` while it cannot.
    pub(crate) over: Option<Instant>,
}

/// All faults of the run.
#[derive(Debug, Default)]
pub(crate) struct History {
    faults: Mutex<Vec<Injected>>,
}

impl History {
    /// Records a fault that begins now; its place for [`History::over`].
    pub(crate) fn begin(&self, kind: Kind, target: Target) -> usize {
        let mut faults = self.faults();
        faults.push(Injected { kind, target, begun: Instant::now(), over: None });
        faults.len() - 1
    }

    /// Records that this fault has ended.
    pub(crate) fn over(&self, place: usize) {
        self.faults()[place].over.get_or_insert_with(Instant::now);
    }

    /// Whether a tunnel between these nodes may have ended at this time because of a fault. Effects
    /// of a fault show up to `lag` after its end.
    pub(crate) fn may_end(&self, one: usize, other: usize, at: Instant, lag: Duration) -> bool {
        self.faults().iter().any(|fault| {
            let until = fault.over.map_or(at, |over| over + lag);
            fault.kind.harm(fault.target).reaches(one, other) && fault.begun <= at && at <= until
        })
    }

    /// Whether no fault that `counts` was there since this time.
    pub(crate) fn quiet_since(&self, since: Instant, counts: impl Fn(&Injected) -> bool) -> bool {
        !self.faults().iter().any(|fault| counts(fault) && fault.over.is_none_or(|it| it >= since))
    }

    /// When the last fault ended; `None` while one lasts.
    pub(crate) fn last_over(&self, start: Instant) -> Option<Instant> {
        self.faults()
            .iter()
            .map(|fault| fault.over)
            .try_fold(start, |last, over| Some(last.max(over?)))
    }

    /// When the last fault that is over was.
    pub(crate) fn last_ended(&self, start: Instant) -> Instant {
        self.faults().iter().filter_map(|fault| fault.over).fold(start, Instant::max)
    }

    /// The kind of the last fault, if it lasted until this time or longer.
    pub(crate) fn last_kind(&self, until: Instant) -> Option<Kind> {
        let faults = self.faults();
        let last = faults.last().filter(|fault| fault.over.is_none_or(|over| over >= until));
        last.map(|fault| fault.kind)
    }

    /// How many faults of each kind there were.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.faults().iter().filter(|fault| fault.kind == kind).count()
    }

    fn faults(&self) -> MutexGuard<'_, Vec<Injected>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
