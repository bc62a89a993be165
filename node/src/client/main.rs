//! `nymea-remoteproxy-client`: be an endpoint from the command line.
//!
//! This file reads the options, makes the tunnel, hands it to the chosen mode and turns what came
//! of it into an exit code: 0 only if the proxy has all that was sent and the tunnel closed
//! normally, 2 for wrong usage, 1 for everything else.

mod advice;
mod attachments;
mod carry;
#[path = "../logging/human.rs"]
mod human;
mod options;
mod pingpong;
mod relay;
mod tcp;
mod tunnel;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use nymea_remoteproxy::printable::Printable;
use tracing_subscriber::EnvFilter;

use options::{Mode, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    options.check();
    log(options.verbose);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(run(&options));
    // A read of stdin cannot be ended; waiting for it would take until there is input.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    if options.ignore_ssl {
        say("warning: -i accepts any certificate, so all data can be intercepted and changed");
    }
    match options.mode() {
        Mode::Pipe => relay::pipe(tunnel::open(options).await?, options).await,
        Mode::Listen(address) => tcp::listen(options, address).await,
        Mode::Connect(address) => tcp::connect(options, address).await,
        Mode::Gateway { uuid, connect } => attachments::serve(options, uuid, connect).await,
        Mode::App { gateway, listen } => attachments::listen(options, gateway, listen).await,
        Mode::PingPong => pingpong::run(tunnel::open(options).await?, options).await,
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say(&format!("error: {}", advice::line(error)));
    ExitCode::FAILURE
}

/// Writes a line to stderr. A failure to do so cannot be reported anywhere.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", Printable::text(line));
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    tracing_subscriber::fmt()
        .fmt_fields(human::fields())
        .with_env_filter(EnvFilter::new(level))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
