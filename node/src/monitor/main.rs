//! `nymea-remoteproxy-monitor`: shows on a terminal which gateways are on a node and what goes
//! through them, or writes it to standard output as lines of JSON.
//!
//! `source` asks the monitor socket, of this server or of the original. `screen` is the loop of
//! the terminal, with `terminal` and `keys` for what it gets and gives back, `view` for what is
//! shown of the reports and `draw` for how.
//!
//! Exit codes: 0 for an end by the user, 1 for any other, 2 for wrong usage.

mod draw;
mod keys;
mod lines;
mod options;
mod rates;
mod screen;
mod source;
mod terminal;
mod view;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::ensure;
use clap::Parser;
use nymea_remoteproxy::printable::Printable;

use options::Options;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if options.non_interactive {
        return runtime.block_on(lines::run(options));
    }
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "this is no terminal; use --non-interactive for lines of JSON"
    );
    let outcome = runtime.block_on(screen::run(options));
    // The thread that reads keys cannot be ended; it is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Writes a line to stderr. A failure to do so cannot be reported anywhere.
fn say(line: &str) {
    let _said = writeln!(io::stderr(), "{}", Printable::text(line));
}
