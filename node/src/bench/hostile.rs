//! `hostile`: how long a round trip through a tunnel takes while strangers flood the node with
//! input that costs them nothing.
//!
//! The strangers and what they send are in [`attack`].

mod attack;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::client::{Connector, Message, Tunnel};
use nymea_remoteproxy::protocol::Token;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use self::attack::{ATTACKS, Attack, Attackers, Places};
use crate::node::{LISTENERS, Started};
use crate::report::{Times, merged, print};

/// Between two round trips: an endpoint that is not in a hurry.
const PAUSE: Duration = Duration::from_millis(1);
/// For one round trip.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until an attack is in full swing.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only attacks with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// Connections that attack at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    attackers: u16,
    /// Duration of the measurement of each attack
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Fail if one of ten round trips takes longer than this
    #[arg(long, value_name = "MILLISECONDS")]
    max_p90_ms: Option<f64>,
    /// Fail if one of a hundred round trips takes longer than this
    #[arg(long, value_name = "MILLISECONDS")]
    max_p99_ms: Option<f64>,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let places = Places { web_socket: free()?, tcp: free()?, tls: free()? };
    let listen = json!([
        { "kind": "websocket", "address": places.web_socket, "tls": false },
        { "kind": "tcp", "address": places.tcp, "tls": false },
        { "kind": "tcp", "address": places.tls, "tls": true },
    ]);
    let node = Started::with(&[(LISTENERS, &listen.to_string())]).await?;
    let connector = Connector::new(&format!("ws://{}", places.web_socket))?.name("bench");
    let mut ends = open(&connector).await?;
    let mut is_within = true;
    for attack in ATTACKS.iter().filter(|attack| attack.name.contains(&options.only)) {
        is_within &= measure(options, attack, places, &mut ends).await?;
    }
    drop(node);
    Ok(if is_within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(
    options: &Options,
    attack: &'static Attack,
    places: Places,
    ends: &mut (Tunnel, Tunnel),
) -> anyhow::Result<bool> {
    let attackers = Attackers::start(attack, places, options.attackers)?;
    sleep(WARM_UP).await;
    let mut times = Times::new()?;
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    while Instant::now() < end {
        let began = Instant::now();
        timeout(PATIENCE, round_trip(ends))
            .await
            .with_context(|| format!("no answer during `{}`", attack.name))??;
        times.record(began.elapsed());
        sleep(PAUSE).await;
    }
    let (connections, bytes) = attackers.stop()?;
    let (p90, p99) = (times.quantile(0.9), times.quantile(0.99));
    let result = json!({
        "case": "hostile",
        "attack": attack.name,
        "attackers": options.attackers,
        "connections": connections,
        "bytes": bytes,
        "round_trips": times.count(),
    });
    let summary = format!("{}: p90 {p90:.3} ms, p99 {p99:.3} ms", attack.name);
    print(&merged([result, times.fields()]), &summary)?;
    let is_within = |max: Option<f64>, time: f64| max.is_none_or(|max| time <= max);
    Ok(is_within(options.max_p90_ms, p90) && is_within(options.max_p99_ms, p99))
}

async fn open(connector: &Connector) -> anyhow::Result<(Tunnel, Tunnel)> {
    let token = Token::new("honest");
    let first = connector.connect(&token, None).await?;
    let second = connector.connect(&token, None).await?;
    Ok(tokio::try_join!(first.partner(), second.partner())?)
}

async fn round_trip((one, other): &mut (Tunnel, Tunnel)) -> anyhow::Result<()> {
    one.send(Message::Binary(vec![1; 64].into())).await?;
    other.next().await.context("the tunnel ended")??;
    other.send(Message::Binary(vec![2; 64].into())).await?;
    one.next().await.context("the tunnel ended")??;
    Ok(())
}

/// An address that is free.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
