//! `stalled`: floods tunnels while their receivers read nothing, and measures how much data the
//! server accepts. Then the receivers read, and all of it must arrive.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use crate::flood::{Flood, Plan};
use crate::load::Shape;
use crate::report::{merged, print, rounded};
use crate::target::{LARGE, Target, TargetOptions};
use crate::wire::Message;

/// A sender that gets nothing rid of for so long is stalled.
const STALLED: Duration = Duration::from_secs(1);
/// By then all senders must be.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Tunnels that are flooded
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// The size of a message in bytes, of which 8 are its number
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(8..))]
    size: u32,
    /// Both ends send, not only the first one
    #[arg(long)]
    both: bool,
    /// Fail if the server takes more than this for it
    #[arg(long, value_name = "MIB")]
    max_mib: Option<f64>,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let target = Target::new(&options.target, LARGE).await?;
    ensure!(!target.processes().is_none(), "--pid is missing: it names the process to measure");
    let message = options.shape.message(&target, options.size);
    warm_up(&target, &message).await?;
    let tunnels = target.open_many(options.tunnels).await?;
    let before = target.processes().resident_kib_of_each()?;
    target.processes().forget_peak()?;

    let plan = Plan { message, at_once: 1, both_ways: options.both };
    let mut flood = Flood::stalled(tunnels, &plan);
    fill(&mut flood).await?;
    let (after, peak) =
        (target.processes().resident_kib_of_each()?, target.processes().peak_kib()?);
    let held = flood.sent();
    flood.resume();
    let messages = flood.finish().await?;

    let mib = |now: u64, then: u64| rounded(difference(now, then) / 1024.0);
    let each: Vec<_> = after.iter().zip(&before).map(|(now, then)| mib(*now, *then)).collect();
    let total = each.iter().sum::<f64>();
    let before = before.iter().sum();
    let result = json!({
        "case": "stalled",
        "tunnels": options.tunnels,
        "both_ways": options.both,
        "rss_before_kib": before,
        "mib_more": rounded(total),
        "mib_more_of_each": each,
        "mib_more_at_peak": mib(peak, before),
        "messages_held": held,
        "messages_checked": messages,
    });
    let summary = format!(
        "{:.1} MiB more for {} stalled tunnels; all {messages} messages arrived in the end",
        total, options.tunnels
    );
    print(&merged([result, plan.message.fields()]), &summary)?;
    let is_within = options.max_mib.is_none_or(|max| total <= max);
    Ok(if is_within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the server keeps from any load does not count.
async fn warm_up(target: &Target, message: &Message) -> anyhow::Result<()> {
    let plan = Plan { message: message.clone(), at_once: 1, both_ways: false };
    let mut flood = Flood::start(target.open_many(1).await?, &plan);
    flood.run(STALLED).await?;
    flood.finish().await?;
    Ok(())
}

async fn fill(flood: &mut Flood) -> anyhow::Result<()> {
    let (end, mut before) = (Instant::now() + PATIENCE, None);
    while before != Some(flood.sent()) {
        before = Some(flood.sent());
        flood.run(STALLED).await?;
        ensure!(Instant::now() < end, "the server takes more and more");
    }
    Ok(())
}

/// How much more the first is.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
pub(crate) fn difference(kib: u64, before: u64) -> f64 {
    kib as f64 - before as f64
}
