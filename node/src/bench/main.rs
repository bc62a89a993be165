//! `nymea-remoteproxy-bench`: measures a node from outside, and fails when it needs too much.

mod idle;
mod neighbours;
mod node;
mod observed;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure a node. Results are JSON on stdout.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Memory of a node per endpoint while many tunnels stand idle.
    Idle(idle::Options),
    /// Speed of a tunnel between two nodes while its neighbours are stalled.
    Neighbours(neighbours::Options),
    /// CPU of a node that counts and traces, compared with one that does not.
    Observed(observed::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Idle(options) => idle::run(&options).await,
        Command::Neighbours(options) => neighbours::run(&options).await,
        Command::Observed(options) => observed::run(&options).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
