//! `nymea-remoteproxy-bench`: measures a node from outside, and fails when it needs too much.
//!
//! A measurement is a module with its options. They share `target` (the server to measure, and how a
//! tunnel through it is established), `endpoint` and `wire` (the data sent and checked), and `usage`
//! (the resources that processes use).

mod apps;
mod backend;
mod delay;
mod endpoint;
mod flood;
mod floor;
mod hostile;
mod idle;
mod latency;
mod load;
mod neighbours;
mod node;
mod observed;
mod report;
mod setup;
mod stalled;
mod target;
mod throughput;
mod tls;
mod usage;
mod wire;
mod work;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
Each command prints one JSON object on stdout, and a readable line on stderr. Without --url it starts
a node with default settings, from the program beside this one. To measure a running node, give its
URL and, for CPU time and memory, its process on this machine:

  nymea-remoteproxy-bench throughput --url wss://127.0.0.1:1212 -i --pid $(pidof nymea-remoteproxy)

To measure two nodes of a cluster, give two URLs and two processes. Generator and node share the
machine: when \"machine_busy\" is near 1, compare costs (CPU time) rather than speeds.

All data is numbered and compared with the data sent, byte by byte: if any is lost, doubled, reordered,
cut or changed, the command fails.

Exit codes: 0 when it was measured and is within the bounds that were given, 1 when not, 2 for wrong
usage.";

/// Measure a node, to size a cluster.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Options {
    #[command(subcommand)]
    command: Command,
    /// Threads of the generator [default: one for each processor]
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Speed, and CPU time per GiB, of flooded tunnels
    Throughput(throughput::Options),
    /// Time, and CPU time, of a message to the other end and one back
    Latency(latency::Options),
    /// Time, and CPU time, to establish a tunnel
    Setup(setup::Options),
    /// Memory per endpoint, and CPU time, of many idle tunnels
    Idle(idle::Options),
    /// Memory for tunnels that are flooded and not read
    Stalled(stalled::Options),
    /// Speed of a tunnel between two nodes while its neighbours are stalled
    Neighbours(neighbours::Options),
    /// Speed of a gateway to its apps while one of them is stalled
    Apps(apps::Options),
    /// Round trips of a tunnel while strangers flood the node with cheap requests
    Hostile(hostile::Options),
    /// CPU time of a node with metrics and traces, compared with one without
    Observed(observed::Options),
    /// A minimal TLS relay, for comparison: accepts, connects and copies, without limits
    #[command(hide = true)]
    Floor(floor::Options),
    /// A long link: forwards bytes after a delay
    #[command(hide = true)]
    Delay(delay::Options),
    /// A fixed amount of work, to count its instructions
    #[command(hide = true)]
    Work(work::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    match runtime(options.threads).and_then(|runtime| runtime.block_on(run(&options.command))) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: Option<u16>) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(usize::from(threads));
    }
    Ok(builder.enable_all().build()?)
}

async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Throughput(options) => throughput::run(options).await,
        Command::Latency(options) => latency::run(options).await,
        Command::Setup(options) => setup::run(options).await,
        Command::Idle(options) => idle::run(options).await,
        Command::Stalled(options) => stalled::run(options).await,
        Command::Neighbours(options) => neighbours::run(options).await,
        Command::Apps(options) => apps::run(options).await,
        Command::Hostile(options) => hostile::run(options).await,
        Command::Observed(options) => observed::run(options).await,
        Command::Floor(options) => floor::run(options).await,
        Command::Delay(options) => delay::run(options).await,
        Command::Work(options) => work::run(options).await,
    }
}
