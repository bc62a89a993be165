//! `delay`: a TCP relay that forwards every byte some time after its arrival, as a long link would,
//! for machines without a kernel that can make one. Data in flight is bounded by its two ends only.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where it accepts
    #[arg(long)]
    listen: SocketAddr,
    /// Where it connects to
    #[arg(long)]
    backend: SocketAddr,
    /// How long a byte takes, each way
    #[arg(long, value_name = "MILLISECONDS")]
    one_way: u64,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(options.listen).await?;
    let (backend, time) = (options.backend, Duration::from_millis(options.one_way));
    loop {
        let (near, _) = listener.accept().await?;
        tokio::spawn(async move {
            let far = TcpStream::connect(backend).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass(near_in, far_out, time));
            tokio::spawn(pass(far_in, near_out, time));
            std::io::Result::Ok(())
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "holds what is sent during one delay")]
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let reading = async move {
        loop {
            let mut data = Vec::with_capacity(64 * 1024);
            if from.read_buf(&mut data).await.is_ok_and(|bytes| bytes > 0) {
                let _gone_with_the_other_end = sender.send((Instant::now() + time, data));
            } else {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, data)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&data).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
