//! Carries one local connection over one attachment of the tunnel proxy, and ends the one in order
//! when the other does.

use std::io;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const BLOCK: usize = 64 * 1024;
/// How long what is closed may take to show that it is.
const CLOSING: Duration = Duration::from_secs(5);
/// How long input is read after its receiver has left.
const LAST_INPUT: Duration = Duration::from_secs(1);

/// Carries data both ways until one side ends; the other is ended after all its data. An
/// attachment has no half-close: when the local side sends no more, data for it is received until
/// none has arrived for as long as `linger`.
pub(crate) async fn carry(
    local: TcpStream,
    remote: impl AsyncRead + AsyncWrite,
    linger: Duration,
) -> anyhow::Result<()> {
    local.set_nodelay(true)?;
    let (mut from_local, mut to_local) = local.into_split();
    let (mut from_remote, mut to_remote) = split(remote);
    let input_ended = CancellationToken::new();
    let received = {
        let mut receiving =
            pin!(receive(&mut from_remote, &mut to_local, Some((&input_ended, linger))));
        let mut sending = pin!(send(&mut from_local, &mut to_remote));
        tokio::select! {
            received = &mut receiving => {
                if received.is_ok() {
                    // Closing a connection with unread input resets it. Input that does not end
                    // in time is reset nevertheless: it has no receiver any more.
                    let _in_time = timeout(LAST_INPUT, sending).await;
                }
                received
            }
            sent = &mut sending => {
                if let Err(Sending::Local(error)) = sent {
                    return Err(error).context("cannot read from the local connection");
                }
                // What came before the tunnel failed is still worth having.
                input_ended.cancel();
                receiving.await
            }
        }
    };
    match received {
        Ok(End::Ended) => Ok(to_remote.shutdown().await?),
        Ok(End::Quiet) => {
            let rest = timeout(CLOSING, receive(&mut from_remote, &mut to_local, None));
            let (shut, _) = tokio::join!(to_remote.shutdown(), rest);
            Ok(shut?)
        }
        Err(error) => {
            // So that what has come does not look complete.
            to_local.as_ref().set_zero_linger()?;
            to_local.forget();
            Err(error)
        }
    }
}

enum Sending {
    Local(io::Error),
    Remote,
}

async fn send(
    from_local: &mut (impl AsyncRead + Unpin),
    to_remote: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Sending> {
    let mut buffer = vec![0; BLOCK];
    loop {
        match from_local.read(&mut buffer).await.map_err(Sending::Local)? {
            0 => return to_remote.flush().await.map_err(|_| Sending::Remote),
            count => {
                to_remote.write_all(&buffer[..count]).await.map_err(|_| Sending::Remote)?;
            }
        }
    }
}

enum End {
    /// Everything has come.
    Ended,
    /// Nothing has come for a while since the input has ended.
    Quiet,
}

async fn receive(
    from_remote: &mut (impl AsyncRead + Unpin),
    to_local: &mut (impl AsyncWrite + Unpin),
    quiet: Option<(&CancellationToken, Duration)>,
) -> anyhow::Result<End> {
    let quiet_again = || async move {
        match quiet {
            Some((input_ended, linger)) => {
                input_ended.cancelled().await;
                sleep(linger).await;
            }
            None => std::future::pending().await,
        }
    };
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = tokio::select! {
            biased;
            read = from_remote.read(&mut buffer) => read?,
            () = quiet_again() => return Ok(End::Quiet),
        };
        let written = match read {
            0 => to_local.shutdown().await,
            count => to_local.write_all(&buffer[..count]).await,
        };
        written.context("cannot write to the local connection")?;
        if read == 0 {
            return Ok(End::Ended);
        }
    }
}
