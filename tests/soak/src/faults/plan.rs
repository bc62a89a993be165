//! What will be done when, from the seed alone: no decision depends on what the cluster does.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{Kind, Target};

/// A fault to inject.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) target: Target,
    /// How long it lasts; for an end of a process, how long until the next start.
    pub(super) lasts: Duration,
    /// How much later everything arrives, for delays.
    pub(super) delay: Duration,
    /// Until the next fault.
    pub(super) pause: Duration,
}

/// The faults of a run, one after the other.
pub(super) struct Plan {
    random: StdRng,
    nodes: usize,
    kinds: Vec<Kind>,
    /// What is left of the kinds in some order: each has its turn before one has it again.
    deck: Vec<Kind>,
}

impl Plan {
    pub(super) fn new(seed: u64, nodes: usize, only: &[Kind]) -> Self {
        let mut kinds = only.to_vec();
        if kinds.is_empty() {
            kinds.extend(Kind::ALL);
            // What happens most often, and hurts most.
            kinds.extend([Kind::Kill, Kind::Kill, Kind::Drain]);
        }
        Self { random: StdRng::seed_from_u64(seed), nodes, kinds, deck: Vec::new() }
    }

    /// Faults that follow one another; the cluster is in order before the first one.
    pub(super) fn wave(&mut self) -> Vec<Fault> {
        let count = self.random.random_range(1..=4);
        (0..count).map(|_| self.fault()).collect()
    }

    fn fault(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let kind = self.deck.pop().unwrap_or(Kind::Kill);
        Fault {
            kind,
            target: self.target(kind),
            lasts: self.between(lasts(kind)),
            delay: Duration::from_millis(self.random.random_range(20..200)),
            pause: self.between((3.0, 10.0)),
        }
    }

    fn target(&mut self, kind: Kind) -> Target {
        let any = self.random.random_range(0..self.nodes);
        // The first node is never ended.
        let mortal = self.random.random_range(1..self.nodes);
        let other = (any + self.random.random_range(1..self.nodes)) % self.nodes;
        match kind {
            Kind::Kill | Kind::Drain => Target::Node(mortal),
            Kind::ShortFreeze | Kind::Freeze | Kind::LongFreeze => Target::Node(any),
            Kind::Cut | Kind::Blackhole | Kind::OneWay | Kind::Delay => Target::Link(any, other),
            Kind::RedisCut | Kind::RedisBlackhole | Kind::RedisDelay => Target::RedisLink(any),
            Kind::RedisRestart
            | Kind::RedisStale
            | Kind::RedisEmpty
            | Kind::RedisFreeze
            | Kind::Flush
            | Kind::RefusedWrites
            | Kind::ScriptFlush
            | Kind::LostKey
            | Kind::RedisDisconnects => Target::Redis,
        }
    }

    fn between(&mut self, (least, most): (f64, f64)) -> Duration {
        Duration::from_secs_f64(self.random.random_range(least..most))
    }
}

/// From how long to how long a fault lasts, in seconds.
fn lasts(kind: Kind) -> (f64, f64) {
    match kind {
        Kind::Kill | Kind::Drain => (0.2, 8.0),
        // A bridge waits 3 s for a sign of life.
        Kind::ShortFreeze => (0.5, 2.0),
        Kind::Freeze => (3.0, 6.0),
        // The lease is 10 s.
        Kind::LongFreeze | Kind::RedisBlackhole => (12.0, 15.0),
        Kind::RedisRestart | Kind::RedisEmpty => (0.1, 5.0),
        Kind::RedisStale | Kind::RefusedWrites => (3.0, 12.0),
        Kind::RedisFreeze | Kind::Blackhole | Kind::OneWay | Kind::Delay | Kind::RedisDelay => {
            (1.0, 12.0)
        }
        Kind::Flush | Kind::ScriptFlush | Kind::LostKey | Kind::RedisDisconnects => (0.0, 0.1),
        Kind::Cut | Kind::RedisCut => (0.0, 2.0),
    }
}
