//! `idle`: opens tunnels that carry nothing, and sees how much memory and CPU time they cost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::load::Shape;
use crate::report::{close_code, merged, print, rounded};
use crate::setup::close;
use crate::stalled::difference;
use crate::target::{SMALL, Target, TargetOptions, Tunnel, allow_connections};
use crate::usage::Meter;
use crate::wire::{Check, Message, Outgoing};

/// Most of all this is for the TLS handshakes of slow machines.
const DEADLINE: Duration = Duration::from_mins(10);
const WARM_UP: u32 = 20;
/// Until what a handshake needed is given back.
const SETTLED: Duration = Duration::from_secs(3);
/// Until what a message needed, or a whole tunnel, is given back.
const REST: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Number of tunnels to open, of two endpoints each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// Measure again, 10 s after a message of this size has gone each way through every tunnel
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(8..))]
    message: Option<u32>,
    /// Duration to count CPU time while no data is sent; a node pings every 20 s by default
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    hold: f64,
    /// Then close all tunnels, and measure once more 10 s later
    #[arg(long)]
    close: bool,
    /// Fail if an endpoint takes more than this much of the server's memory
    #[arg(long, value_name = "KIB")]
    max_kib_per_endpoint: Option<f64>,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    allow_connections(options.tunnels + WARM_UP)?;
    let target = Target::new(&options.target, SMALL).await?;
    ensure!(!target.processes().is_none(), "--pid is missing: it names the process to measure");
    // What the first connections bring about once for all does not count.
    let _warm = target.idle(WARM_UP).await.context("the first tunnels")?;
    let memory = || target.processes().resident_kib();
    let before = memory()?;
    let opened = timeout(DEADLINE, target.open_many(options.tunnels)).await;
    let tunnels = Standing::new(opened.context("the tunnels were not established in time")??);
    sleep(SETTLED).await;
    let after = memory()?;
    let per_endpoint = |kib| rounded(difference(kib, before) / f64::from(2 * options.tunnels));

    let meter = Meter::start(target.processes())?;
    sleep(Duration::from_secs_f64(options.hold)).await;
    let used = meter.read()?;
    let percent = rounded(used.cpu_seconds() / used.seconds * 100.0);
    let mut tunnels = tunnels.take().await?;
    let mut result = json!({
        "case": "idle",
        "tunnels": options.tunnels,
        "rss_before_kib": before,
        "rss_after_kib": after,
        "kib_per_endpoint": per_endpoint(after),
    });
    if options.hold > 0.0 {
        result = merged([result, json!({ "idle_cpu_percent": percent }), used.fields()]);
    }
    if let Some(size) = options.message {
        let message = options.shape.message(&target, size);
        tunnels = use_once(tunnels, &message).await?;
        let more = json!({ "kib_per_endpoint_after_messages": per_endpoint(memory()?) });
        result = merged([result, more, message.fields()]);
    }
    if options.close {
        result = merged([result, closed(&target, tunnels, before).await?]);
    }
    let kib = per_endpoint(after);
    print(&result, &format!("{kib:.2} KiB for each endpoint of {} tunnels", options.tunnels))?;
    let within = options.max_kib_per_endpoint.is_none_or(|max| kib <= max);
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A message each way through every tunnel, and then some rest.
async fn use_once(tunnels: Vec<Tunnel>, message: &Message) -> anyhow::Result<Vec<Tunnel>> {
    let mut used = Vec::new();
    for mut tunnel in tunnels {
        let [one, other] = &mut tunnel.ends;
        send_once(one, other, message).await?;
        send_once(other, one, message).await?;
        used.push(tunnel);
    }
    let standing = Standing::new(used);
    sleep(REST).await;
    standing.take().await
}

async fn send_once(
    from: &mut Endpoint,
    to: &mut Endpoint,
    message: &Message,
) -> anyhow::Result<()> {
    let (mut outgoing, mut check) = (Outgoing::new(message, 1), Check::new(message));
    tokio::try_join!(from.send(&mut outgoing), to.receive(&mut check, 1))?;
    Ok(())
}

async fn closed(target: &Target, tunnels: Vec<Tunnel>, before: u64) -> anyhow::Result<Value> {
    let mut closing = JoinSet::new();
    for tunnel in tunnels {
        closing.spawn(close(tunnel));
    }
    while let Some(closed) = closing.join_next().await {
        closed??;
    }
    sleep(REST).await;
    let after = target.processes().resident_kib()?;
    Ok(json!({
        "rss_closed_kib": after,
        "closed_to_before": rounded(difference(after, 0) / difference(before, 0)),
    }))
}

/// Tunnels with an endpoint at each end that answers pings.
struct Standing {
    tasks: JoinSet<anyhow::Result<Tunnel>>,
    over: CancellationToken,
}

impl Standing {
    fn new(tunnels: Vec<Tunnel>) -> Self {
        let (mut tasks, over) = (JoinSet::new(), CancellationToken::new());
        for mut tunnel in tunnels {
            let over = over.clone();
            tasks.spawn(async move {
                let [one, other] = &mut tunnel.ends;
                let ended = tokio::select! {
                    () = over.cancelled() => None,
                    ended = one.ended() => Some(ended?),
                    ended = other.ended() => Some(ended?),
                };
                match ended {
                    None => Ok(tunnel),
                    Some(code) => bail!("a tunnel ended by itself ({})", close_code(code)),
                }
            });
        }
        Self { tasks, over }
    }

    /// All of them, if none has ended.
    async fn take(mut self) -> anyhow::Result<Vec<Tunnel>> {
        self.over.cancel();
        let mut tunnels = Vec::new();
        while let Some(tunnel) = self.tasks.join_next().await {
            tunnels.push(tunnel??);
        }
        Ok(tunnels)
    }
}
