//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::faults::Kind;

/// Runs a cluster of real nodes under random faults, and checks everything that its endpoints receive.
///
/// Exit codes: 0 when nothing was violated, 1 otherwise, 2 for wrong usage.
#[derive(Clone, Debug, Parser)]
#[command(name = "nymea-remoteproxy-soak")]
pub(crate) struct Options {
    /// Minutes of faults; the checks at the end take up to two more [default: 3]
    #[arg(value_name = "minutes", conflicts_with = "minutes")]
    minutes_first: Option<f64>,

    /// Seed of the faults and the load [default: 1]
    #[arg(value_name = "seed", conflicts_with = "seed")]
    seed_second: Option<u64>,

    /// The same as the first argument
    #[arg(long)]
    minutes: Option<f64>,

    /// The same as the second argument
    #[arg(long)]
    seed: Option<u64>,

    /// Nodes of the cluster; the first one is never ended, so that a leak in it shows
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    pub(crate) nodes: u8,

    /// Pairs of endpoints that share a token
    #[arg(long, default_value_t = 16)]
    pub(crate) pairs: usize,

    /// Gateways
    #[arg(long, default_value_t = 5)]
    pub(crate) gateways: usize,

    /// Apps of each gateway
    #[arg(long, default_value_t = 3)]
    pub(crate) apps: usize,

    /// Strangers that are there at once
    #[arg(long, default_value_t = 4)]
    pub(crate) strangers: usize,

    /// Third endpoints with the token of an established tunnel that are there at once
    #[arg(long, default_value_t = 2)]
    pub(crate) intruders: usize,

    /// Seconds within which two honest endpoints must meet after the last fault has ended
    #[arg(long, default_value_t = 30)]
    bound: u64,

    /// Multiplies every bound of time, for slow or busy machines
    #[arg(long, default_value_t = 1.0)]
    factor: f64,

    /// Only these kinds of faults, separated by commas; a wrong one prints all names
    #[arg(long, value_delimiter = ',', value_parser = Kind::parse)]
    pub(crate) only: Vec<Kind>,

    /// Directory with the program of the node
    #[arg(long, value_name = "directory")]
    pub(crate) programs: PathBuf,

    /// What the nodes log; the directory of the logs is printed
    #[arg(long, default_value = "info,nymea_remoteproxy=debug")]
    pub(crate) filter: String,

    /// Keeps the logs when nothing was violated, too
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Options {
    /// How long faults go on.
    pub(crate) fn duration(&self) -> Duration {
        let minutes = self.minutes.or(self.minutes_first).unwrap_or(3.0);
        Duration::from_secs_f64(minutes.clamp(0.0, 24.0 * 60.0) * 60.0)
    }

    /// What all random decisions begin with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.or(self.seed_second).unwrap_or(1)
    }

    /// A bound of time on this machine.
    pub(crate) fn within(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds).mul_f64(self.factor.clamp(0.1, 100.0))
    }

    /// Within what time honest endpoints must meet.
    pub(crate) fn bound(&self) -> Duration {
        self.within(self.bound)
    }
}
