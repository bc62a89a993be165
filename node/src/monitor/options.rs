//! The command line.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// A shorter interval would be work for the node without a visible difference.
const SHORTEST: Duration = Duration::from_millis(100);

/// Show the gateways on a node, the apps attached to them, and their traffic.
///
/// The node must have a monitor socket (monitor.socket in its configuration), and this program must
/// run as the node's user or in its group. A node reports its own gateways, with their apps on all
/// nodes of the cluster.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// The monitor socket of the node, or of the original server.
    #[arg(short, long, value_name = "FILE", default_value = "/run/nymea-remoteproxy/monitor.sock")]
    pub(crate) socket: PathBuf,
    /// Leave out gateways without apps.
    #[arg(short = 'a', long)]
    pub(crate) with_apps: bool,
    /// Time between two refreshes, as in 500ms or 10s.
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Write a line of JSON for each refresh to standard output.
    #[arg(short, long)]
    pub(crate) non_interactive: bool,
    /// End after this many lines.
    #[arg(short, long, value_name = "LINES", requires = "non_interactive")]
    pub(crate) count: Option<NonZeroU64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST {
        return Err(format!("at least {}", humantime::format_duration(SHORTEST)));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn an_interval_is_not_too_short() {
        assert_eq!(interval("100ms"), Ok(SHORTEST));
        assert_eq!(interval("99ms"), Err("at least 100ms".into()));
        assert!(interval("1").is_err());
    }
}
