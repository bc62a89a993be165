//! `nymea-remoteproxy-bench`: measures a node from outside, and fails when it needs too much.

mod idle;
mod node;

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Idle(options) = Options::parse().command;
    match idle::run(&options).await {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
