//! The monitor socket: a unix socket that lists the gateways of this node and their apps to programs
//! of this machine, such as `nymea-remoteproxy-monitor` (`src/protocol/README.md`, section 5).
//!
//! A monitor sends `{"method":"refresh","params":{"printAll":false}}` as often as it likes, and gets
//! one line of JSON for each: a [`Report`]. Other input ends its connection. The numbers are
//! provided by an implementation of [`Statistics`].

mod report;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

pub use self::report::{App, Gateway, Report, TunnelProxy};
use crate::accept::{self, Guest, LastDescriptors, Listening, Manners, Owner, Room};
use crate::protocol::{FramingError, JsonStream};
use crate::transport::Socket;
use crate::unix_socket::UnixSocket;

/// Monitors at once that have sent something; further ones are closed.
const CONNECTIONS: usize = 8;
/// Monitors that have sent nothing; with more, the oldest are closed.
const SILENT: usize = 64;
/// How long a monitor may take for a report.
const SLOW: Duration = Duration::from_secs(5);
/// How long a monitor may ask for nothing.
const IDLE: Duration = Duration::from_mins(10);
/// What is read at once. Not more than this and one request is held of what a monitor sends.
const READ: usize = 4096;
/// How long the first request may take to begin.
const FIRST_BYTE: Duration = Duration::from_secs(5);

/// What is there to be reported.
pub trait Statistics: Send + Sync {
    /// What is so now; the gateways without apps only if `print_all`. The throughput is not
    /// filled in.
    fn report(&self, print_all: bool) -> Report;

    /// Payload bytes that were relayed so far, in all tunnels and both directions.
    fn relayed(&self) -> u64;
}

/// The one request there is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", deny_unknown_fields)]
pub enum Request {
    /// Asks for a report.
    #[serde(rename = "refresh", rename_all = "camelCase")]
    Refresh {
        /// Whether gateways without apps are wanted, too.
        print_all: bool,
    },
}

/// Serves until the task is aborted.
pub async fn serve(socket: UnixSocket, statistics: Arc<dyn Statistics>) {
    let throughput = Arc::new(AtomicU64::new(0));
    tokio::join!(measure(&*statistics, &throughput), accept_all(socket, &statistics, &throughput));
}

/// Keeps the number of bytes that were relayed in the last second.
async fn measure(statistics: &dyn Statistics, throughput: &AtomicU64) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = statistics.relayed();
    loop {
        seconds.tick().await;
        let now = statistics.relayed();
        throughput.store(now.saturating_sub(before), Ordering::Relaxed);
        before = now;
    }
}

async fn accept_all(
    socket: UnixSocket,
    statistics: &Arc<dyn Statistics>,
    throughput: &Arc<AtomicU64>,
) {
    let manners = Manners {
        who: "monitors",
        room: Room::new(SILENT, SILENT),
        first_byte: FIRST_BYTE,
        last_descriptors: LastDescriptors::Taken,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (statistics, throughput) = (Arc::clone(statistics), Arc::clone(throughput));
    let handle = move |guest: Guest| {
        let (statistics, throughput) = (Arc::clone(&statistics), Arc::clone(&throughput));
        let places = Arc::clone(&places);
        async move {
            let Socket::Unix(stream) = guest.socket else { return };
            let Ok(_place) = places.try_acquire() else {
                debug!(limit = CONNECTIONS, "too many monitors, a new one is closed");
                return;
            };
            drop(guest.visit);
            if let Err(reason) = answer(stream, &*statistics, &throughput).await {
                debug!(%reason, "a monitor was closed");
            }
        }
    };
    accept::serve(Listening::Unix(socket), manners, Owner::of_loop(), handle).await;
}

/// Why a monitor is closed.
#[derive(Debug, Error)]
enum Closed {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Framing(#[from] FramingError),
    #[error("it sent something other than a request to refresh: {0}")]
    Request(#[source] serde_json::Error),
    #[error("it did not read its report in time")]
    Slow,
    #[error("it sent no request for too long")]
    Idle,
}

async fn answer(
    mut stream: UnixStream,
    statistics: &dyn Statistics,
    throughput: &AtomicU64,
) -> Result<(), Closed> {
    let mut requests = JsonStream::default();
    let mut piece = vec![0; READ];
    loop {
        let read = timeout(IDLE, stream.read(&mut piece)).await.map_err(|_| Closed::Idle)??;
        if read == 0 {
            return Ok(requests.finish()?);
        }
        requests.push(&piece[..read]);
        while let Some(request) = requests.next_object()? {
            let request = serde_json::from_slice(&request).map_err(Closed::Request)?;
            let Request::Refresh { print_all } = request;
            let mut report = statistics.report(print_all);
            report.tunnel_proxy.throughput = throughput.load(Ordering::Relaxed);
            let line = report.to_line();
            timeout(SLOW, stream.write_all(&line)).await.map_err(|_| Closed::Slow)??;
        }
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
