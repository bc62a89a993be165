//! `observed`: what it costs a node to count and to trace while it relays, compared with one that
//! does neither.

use std::convert::Infallible;
use std::io::Write;
use std::process::ExitCode;

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

use crate::node;

const GIB: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tunnels at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// The size of a message, in bytes.
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(1..))]
    message: u32,
    /// What goes through in each measurement, in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
    /// Measurements of each node, in turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Fail if counting and tracing cost more than this share of the rest.
    #[arg(long, value_name = "PERCENT")]
    max_percent: Option<f64>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let collector = format!("http://{}", listener.local_addr()?);
    tokio::spawn(collect(listener));
    let plain = node::Started::with(&[("REMOTEPROXY__TELEMETRY__ENABLED", "false")]).await?;
    let observed = node::Started::with(&[
        ("REMOTEPROXY__TELEMETRY__ENDPOINT", &collector),
        ("REMOTEPROXY__TELEMETRY__PROTOCOL", "http"),
        ("REMOTEPROXY__TELEMETRY__SAMPLE", "0.1"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ("REMOTEPROXY__ADMIN__LISTEN", "127.0.0.1:0"),
    ])
    .await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        without.push(cost(&plain, options).await?);
        with.push(cost(&observed, options).await?);
    }
    let (without, with) = (median(without), median(with));
    let percent = ((with / without - 1.0) * 1000.0).round() / 10.0;
    let result = json!({
        "tunnels": options.tunnels,
        "message_bytes": options.message,
        "rounds": options.rounds,
        "cpu_s_per_gib_without": (without * 1000.0).round() / 1000.0,
        "cpu_s_per_gib_with": (with * 1000.0).round() / 1000.0,
        "more_percent": percent,
    });
    writeln!(std::io::stdout(), "{result}")?;
    let is_fine = options.max_percent.is_none_or(|max| percent <= max);
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// CPU seconds of the node for each GiB that goes through it.
async fn cost(node: &node::Started, options: &Options) -> anyhow::Result<f64> {
    let connector = Connector::new(&node.url)?.name("bench").insecure();
    let message = usize::try_from(options.message)?;
    let bytes = options.mib << 20;
    let messages = bytes / u64::from(options.message) / u64::from(options.tunnels);
    let before = node::cpu_seconds(node.pid)?;
    let mut tasks = tokio::task::JoinSet::new();
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
    Ok((node::cpu_seconds(node.pid)? - before) / gib)
}

/// A collector that takes everything and keeps nothing.
async fn collect(listener: TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| async {
            let _taken = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(tcp), service));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
