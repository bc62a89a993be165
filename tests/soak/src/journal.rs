//! What happened, and what must not have happened.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events that are printed again when the run has failed.
const LAST: usize = 50;
/// Violations after which the run ends early.
const ENOUGH: usize = 40;

/// The events of the run, on standard output and in a file.
pub(crate) struct Journal {
    start: Instant,
    state: Mutex<State>,
    /// Cancelled when there are too many violations.
    pub(crate) enough: CancellationToken,
}

struct State {
    file: File,
    last: VecDeque<String>,
    violations: Vec<String>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Journal {
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let file = File::create(directory.join("events.log"))?;
        let state =
            State { file, last: VecDeque::new(), violations: Vec::new(), kinds: BTreeMap::new() };
        Ok(Self {
            start: Instant::now(),
            state: Mutex::new(state),
            enough: CancellationToken::new(),
        })
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Records and prints what happened.
    pub(crate) fn note(&self, event: impl Display) {
        let line = self.line(event);
        say(&line);
        self.state().keep(line);
    }

    /// Records what happened, for the file only.
    pub(crate) fn detail(&self, event: impl Display) {
        let line = self.line(event);
        self.state().keep(line);
    }

    /// Records what must not have happened.
    pub(crate) fn violation(&self, kind: &'static str, what: impl Display) {
        let line = self.line(format_args!("VIOLATION ({kind}): {what}"));
        say(&line);
        let mut state = self.state();
        *state.kinds.entry(kind).or_default() += 1;
        state.violations.push(line.clone());
        state.keep(line);
        if state.violations.len() >= ENOUGH {
            self.enough.cancel();
        }
    }

    /// How many violations there were, by kind.
    pub(crate) fn violations(&self) -> BTreeMap<&'static str, usize> {
        self.state().kinds.clone()
    }

    /// Prints the violations and the last events.
    pub(crate) fn print_failure(&self) {
        let state = self.state();
        say(&format!("\nThe last {} events:", state.last.len()));
        state.last.iter().for_each(|line| say(line));
        say("\nViolations:");
        state.violations.iter().for_each(|line| say(line));
    }

    fn line(&self, event: impl Display) -> String {
        format!("[{:8.2}] {event}", self.now().as_secs_f64())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, line: String) {
        // Without the file, standard output is still there.
        let _without_file = writeln!(self.file, "{line}");
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// Prints a line; a closed standard output is no reason to stop.
pub(crate) fn say(line: &str) {
    let _closed = writeln!(std::io::stdout(), "{line}");
}
