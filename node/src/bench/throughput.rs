//! `throughput`: floods tunnels for some seconds and counts what arrives.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::flood::{Flood, Plan};
use crate::load::{GIB, MIB, Shape};
use crate::report::{merged, per, print, rounded};
use crate::target::{LARGE, Target, TargetOptions, allow_connections};
use crate::usage::Meter;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Tunnels that are flooded at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// The size of a message in bytes, of which 8 are its number
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(8..))]
    size: u32,
    /// Messages in one write; each write is at least one TLS record
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// Both ends send, not only the first one
    #[arg(long)]
    both: bool,
    /// Duration of the measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Duration of the flood before that, to warm up
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,
    /// Keep this many more tunnels idle during the measurement
    #[arg(long, value_name = "TUNNELS", default_value_t = 0)]
    beside: u32,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    allow_connections(options.tunnels + options.beside)?;
    let target = Target::new(&options.target, LARGE).await?;
    let _idle = target.idle(options.beside).await?;
    let message = options.shape.message(&target, options.size);
    let tunnels = target.open_many(options.tunnels).await?;
    let plan = Plan { message, at_once: usize::from(options.at_once), both_ways: options.both };
    let mut flood = Flood::start(tunnels, &plan);
    flood.run(Duration::from_secs_f64(options.warm_up)).await?;

    let (meter, before) = (Meter::start(target.processes())?, flood.bytes());
    flood.run(Duration::from_secs_f64(options.seconds)).await?;
    let (used, bytes) = (meter.read()?, flood.bytes() - before);
    let messages = flood.finish().await?;

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let speed = bytes as f64 / MIB / used.seconds;
    let cost = per(used.cpu_seconds() * GIB, bytes);
    let cost = cost.filter(|_| !target.processes().is_none());
    let result = json!({
        "case": "throughput",
        "tunnels": options.tunnels,
        "beside": options.beside,
        "both_ways": options.both,
        "messages_checked": messages,
        "mib_per_s": rounded(speed),
        "cpu_s_per_gib": cost,
    });
    let summary = format!(
        "{speed:.0} MiB/s through {} tunnels, {} CPU-s per GiB, {messages} messages are right",
        options.tunnels,
        cost.map_or("unknown".into(), |cost| format!("{cost:.2}")),
    );
    print(&merged([result, plan.message.fields(), used.fields()]), &summary)?;
    Ok(ExitCode::SUCCESS)
}
