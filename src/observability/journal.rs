//! The recent events of a node, for people who look at it now. Older ones are in the log.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Events that are kept.
const KEPT: usize = 100;

/// The last events, and the number of the next one.
#[derive(Default)]
pub struct Journal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    next: u64,
}

/// Something that an operator might want to know.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts up from 0.
    pub number: u64,
    /// When it happened.
    pub at: SystemTime,
    /// What it is about.
    pub kind: EventKind,
    /// In words.
    pub text: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A tunnel came or went.
    Tunnel,
    /// A gateway came or went.
    Gateway,
    /// A connection, a tunnel or a registration was refused.
    Refused,
    /// Something does not work.
    Trouble,
    /// The node, or what it depends on, changed its state.
    State,
}

impl EventKind {
    /// One lower-case word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Gateway => "gateway",
            Self::Refused => "refused",
            Self::Trouble => "trouble",
            Self::State => "state",
        }
    }
}

impl Journal {
    /// Notes an event. The oldest one makes room for it.
    pub fn note(&self, kind: EventKind, text: impl Into<String>) {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.events.len() == KEPT {
            state.events.pop_front();
        }
        state.events.push_back(Event { number, at: SystemTime::now(), kind, text: text.into() });
    }

    /// The events with this number and later ones, in their order.
    pub fn since(&self, number: u64) -> Vec<Event> {
        let state = self.state();
        state.events.iter().filter(|event| event.number >= number).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single step: what a panicking thread left behind is in order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_events_are_kept_in_order() {
        let journal = Journal::default();
        for number in 0..150 {
            journal.note(EventKind::State, number.to_string());
        }
        let events = journal.since(0);
        assert_eq!(events.len(), KEPT);
        assert_eq!((events[0].number, events[0].text.as_str()), (50, "50"));
        assert_eq!(journal.since(149).len(), 1);
        assert!(journal.since(150).is_empty());
    }
}
