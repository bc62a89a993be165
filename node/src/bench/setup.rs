//! `setup`: sets tunnels up and closes them, several at a time.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::report::{Times, close_code, merged, per, print, rounded};
use crate::target::{SMALL, Target, TargetOptions, Tunnel, allow_connections};
use crate::usage::Meter;

/// How long the server may take to pass a close on.
const CLOSE: Duration = Duration::from_secs(10);
/// What the server does after the last close counts, too.
const AFTERMATH: Duration = Duration::from_millis(300);
/// What the first connections bring about once for all does not count.
const WARM_UP: u64 = 50;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tunnels in all
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Tunnels at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Tunnels that are begun per second, evenly spread [default: the next when one is done]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Keep this many more tunnels idle during the measurement
    #[arg(long, value_name = "TUNNELS", default_value_t = 0)]
    beside: u32,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    allow_connections(u32::from(options.concurrency) + options.beside)?;
    let target = Arc::new(Target::new(&options.target, SMALL).await?);
    let _idle = target.idle(options.beside).await?;
    cycle(&target, options.count.min(WARM_UP), options.concurrency, None).await?;

    let (meter, began) = (Meter::start(target.processes())?, Instant::now());
    let times = cycle(&target, options.count, options.concurrency, options.rate).await?;
    let rate = per(1.0 / began.elapsed().as_secs_f64(), 1).unwrap_or_default();
    sleep(AFTERMATH).await;
    let used = meter.read()?;

    let cost = per(used.cpu_seconds() * 1e3, options.count);
    let cost = cost.filter(|_| !target.processes().is_none());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = rate * options.count as f64;
    let result = json!({
        "case": "setup",
        "count": options.count,
        "concurrency": options.concurrency,
        "rate": options.rate,
        "beside": options.beside,
        "tunnels_per_s": rounded(rate),
        "cpu_ms_per_tunnel": cost,
        "setup": times.since_second.fields(),
        "setup_from_first": times.since_first.fields(),
        "close": times.close.fields(),
    });
    let summary = format!(
        "{rate:.0} tunnels/s, set-up p50 {:.2} ms, {} CPU-ms each",
        times.since_second.quantile(0.5),
        cost.map_or("unknown".into(), |cost| format!("{cost:.3}")),
    );
    print(&merged([result, used.fields()]), &summary)?;
    Ok(ExitCode::SUCCESS)
}

struct SetupTimes {
    since_second: Times,
    since_first: Times,
    close: Times,
}

impl SetupTimes {
    fn new() -> anyhow::Result<Self> {
        let [since_second, since_first, close] = [Times::new()?, Times::new()?, Times::new()?];
        Ok(Self { since_second, since_first, close })
    }
}

/// With a rate, the next one begins when it is due: later only if all workers are still busy then.
async fn cycle(
    target: &Arc<Target>,
    count: u64,
    concurrency: u16,
    rate: Option<u32>,
) -> anyhow::Result<SetupTimes> {
    let (next, mut workers) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let (began, apart) = (Instant::now(), rate.map_or(0.0, |rate| f64::from(rate).recip()));
    for _ in 0..concurrency {
        let (target, next) = (target.clone(), next.clone());
        workers.spawn(async move {
            let mut times = SetupTimes::new()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    break;
                }
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                sleep_until(began + Duration::from_secs_f64(apart * number as f64)).await;
                let tunnel = target.open().await?;
                times.since_second.record(tunnel.since_second);
                times.since_first.record(tunnel.since_first);
                times.close.record(close(tunnel).await?);
            }
            anyhow::Ok(times)
        });
    }
    let mut all = SetupTimes::new()?;
    while let Some(worker) = workers.join_next().await {
        let times = worker??;
        all.since_second.add(&times.since_second)?;
        all.since_first.add(&times.since_first)?;
        all.close.add(&times.close)?;
    }
    Ok(all)
}

/// Closes a tunnel at its second end, and returns the time until the first one was closed.
pub(crate) async fn close(tunnel: Tunnel) -> anyhow::Result<Duration> {
    let [mut one, mut other] = tunnel.ends;
    let began = Instant::now();
    other.close().await?;
    let code = timeout(CLOSE, one.ended()).await.context("the close was not passed on")??;
    let took = began.elapsed();
    let is_fine = code.is_none_or(|code| code == 1000);
    ensure!(is_fine, "a tunnel ended ({}), not in order", close_code(code));
    // A close is answered, and the endpoint that began it waits for the answer.
    one.close().await?;
    timeout(CLOSE, other.ended()).await.context("the close was not answered")??;
    Ok(took)
}
