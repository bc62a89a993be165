//! `--listen` and `--connect`: one TCP connection through the tunnel.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::info;

use crate::options::Options;
use crate::relay::{Rules, relay};
use crate::tunnel;
use nymea_remoteproxy::client::Tunnel;

const DIAL: Duration = Duration::from_secs(10);

/// Lets the first connection to `address` through the tunnel.
pub(crate) async fn listen(options: &Options, address: &str) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    info!(address = %listener.local_addr()?, "listening");
    let mut tunnel = tunnel::open(options).await?;
    let accepted = tokio::select! {
        accepted = listener.accept() => accepted,
        () = tunnel.ended() => bail!("the other endpoint left before a connection was accepted"),
    };
    let (tcp, from) = accepted.with_context(|| format!("cannot accept on {address}"))?;
    drop(listener);
    info!(%from, "a connection is accepted");
    carry(tunnel, tcp, options).await
}

/// Connects to `address` when the tunnel is established.
pub(crate) async fn connect(options: &Options, address: &str) -> anyhow::Result<()> {
    let tunnel = tunnel::open(options).await?;
    let tcp = timeout(DIAL, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .with_context(|| format!("cannot connect to {address}"))?;
    carry(tunnel, tcp, options).await
}

async fn carry(tunnel: Tunnel, tcp: TcpStream, options: &Options) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let (input, output) = tcp.into_split();
    let (linger, progress) = (options.linger(), options.progress);
    relay(tunnel, input, output, Rules { linger, empty_receives: false, progress }).await
}
