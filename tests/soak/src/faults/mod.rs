//! The kinds of faults, what each may harm, and the record of those that were injected.

mod history;
mod inject;
mod plan;

use clap::ValueEnum;

pub(crate) use self::history::{History, Injected};
pub(crate) use self::inject::{run, settle};

/// What is done to a part of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL, and a start under the same name.
    Kill,
    /// SIGTERM, and a start under the same name.
    Drain,
    /// SIGSTOP for less time than anything waits for a sign of life.
    ShortFreeze,
    /// SIGSTOP for longer than a bridge waits for a sign of life, and shorter than the lease.
    Freeze,
    /// SIGSTOP for longer than the lease.
    LongFreeze,
    /// Redis is killed, and started with the data of that moment.
    RedisRestart,
    /// Redis is killed, and started with data that is some seconds old.
    RedisStale,
    /// Redis is killed, and started without data.
    RedisEmpty,
    /// SIGSTOP of Redis.
    RedisFreeze,
    /// FLUSHALL.
    Flush,
    /// Redis has no memory for writes.
    RefusedWrites,
    /// SCRIPT FLUSH.
    ScriptFlush,
    /// One key is deleted.
    LostKey,
    /// Redis closes all connections.
    RedisDisconnects,
    /// The connections between two nodes are reset.
    Cut,
    /// Nothing passes between two nodes.
    Blackhole,
    /// Nothing passes from one node to another one.
    OneWay,
    /// The way between two nodes takes longer.
    Delay,
    /// A node's connections to Redis are reset.
    RedisCut,
    /// Nothing passes between a node and Redis.
    RedisBlackhole,
    /// The way between a node and Redis takes longer.
    RedisDelay,
}

impl Kind {
    pub(crate) const ALL: [Self; 21] = [
        Self::Kill,
        Self::Drain,
        Self::ShortFreeze,
        Self::Freeze,
        Self::LongFreeze,
        Self::RedisRestart,
        Self::RedisStale,
        Self::RedisEmpty,
        Self::RedisFreeze,
        Self::Flush,
        Self::RefusedWrites,
        Self::ScriptFlush,
        Self::LostKey,
        Self::RedisDisconnects,
        Self::Cut,
        Self::Blackhole,
        Self::OneWay,
        Self::Delay,
        Self::RedisCut,
        Self::RedisBlackhole,
        Self::RedisDelay,
    ];

    /// Reads the name of a kind.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(name, true).map_err(|_| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("no such kind of fault; there are: {}", names.join(", "))
        })
    }

    /// Its name in the output and on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Which tunnels it may end.
    pub(crate) fn harm(self, target: Target) -> Harm {
        match (self, target) {
            (Self::Kill | Self::Drain | Self::Freeze | Self::LongFreeze, Target::Node(node)) => {
                Harm::Node(node)
            }
            (Self::Cut | Self::Blackhole | Self::OneWay, Target::Link(one, other)) => {
                Harm::Link(one, other)
            }
            _ => Harm::Nothing,
        }
    }

    /// Whether the rendezvous of some node does not work, or forgets, while it lasts.
    pub(crate) fn troubles_redis(self) -> bool {
        match self {
            Self::RedisRestart
            | Self::RedisStale
            | Self::RedisEmpty
            | Self::RedisFreeze
            | Self::Flush
            | Self::RefusedWrites
            | Self::LostKey
            | Self::RedisDisconnects
            | Self::RedisCut
            | Self::RedisBlackhole
            | Self::RedisDelay => true,
            Self::Kill
            | Self::Drain
            | Self::ShortFreeze
            | Self::Freeze
            | Self::LongFreeze
            | Self::ScriptFlush
            | Self::Cut
            | Self::Blackhole
            | Self::OneWay
            | Self::Delay => false,
        }
    }
}

/// What a fault is injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Node(usize),
    /// The way between two nodes; where it matters, from the first to the second.
    Link(usize, usize),
    /// The way between a node and Redis.
    RedisLink(usize),
    Redis,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {}", node + 1),
            Self::Link(one, other) => write!(f, "nodes {} and {}", one + 1, other + 1),
            Self::RedisLink(node) => write!(f, "node {} and Redis", node + 1),
            Self::Redis => write!(f, "Redis"),
        }
    }
}

/// Which tunnels a fault may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    Nothing,
    /// Those with an end on this node.
    Node(usize),
    /// Those between these nodes.
    Link(usize, usize),
}

impl Harm {
    /// Whether a tunnel between these nodes may end.
    pub(crate) fn reaches(self, one: usize, other: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Node(node) => node == one || node == other,
            Self::Link(from, to) => (from, to) == (one, other) || (from, to) == (other, one),
        }
    }
}
