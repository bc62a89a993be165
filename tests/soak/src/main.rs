//! A cluster of real nodes under random faults: processes that are killed, drained and frozen, a Redis
//! that is away, empty, stale or full, links that are cut, blocked and slow. Honest endpoints of all
//! transports and generations meet all the while, and check every byte.
//!
//! `cluster` is what is under test, `faults` what is done to it, `load` who uses it, and `finish` what
//! must be left in the end: nothing.

mod cluster;
mod content;
mod faults;
mod finish;
mod health;
mod journal;
mod load;
mod options;
mod statistics;
mod wire;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::time::{Instant, sleep, timeout};

use crate::journal::say;
use crate::options::Options;
use crate::world::World;

/// What the checks at the end may take beyond the minutes that were asked for.
const END: Duration = Duration::from_secs(110);
/// How long clients may take to leave.
const LEAVING: Duration = Duration::from_secs(40);
/// How long the load runs until the first fault.
const WARM_UP: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs, and returns whether nothing was violated.
async fn run(options: Options) -> anyhow::Result<bool> {
    let directory = tempfile::Builder::new().prefix("soak-").tempdir()?;
    let path = directory.path().to_owned();
    let (seed, duration, keep) = (options.seed(), options.duration(), options.keep);
    say(&format!(
        "{:.1} minutes, seed {seed}, logs in {}",
        duration.as_secs_f64() / 60.0,
        path.display()
    ));
    let world = World::new(options, &path).await?;
    let limit = duration + world.options.within(END.as_secs());
    if timeout(limit, soak(&world, duration)).await.is_err() {
        world.journal.violation("time", "the run does not end");
    }
    world.statistics.print(&world.history);
    let violations = world.journal.violations();
    if violations.is_empty() {
        say("\nnothing was violated");
    } else {
        world.journal.print_failure();
        say(&format!("\nviolated: {violations:?}; seed {seed}, logs in {}", path.display()));
    }
    if keep || !violations.is_empty() {
        let _kept = directory.keep();
    }
    Ok(violations.is_empty())
}

async fn soak(world: &Arc<World>, duration: Duration) {
    if let Err(error) = world.cluster.start(world).await {
        return world.journal.violation("start", format_args!("{error:#}"));
    }
    sleep(Duration::from_secs(2)).await;
    let before = finish::usage(world).await;
    world.journal.detail(format_args!("before the load: {before:?}"));
    world.load.start(world);
    health::watch(world);
    faults::settle(world).await;
    sleep(WARM_UP).await;
    let pids: Vec<_> = world.cluster.nodes.iter().map(cluster::Member::pid).collect();
    let warm = finish::memory(world);
    tokio::select! {
        () = faults::run(world, Instant::now() + duration.saturating_sub(WARM_UP)) => {}
        () = world.journal.enough.cancelled() => {
            world.journal.note("too many violations: the run ends early");
            return;
        }
    }
    world.journal.note("all clients leave");
    world.leaving.cancel();
    let left = async {
        while !world.load.clients().is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(world.options.within(LEAVING.as_secs()), left).await.is_err() {
        let names: Vec<_> = world.load.clients().iter().cloned().collect();
        world.journal.violation("load", format_args!("cannot leave: {}", names.join(", ")));
    }
    // The memory of a node that was started again later says nothing.
    let same = world.cluster.nodes.iter().zip(&pids).map(|(node, pid)| node.pid() == *pid);
    let warm: Vec<_> =
        warm.iter().zip(same).map(|(kib, same)| if same { *kib } else { 0 }).collect();
    finish::check(world, &before, &warm).await;
}
