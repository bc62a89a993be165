//! Carries data between the tunnel and something local, and decides when that is complete.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use nymea_remoteproxy::client::Tunnel;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until, timeout};

use crate::options::Options;

/// As much as the tunnel takes in one message.
const CHUNK: usize = 64 * 1024;
/// Input that pauses for this long has what came so far confirmed.
const PAUSE: Duration = Duration::from_millis(1);
/// How long to look for further input once the other endpoint has left.
const LAST_INPUT: Duration = Duration::from_millis(100);

/// When a transfer is complete.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Having sent everything, receive until nothing has come for this long.
    pub(crate) linger: Duration,
    /// If there is no input at all, receive until the other endpoint leaves.
    pub(crate) empty_receives: bool,
    pub(crate) progress: bool,
}

/// Carries data between the tunnel and stdin and stdout.
pub(crate) async fn pipe(tunnel: Tunnel, options: &Options) -> anyhow::Result<()> {
    // Not the buffered ones of the standard library: they look for line feeds.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (linger, progress) = (options.linger(), options.progress);
    let rules = Rules { linger, empty_receives: true, progress };
    relay(tunnel, tokio::fs::File::from_std(input), tokio::fs::File::from_std(output), rules).await
}

/// Carries data both ways until one side ends. `Ok` if all of it arrived: that of the tunnel in
/// `output`, and that of `input` at the proxy.
pub(crate) async fn relay(
    tunnel: Tunnel,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    rules: Rules,
) -> anyhow::Result<()> {
    let meter = Meter::new(rules.progress);
    let (mut from_tunnel, mut to_tunnel) = split(tunnel);
    let mut download = pin!(receive(&mut from_tunnel, &mut output, &meter));
    let mut other_left = false;
    let sent = {
        let mut upload = pin!(send(&mut input, &mut to_tunnel, &meter));
        tokio::select! {
            sent = &mut upload => sent,
            received = &mut download => {
                received?;
                other_left = true;
                timeout(LAST_INPUT, upload).await.unwrap_or(Sent::All)
            }
        }
    };
    match sent {
        Sent::Nothing if rules.empty_receives && !other_left => {
            download.as_mut().await?;
            other_left = true;
        }
        Sent::Nothing | Sent::All => {}
        Sent::InputFailed(error) => return Err(error).context("cannot read the input"),
        Sent::TunnelFailed(error) => {
            if !other_left {
                // What came until then is still worth having, and so is a better reason.
                download.await?;
            }
            return Err(error.into());
        }
    }
    if other_left || !still(&meter, rules.linger, download.as_mut()).await? {
        to_tunnel.shutdown().await?;
    } else {
        tokio::try_join!(async { Ok(to_tunnel.shutdown().await?) }, download)?;
    }
    meter.bar.finish();
    Ok(())
}

/// The end of the input.
enum Sent {
    /// There was none.
    Nothing,
    All,
    InputFailed(io::Error),
    TunnelFailed(io::Error),
}

async fn send(
    input: &mut (impl AsyncRead + Unpin),
    to_tunnel: &mut (impl AsyncWrite + Unpin),
    meter: &Meter,
) -> Sent {
    let mut buffer = vec![0; CHUNK];
    let mut all = Sent::Nothing;
    loop {
        let read = match timeout(PAUSE, input.read(&mut buffer)).await {
            Ok(read) => read,
            // Nothing to confirm, and no reason to notice that the other endpoint has left.
            Err(_) if matches!(all, Sent::Nothing) => input.read(&mut buffer).await,
            Err(_) => match to_tunnel.flush().await {
                Ok(()) => input.read(&mut buffer).await,
                Err(error) => return Sent::TunnelFailed(error),
            },
        };
        let sent = match read {
            Ok(0) if matches!(all, Sent::Nothing) => return all,
            Ok(0) => return to_tunnel.flush().await.map_or_else(Sent::TunnelFailed, |()| all),
            Ok(count) => to_tunnel.write_all(&buffer[..count]).await.map(|()| count),
            Err(error) => return Sent::InputFailed(error),
        };
        match sent {
            Ok(count) => meter.count(count),
            Err(error) => return Sent::TunnelFailed(error),
        }
        all = Sent::All;
    }
}

/// Ends with the tunnel.
async fn receive(
    from_tunnel: &mut (impl AsyncRead + Unpin),
    output: &mut (impl AsyncWrite + Unpin),
    meter: &Meter,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let received = from_tunnel.read(&mut buffer).await;
        let written = match received {
            Ok(0) | Err(_) => output.shutdown().await,
            Ok(count) => output.write_all(&buffer[..count]).await,
        };
        written.context("cannot write the output")?;
        match received? {
            0 => return Ok(()),
            count => {
                meter.count(count);
                meter.received_at.set(Instant::now());
            }
        }
    }
}

/// Receives until nothing has come for as long as `linger`. False if the tunnel ended before.
async fn still(
    meter: &Meter,
    linger: Duration,
    mut download: impl Future<Output = anyhow::Result<()>> + Unpin,
) -> anyhow::Result<bool> {
    meter.received_at.set(Instant::now());
    loop {
        let until = meter.received_at.get() + linger;
        tokio::select! {
            received = &mut download => return received.map(|()| false),
            () = sleep_until(until) => {
                if until == meter.received_at.get() + linger {
                    return Ok(true);
                }
            }
        }
    }
}

/// How much has gone through, and when something came last.
struct Meter {
    bar: ProgressBar,
    received_at: Cell<Instant>,
}

impl Meter {
    fn new(visible: bool) -> Self {
        let bar = if visible { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(
            "{spinner} {binary_bytes} in {elapsed}, {binary_bytes_per_sec}",
        ) {
            bar.set_style(style);
        }
        Self { bar, received_at: Cell::new(Instant::now()) }
    }

    fn count(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
    }
}
