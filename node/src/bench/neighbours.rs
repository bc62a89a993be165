//! `neighbours`: how fast a tunnel between two nodes is while others on the same pair of nodes are
//! stalled, compared with its speed when there are none.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use futures_util::stream::{self, TryStreamExt};
use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::client::{Connector, Message, Tunnel};
use nymea_remoteproxy::protocol::Token;
use serde_json::json;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::node;
use crate::report::{median, rounded};
use crate::stalled::difference;
use crate::usage::Processes;

/// One message, in bytes.
const MESSAGE: u32 = 16 * 1024;
/// Tunnels that are filled at the same time.
const AT_ONCE: usize = 50;
/// What is written at once at most, in bytes and in messages.
const BURST: usize = 16 * 1024;
const MESSAGES: usize = 256;
/// What the system keeps unsent for each writer, in bytes: all of them share its memory for TCP with
/// the nodes.
const UNSENT: u32 = 64 * 1024;
/// A writer that gets nothing rid of for so long is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// What no stalled tunnel may swallow, in bytes.
const SWALLOWED: usize = 64 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The Redis that the two nodes share, which are started for this.
    #[arg(long)]
    redis: String,
    /// Tunnels with a flooding writer and a reader that reads nothing.
    #[arg(long, default_value_t = 8)]
    stalled: u32,
    /// The size of the messages that fill them, in bytes.
    #[arg(long, default_value_t = MESSAGE, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Duration of each measurement.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    seconds: u64,
    /// Measurements with and without stalled tunnels, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail if the live tunnel keeps less than this share of its speed.
    #[arg(long, value_name = "PERCENT")]
    min_percent: Option<f64>,
    /// Fail if one of the nodes takes more than this for the stalled tunnels
    #[arg(long, value_name = "MIB")]
    max_mib: Option<f64>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let one = node::Started::member(&options.redis, "bench1").await?;
    let other = node::Started::member(&options.redis, "bench2").await?;
    let connect =
        |url: &str| anyhow::Ok(Connector::new(url)?.name("bench").insecure().unsent_limit(UNSENT));
    let ends = (connect(&one.url)?, connect(&other.url)?);
    let time = Duration::from_secs(options.seconds);
    let processes = Processes::new(vec![one.pid, other.pid]);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut more = [0.0; 2];
    for round in 0..options.rounds {
        alone.push(speed(&ends, &format!("alone {round}"), time).await?);
        let before = processes.resident_kib_of_each()?;
        let stalling = (0..options.stalled)
            .map(|number| stall(&ends, format!("stalled {round} {number}"), options.size as usize));
        let stalled: Vec<_> =
            stream::iter(stalling).buffer_unordered(AT_ONCE).try_collect().await?;
        for (more, (now, then)) in
            more.iter_mut().zip(processes.resident_kib_of_each()?.into_iter().zip(before))
        {
            *more = f64::max(*more, rounded(difference(now, then) / 1024.0));
        }
        beside.push(speed(&ends, &format!("beside {round}"), time).await?);
        drop(stalled);
    }
    let (alone, beside) = (median(alone), median(beside));
    let percent = (beside / alone * 1000.0).round() / 10.0;
    let result = json!({
        "stalled": options.stalled,
        "bytes": options.size,
        "alone_mib_per_s": alone.round(),
        "beside_mib_per_s": beside.round(),
        "percent": percent,
        "mib_more_of_each": more,
    });
    writeln!(std::io::stdout(), "{result}")?;
    let is_fast = options.min_percent.is_none_or(|min| percent >= min);
    let is_small = options.max_mib.is_none_or(|max| more.iter().all(|&more| more <= max));
    Ok(if is_fast && is_small { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// MiB per second through one tunnel.
async fn speed(ends: &(Connector, Connector), token: &str, time: Duration) -> anyhow::Result<f64> {
    let (mut sender, mut receiver) = open(ends, token).await?;
    let sending = async {
        let message = Message::Binary(vec![1; MESSAGE as usize].into());
        while sender.send(message.clone()).await.is_ok() {}
    };
    let receiving = async {
        // What the buffers take at first is not the speed.
        let (warm_up, start) = (time / 4, Instant::now());
        let (mut bytes, mut since) = (0, None);
        while start.elapsed() < warm_up + time {
            let message = receiver.next().await.context("the tunnel ended")??;
            if start.elapsed() >= warm_up {
                since.get_or_insert_with(Instant::now);
                if let Message::Binary(data) = message {
                    bytes += data.len();
                }
            }
        }
        let seconds = since.context("nothing came")?.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        anyhow::Ok(bytes as f64 / seconds / f64::from(1 << 20))
    };
    tokio::select! {
        speed = receiving => speed,
        () = sending => anyhow::bail!("the tunnel ended"),
    }
}

/// A tunnel that is full.
async fn stall(
    ends: &(Connector, Connector),
    token: String,
    size: usize,
) -> anyhow::Result<(Tunnel, Tunnel)> {
    let (mut sender, receiver) = open(ends, &token).await?;
    let message = Message::Binary(vec![1; size].into());
    let mut sent = 0;
    // Small ones together, as a client in a hurry sends them: one by one, this takes very long.
    let burst = (BURST / size).clamp(1, MESSAGES);
    loop {
        let sending = async {
            for _ in 1..burst {
                sender.feed(message.clone()).await?;
            }
            sender.send(message.clone()).await
        };
        let Ok(result) = timeout(STALLED_AFTER, sending).await else { break };
        result.context("a tunnel ended while it was filled")?;
        sent += size * burst;
        // The others are to have their turn.
        yield_now().await;
        anyhow::ensure!(sent < SWALLOWED, "a tunnel takes data for a reader that reads none");
    }
    Ok((sender, receiver))
}

async fn open(ends: &(Connector, Connector), token: &str) -> anyhow::Result<(Tunnel, Tunnel)> {
    let token = Token::new(token);
    let first = ends.0.connect(&token, None).await?;
    let second = ends.1.connect(&token, None).await?;
    Ok(tokio::try_join!(first.partner(), second.partner())?)
}
