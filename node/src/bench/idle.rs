//! `idle`: opens tunnels that carry nothing, and sees how much memory the node takes for them.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use nymea_remoteproxy::client::{ConnectError, Connector, Tunnel};
use nymea_remoteproxy::protocol::Token;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::node;

/// Tunnels that are being set up at the same time: nodes limit strangers from one address.
const AT_ONCE: usize = 50;
/// Most of all this is for the TLS handshakes of slow machines.
const DEADLINE: Duration = Duration::from_mins(10);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The node [default: one is started for this].
    #[arg(long, requires = "pid")]
    url: Option<String>,
    /// The process of the node, on this machine.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// How many tunnels to open, of two endpoints each.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// Fail if an endpoint takes more than this many KiB of the node's memory.
    #[arg(long, value_name = "KIB")]
    max_kib_per_endpoint: Option<f64>,
    /// Trust the certificate with this SHA-256.
    #[arg(long, value_name = "SHA256", requires = "url")]
    fingerprint: Option<String>,
    /// Accept any certificate.
    #[arg(short, long, requires = "url", conflicts_with = "fingerprint")]
    ignore_ssl: bool,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    allow_connections(options.tunnels)?;
    let started = match options.url {
        None => Some(node::Started::new().await?),
        Some(_) => None,
    };
    let (url, pid) = match (&started, &options.url, options.pid) {
        (Some(node), ..) => (node.url.clone(), node.pid),
        (None, Some(url), Some(pid)) => (url.clone(), pid),
        (None, ..) => unreachable!("clap demands both"),
    };
    let mut connector = Connector::new(&url)?.name("bench").buffer_size(4096);
    if let Some(fingerprint) = &options.fingerprint {
        connector = connector.fingerprint(fingerprint)?;
    } else if options.ignore_ssl || started.is_some() {
        connector = connector.insecure();
    }

    // What the first connection brings about once for all does not count.
    let _warm = open(connector.clone(), "warm-up".into()).await.context("the first tunnel")?;
    let before = node::resident_kib(pid)?;
    let mut tunnels = timeout(DEADLINE, open_all(&connector, options.tunnels))
        .await
        .context("the tunnels did not stand in time")??;
    let after = node::resident_kib(pid)?;
    ensure!(tunnels.try_join_next().is_none(), "a tunnel ended by itself");

    let growth = i64::try_from(after)? - i64::try_from(before)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    let per_endpoint = growth as f64 / f64::from(2 * options.tunnels);
    let result = json!({
        "tunnels": options.tunnels,
        "rss_before_kib": before,
        "rss_after_kib": after,
        "kib_per_endpoint": (per_endpoint * 100.0).round() / 100.0,
    });
    writeln!(std::io::stdout(), "{result}")?;
    let within = options.max_kib_per_endpoint.is_none_or(|max| per_endpoint <= max);
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Two sockets for each tunnel, and some more for everything else.
fn allow_connections(tunnels: u32) -> anyhow::Result<()> {
    let needed = 2 * u64::from(tunnels) + 100;
    let allowed = rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    ensure!(allowed >= needed, "{needed} open files are needed, {allowed} are allowed (ulimit -n)");
    Ok(())
}

/// Opens tunnels and keeps them alive in tasks of the set.
async fn open_all(connector: &Connector, count: u32) -> anyhow::Result<JoinSet<()>> {
    let (mut opening, mut idle) = (JoinSet::new(), JoinSet::new());
    for number in 0..count {
        if opening.len() == AT_ONCE {
            keep(&mut opening, &mut idle).await?;
        }
        opening.spawn(open(connector.clone(), format!("bench-{number}")));
    }
    while !opening.is_empty() {
        keep(&mut opening, &mut idle).await?;
    }
    Ok(idle)
}

type Opening = JoinSet<Result<(Tunnel, Tunnel), ConnectError>>;

async fn keep(opening: &mut Opening, idle: &mut JoinSet<()>) -> anyhow::Result<()> {
    if let Some(opened) = opening.join_next().await {
        let (mut first, mut second) = opened??;
        idle.spawn(async move {
            tokio::select! {
                () = first.ended() => {}
                () = second.ended() => {}
            }
        });
    }
    Ok(())
}

async fn open(connector: Connector, token: String) -> Result<(Tunnel, Tunnel), ConnectError> {
    let token = Token::new(token);
    let first = connector.connect(&token, None).await?;
    let second = connector.connect(&token, None).await?;
    tokio::try_join!(first.partner(), second.partner())
}
