//! `apps`: how fast a gateway reaches its apps while one of them takes nothing, compared with its
//! speed when all of them do.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nymea_remoteproxy::client::{App, Apps, Attachment, Connector, Gateway};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::node;
use crate::report::median;

/// What is written at once, in bytes.
const PIECE: usize = 16 * 1024;
/// How long an app may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Apps that read what they get.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    live: u32,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    seconds: u64,
    /// Measurements with and without a stalled app, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail if the live apps keep less than this share of their speed.
    #[arg(long, value_name = "PERCENT")]
    min_percent: Option<f64>,
}

/// A gateway with apps that are flooded and read all of it.
struct Flood {
    received: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let node = node::Started::new().await?;
    let connector = Connector::new(&node.url)?.name("bench").insecure();
    let uuid = Uuid::new_v4();
    // As gateways are that do not know of windows: those cannot be held up by an app at all.
    let gateway = Gateway::new(connector.clone(), uuid).flow_control(false);
    let mut apps = gateway.register().await?;
    let app = App::new(connector, uuid);
    let mut flood = Flood { received: Arc::default(), tasks: JoinSet::new() };
    for _ in 0..options.live {
        let attachment = attach(&app, &mut apps, &mut flood.tasks).await?;
        flood.tasks.spawn(drain(attachment, Arc::clone(&flood.received)));
    }
    let time = Duration::from_secs(options.seconds);
    sleep(time / 4).await;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        alone.push(speed(&flood, time).await);
        // From its first byte on: what it costs until it is closed counts.
        let since = Instant::now();
        let before = flood.received.load(Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        let _stalled = attach(&app, &mut apps, &mut tasks).await?;
        sleep(time.saturating_sub(since.elapsed())).await;
        beside.push(rate(flood.received.load(Ordering::Relaxed) - before, since.elapsed()));
        anyhow::ensure!(tasks.try_join_next().is_some(), "the stalled app has not been closed");
    }
    let (alone, beside) = (median(alone), median(beside));
    let percent = (beside / alone * 1000.0).round() / 10.0;
    let result = json!({
        "live": options.live,
        "alone_mib_per_s": alone.round(),
        "beside_mib_per_s": beside.round(),
        "percent": percent,
    });
    writeln!(std::io::stdout(), "{result}")?;
    let enough = options.min_percent.is_none_or(|min| percent >= min);
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An app, flooded by the gateway from now on.
async fn attach(app: &App, apps: &mut Apps, tasks: &mut JoinSet<()>) -> anyhow::Result<Attachment> {
    let (attachment, stream) =
        timeout(PATIENCE, async { anyhow::Ok(tokio::try_join!(app.attach(), apps.accept())?) })
            .await
            .context("an app was not accepted in time")??;
    tasks.spawn(async move {
        let (mut stream, piece) = (stream, vec![1; PIECE]);
        while stream.write_all(&piece).await.is_ok() {}
    });
    Ok(attachment)
}

async fn drain(mut attachment: Attachment, received: Arc<AtomicU64>) {
    let mut buffer = vec![0; 4 * PIECE];
    while let Ok(count @ 1..) = attachment.read(&mut buffer).await {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// MiB per second to all live apps together.
async fn speed(flood: &Flood, time: Duration) -> f64 {
    let (before, since) = (flood.received.load(Ordering::Relaxed), Instant::now());
    sleep(time).await;
    rate(flood.received.load(Ordering::Relaxed) - before, since.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / f64::from(1 << 20)
}
