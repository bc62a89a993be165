//! `observed`: the cost of metrics and traces for a node that relays, compared with a node without
//! them, also when the collector goes away during the run.

use std::convert::Infallible;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nymea_remoteproxy::client::{Connector, Message};
use nymea_remoteproxy::protocol::Token;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::node;
use crate::report::median;
use crate::usage::cpu_seconds;

const GIB: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tunnels at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// The size of a message, in bytes.
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(1..))]
    message: u32,
    /// Data relayed in each measurement, in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
    /// Measurements of each node, in turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail if counting and tracing cost more than this share of the rest.
    #[arg(long, value_name = "PERCENT")]
    max_percent: Option<f64>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (collector, leaving) = (Collector::start().await?, Collector::start().await?);
    let mut nodes = [
        node::Started::with(&[("REMOTEPROXY__TELEMETRY__ENABLED", "false")]).await?,
        observed(&collector).await?,
        observed(&leaving).await?,
    ]
    .map(|node| (node, Vec::new()));
    // All have their connections and buffers, and spans to send, when the one collector goes.
    for (node, _) in &nodes {
        cost(node, options).await?;
    }
    drop(leaving);
    for _ in 0..options.rounds {
        for (node, costs) in &mut nodes {
            costs.push(cost(node, options).await?);
        }
    }
    let [plain, with, away] = nodes.map(|(_, costs)| Cost::median_of(&costs));
    let result = json!({
        "tunnels": options.tunnels,
        "message_bytes": options.message,
        "rounds": options.rounds,
        "without": plain.to_json(),
        "with": with.to_json(),
        "collector_away": away.to_json(),
        "more_percent": with.more_percent(&plain),
        "more_percent_collector_away": away.more_percent(&plain),
    });
    writeln!(std::io::stdout(), "{result}")?;
    let most = with.more_percent(&plain).max(away.more_percent(&plain));
    let is_fine = options.max_percent.is_none_or(|max| most <= max);
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A node that counts everything, traces one connection of ten, and tells this collector.
async fn observed(collector: &Collector) -> anyhow::Result<node::Started> {
    node::Started::with(&[
        ("REMOTEPROXY__TELEMETRY__ENDPOINT", &collector.url),
        ("REMOTEPROXY__TELEMETRY__PROTOCOL", "http"),
        ("REMOTEPROXY__TELEMETRY__SAMPLE", "0.1"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1000"),
    ])
    .await
}

/// What relaying costs.
#[derive(Clone, Copy)]
struct Cost {
    /// Of the node, for each GiB.
    cpu_seconds: f64,
    mib_per_second: f64,
}

impl Cost {
    fn median_of(costs: &[Self]) -> Self {
        Self {
            cpu_seconds: median(costs.iter().map(|cost| cost.cpu_seconds).collect()),
            mib_per_second: median(costs.iter().map(|cost| cost.mib_per_second).collect()),
        }
    }

    fn more_percent(&self, than: &Self) -> f64 {
        ((self.cpu_seconds / than.cpu_seconds - 1.0) * 1000.0).round() / 10.0
    }

    fn to_json(self) -> serde_json::Value {
        json!({
            "cpu_s_per_gib": (self.cpu_seconds * 1000.0).round() / 1000.0,
            "mib_per_s": self.mib_per_second.round(),
        })
    }
}

/// What it costs the node to relay what the options say.
async fn cost(node: &node::Started, options: &Options) -> anyhow::Result<Cost> {
    let connector = Connector::new(&node.url)?.name("bench").insecure();
    let message = usize::try_from(options.message)?;
    let bytes = options.mib << 20;
    let messages = bytes / u64::from(options.message) / u64::from(options.tunnels);
    let (before, began) = (cpu_seconds(node.pid)?, Instant::now());
    let mut tasks = JoinSet::new();
    for number in 0..options.tunnels {
        let connector = connector.clone();
        tasks.spawn(async move {
            let token = Token::new(number.to_string());
            let first = connector.connect(&token, None).await?;
            let second = connector.connect(&token, None).await?;
            let (mut sender, mut receiver) = tokio::try_join!(first.partner(), second.partner())?;
            let data = Message::Binary(vec![1; message].into());
            let sending = async {
                for _ in 0..messages {
                    sender.feed(data.clone()).await?;
                }
                sender.flush().await?;
                anyhow::Ok(())
            };
            let receiving = async {
                for _ in 0..messages {
                    receiver.next().await.context("the tunnel ended")??;
                }
                anyhow::Ok(())
            };
            tokio::try_join!(sending, receiving)?;
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let moved = messages * u64::from(options.message) * u64::from(options.tunnels);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let gib = moved as f64 / GIB as f64;
    Ok(Cost {
        cpu_seconds: (cpu_seconds(node.pid)? - before) / gib,
        mib_per_second: gib * 1024.0 / began.elapsed().as_secs_f64(),
    })
}

/// A collector that takes everything and keeps nothing, until it is dropped.
struct Collector {
    url: String,
    _tasks: JoinSet<()>,
}

impl Collector {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(collect(listener));
        Ok(Self { url, _tasks: tasks })
    }
}

async fn collect(listener: TcpListener) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| async {
            let _taken = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let http = hyper::server::conn::http1::Builder::new();
        connections.spawn(http.serve_connection(TokioIo::new(tcp), service));
    }
}
