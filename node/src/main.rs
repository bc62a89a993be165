//! `nymea-remoteproxy`: the node as a program. It reads flags and settings, sets up the log, starts
//! the node and drains it on a signal. What a node does is in the library.
//!
//! Exit codes: 0 for an end in order, 1 when the node cannot run, 2 for wrong usage or settings.

mod failure;
mod flags;
mod logging;
mod signals;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use nymea_remoteproxy::config::Config;
use nymea_remoteproxy::node::{LocalAddr, Node, Prepared};
use nymea_remoteproxy::observability::LogControl;
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;
use tracing::{info, warn};

use failure::Failure;
use flags::Flags;
use signals::Signals;

/// Gives memory back to the system within seconds, from a thread of its own; glibc's keeps what many
/// connections have used until it is needed again.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(flags: &Flags) -> Result<(), Failure> {
    let config =
        Config::load(flags.config.as_deref(), flags.overrides()).map_err(Failure::configuration)?;
    if flags.check {
        return check(config);
    }
    let log = logging::start(&config.log, flags.verbose).map_err(Failure::configuration)?;
    let runtime = Runtime::new().map_err(Failure::runtime)?;
    let outcome = runtime.block_on(serve(config, log.control()));
    // Tasks that are still busy after the drain, or after a second signal, are not waited for.
    runtime.shutdown_background();
    outcome.inspect_err(Failure::log)
}

fn check(config: Config) -> Result<(), Failure> {
    logging::check(&config.log).map_err(Failure::configuration)?;
    let warnings = config.warnings.clone();
    let prepared = Prepared::new(config).map_err(Failure::configuration)?;
    let mut out = io::stdout();
    for warning in warnings {
        writeln!(out, "warning: {warning}").map_err(Failure::runtime)?;
    }
    for line in prepared.summary() {
        writeln!(out, "{line}").map_err(Failure::runtime)?;
    }
    writeln!(out, "the configuration is valid").map_err(Failure::runtime)
}

async fn serve(config: Config, log: Arc<dyn LogControl>) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(Failure::runtime)?;
    raise_file_limit();
    let by_default = config.tls.certificate.is_none() && config.authentication.server.is_none();

    for warning in &config.warnings {
        warn!("{warning}");
    }
    let prepared = Prepared::new(config).map_err(Failure::configuration)?.log(log);
    let summary = prepared.summary();
    let node = prepared.start().map_err(Failure::runtime)?;
    for line in summary {
        info!("{line}");
    }
    for address in node.addresses() {
        info!("listening on {}", address.url());
    }
    if let Some(url) = node.admin_url() {
        info!("status page, API and metrics on {url}");
    }
    if by_default && node.addresses().iter().any(LocalAddr::is_web_socket) {
        tell_how_to_try(&node);
    }

    let signal = signals.next().await;
    info!("{signal}: draining, a second signal ends the node at once");
    tokio::select! {
        () = node.drain() => {}
        signal = signals.next() => warn!("{signal}: ending at once"),
    }
    Ok(())
}

/// As far as the system lets it. What is missing then is known to the node.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        warn!(%error, "the limit of file descriptors cannot be raised");
    }
}

fn tell_how_to_try(node: &Node) {
    let trust = node.fingerprint().map(|hash| format!(" --fingerprint {hash}")).unwrap_or_default();
    for terminal in ["one terminal", "another"] {
        info!(
            "try it, in {terminal}: nymea-remoteproxy-client --url {} --token try-it{trust}",
            node.url()
        );
    }
}
