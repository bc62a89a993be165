//! Two ends that try to reach each other: whether they have, and since when they have not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::content::Stream;
use crate::faults::Kind;
use crate::statistics::Meeting as Who;
use crate::world::World;

/// The state of both ends. For apps, the second end is the gateway, and not looked at.
pub(crate) struct Meeting {
    name: String,
    who: Who,
    /// How much longer it may take than others.
    slack: Duration,
    state: Mutex<State>,
}

struct State {
    ends: [End; 2],
    /// When they last met, or were found to be still together.
    met: Option<Instant>,
    reported: bool,
}

/// One end.
#[derive(Clone, Debug)]
enum End {
    /// It does not want to meet.
    Away,
    /// It has tried since then; what it tries now, for people.
    Trying { since: Instant, what: String },
    /// Its node says that the tunnel is established.
    Up { since: Instant, tried: Instant, other: Option<Arc<Stream>> },
}

/// Both ends of a tunnel as they are.
#[derive(Clone)]
pub(crate) struct Together {
    streams: [Arc<Stream>; 2],
    received: [u64; 2],
}

impl Together {
    /// Whether the same tunnel has moved data in both directions since.
    pub(crate) fn has_moved_on(&self, later: &Self) -> bool {
        (0..2).all(|end| {
            self.streams[end].id == later.streams[end].id
                && self.received[end] < later.received[end]
        })
    }

    /// The nodes of the two ends.
    pub(crate) fn nodes(&self) -> [usize; 2] {
        [self.streams[0].node, self.streams[1].node]
    }
}

impl Meeting {
    pub(crate) fn new(name: String, who: Who) -> Self {
        let state = State { ends: [End::Away, End::Away], met: None, reported: false };
        Self { name, who, slack: Duration::ZERO, state: Mutex::new(state) }
    }

    /// It may take so much longer than others.
    pub(crate) fn slower(self, slack: Duration) -> Self {
        Self { slack, ..self }
    }

    /// An end begins to try, unless it does already.
    pub(crate) fn trying(&self, end: usize, what: impl Into<String>) {
        let mut state = self.state();
        let since = match &state.ends[end] {
            End::Trying { since, .. } => *since,
            End::Away | End::Up { .. } => Instant::now(),
        };
        state.ends[end] = End::Trying { since, what: what.into() };
    }

    /// An end does not try any more.
    pub(crate) fn away(&self, end: usize) {
        self.state().ends[end] = End::Away;
    }

    /// The node of an end has said that the tunnel is established.
    pub(crate) fn established(&self, end: usize) {
        let mut state = self.state();
        let now = Instant::now();
        let tried = match &state.ends[end] {
            End::Trying { since, .. } => *since,
            End::Away | End::Up { .. } => now,
        };
        state.ends[end] = End::Up { since: now, tried, other: None };
    }

    /// An end has received the beginning of the other one's stream.
    pub(crate) fn received(&self, end: usize, stream: &Arc<Stream>, world: &World) {
        let mut state = self.state();
        if let End::Up { other, .. } = &mut state.ends[end] {
            *other = Some(Arc::clone(stream));
        }
        let both = match (&state.ends, self.who) {
            ([End::Up { since, tried, other: Some(_) }, End::Away], Who::App) => {
                Some((*since, *tried))
            }
            (
                [
                    End::Up { since, tried, other: Some(_) },
                    End::Up { since: its_since, tried: it_tried, other: Some(_) },
                ],
                Who::Pair,
            ) => Some(((*since).max(*its_since), (*tried).max(*it_tried))),
            _ => None,
        };
        if let Some((met, tried)) = both {
            state.met = Some(Instant::now());
            state.reported = false;
            let (kind, took) = measured(world, met, tried);
            world.statistics.met(self.who, kind, took);
            let kind = kind.map_or_else(|| "nothing".into(), Kind::name);
            world.journal.detail(format_args!(
                "met: {} after {:.3} s, after {kind}",
                self.name,
                took.as_secs_f64()
            ));
        }
    }

    /// Both ends, if they are together now.
    pub(crate) fn together(&self) -> Option<Together> {
        match &self.state().ends {
            [End::Up { other: Some(one), .. }, End::Up { other: Some(other), .. }] => {
                Some(Together {
                    streams: [Arc::clone(one), Arc::clone(other)],
                    received: [one.received(), other.received()],
                })
            }
            _ => None,
        }
    }

    /// Says what is wrong if the ends have not met since then, and are not together now.
    pub(crate) fn unwell(&self, since: Instant) -> Option<String> {
        let state = self.state();
        let is_slow = self.slack > Duration::ZERO;
        let well = is_slow || state.met.is_some_and(|met| met >= since) || self.is_up(&state);
        (!well).then(|| self.describe(&state))
    }

    /// Says what is wrong, once, if both ends have tried for too long.
    pub(crate) fn overdue(&self, bound: Duration) -> Option<String> {
        let mut state = self.state();
        let tried = |end: &End| match end {
            End::Away => None,
            End::Trying { since, .. } => Some(*since),
            End::Up { tried, .. } => Some(*tried),
        };
        let since = match self.who {
            Who::Pair => tried(&state.ends[0])?.max(tried(&state.ends[1])?),
            Who::App => tried(&state.ends[0])?,
        };
        let overdue =
            !state.reported && !self.is_up(&state) && since.elapsed() > bound + self.slack;
        state.reported |= overdue;
        overdue.then(|| self.describe(&state))
    }

    fn is_up(&self, state: &State) -> bool {
        let up = |end: &End| matches!(end, End::Up { other: Some(_), .. });
        match self.who {
            Who::Pair => state.ends.iter().all(up),
            Who::App => up(&state.ends[0]),
        }
    }

    fn describe(&self, state: &State) -> String {
        let shown = |end: &End| match end {
            End::Away => "away".to_owned(),
            End::Trying { since, what } => {
                format!("trying for {:.1} s, {what}", since.elapsed().as_secs_f64())
            }
            End::Up { since, other, .. } => {
                let heard = if other.is_some() { "" } else { ", received nothing" };
                format!("established for {:.1} s{heard}", since.elapsed().as_secs_f64())
            }
        };
        let ends: Vec<_> = match self.who {
            Who::Pair => state.ends.iter().map(shown).collect(),
            Who::App => vec![shown(&state.ends[0])],
        };
        format!("{}: {}", self.name, ends.join(" / "))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which fault a meeting follows, and how long it took since both ends could work.
fn measured(world: &World, met: Instant, tried: Instant) -> (Option<Kind>, Duration) {
    let last = world.history.last_ended(world.start).min(met);
    let kind = world.history.last_kind(tried.checked_sub(Duration::from_secs(3)).unwrap_or(tried));
    (kind, met.duration_since(tried.max(last)))
}
