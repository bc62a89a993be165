//! The recent events of a node, for people who look at it now. Older ones are in the log.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use crate::lock::lock;
use crate::printable::Printable;

/// Events that are kept of each kind: a flood of one kind pushes out no other.
const KEPT: usize = 100;

/// The last events, and the number of the next one.
#[derive(Default)]
pub struct Journal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tunnels: VecDeque<Event>,
    gateways: VecDeque<Event>,
    refused: VecDeque<Event>,
    trouble: VecDeque<Event>,
    states: VecDeque<Event>,
    next: u64,
}

/// Something that an operator might want to know.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts up from 0. An event that happens again gets a new number.
    pub number: u64,
    /// When it happened last.
    pub at: SystemTime,
    /// What it is about.
    pub kind: EventKind,
    /// In words.
    pub text: String,
    /// How often it happened.
    pub count: u64,
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

    /// Whether equal events become one with a count. Events of tunnels and states keep their order
    /// instead.
    const fn is_counted(self) -> bool {
        match self {
            Self::Refused | Self::Trouble => true,
            Self::Tunnel | Self::Gateway | Self::State => false,
        }
    }
}

impl Journal {
    /// Notes an event. The oldest one of its kind makes room for it.
    pub fn note(&self, kind: EventKind, text: impl AsRef<str>) {
        let text = Printable::text(text.as_ref()).to_string();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let events = state.of(kind);
        let known = events.iter().position(|event| kind.is_counted() && event.text == text);
        let before = known.and_then(|index| events.remove(index)).map_or(0, |event| event.count);
        if events.len() == KEPT {
            events.pop_front();
        }
        let at = SystemTime::now();
        events.push_back(Event { number, at, kind, text, count: before + 1 });
    }

    /// The events with this number and later ones, in their order.
    pub fn since(&self, number: u64) -> Vec<Event> {
        let state = self.state();
        let State { tunnels, gateways, refused, trouble, states, next: _ } = &*state;
        let all = [tunnels, gateways, refused, trouble, states].into_iter().flatten();
        let mut events: Vec<_> = all.filter(|event| event.number >= number).cloned().collect();
        events.sort_by_key(|event| event.number);
        events
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn of(&mut self, kind: EventKind) -> &mut VecDeque<Event> {
        match kind {
            EventKind::Tunnel => &mut self.tunnels,
            EventKind::Gateway => &mut self.gateways,
            EventKind::Refused => &mut self.refused,
            EventKind::Trouble => &mut self.trouble,
            EventKind::State => &mut self.states,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_events_of_a_kind_are_kept_in_order() {
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

    #[test]
    fn a_flood_of_one_kind_pushes_out_no_other_and_equal_ones_are_counted() {
        let journal = Journal::default();
        journal.note(EventKind::Tunnel, "established");
        journal.note(EventKind::State, "draining");
        for number in 0..1000 {
            journal.note(EventKind::Refused, "the same");
            journal.note(EventKind::Refused, format!("another {}", number % 10));
            journal.note(EventKind::Gateway, number.to_string());
        }
        let events = journal.since(0);
        let texts: Vec<_> = events.iter().map(|event| &*event.text).collect();
        assert_eq!(texts[..2], ["established", "draining"]);
        assert_eq!(events.len(), 2 + 11 + KEPT);
        let count = |text| events.iter().find(|event| event.text == text).map(|event| event.count);
        assert_eq!((count("the same"), count("another 3")), (Some(1000), Some(100)));
        assert!(events.is_sorted_by_key(|event| event.number));
    }

    #[test]
    fn a_state_that_comes_back_is_listed_again() {
        let journal = Journal::default();
        for text in ["Redis is away", "Redis answers", "Redis is away"] {
            journal.note(EventKind::State, text);
        }
        assert_eq!(journal.since(0).len(), 3);
    }
}
