//! Another node, as far as tunnels lead there: a few connections, opened when they are needed and
//! shared by the tunnels.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::uri::Authority;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::STEP;
use super::connection::{self, Requests};
use super::tls::{BridgeStream, BridgeTls};
use super::wire;
use crate::ids::NodeId;
use crate::rendezvous::RemoteNode;

/// Connections to one node. One would do for the windows, but is one core for all its TLS.
const CONNECTIONS: usize = 4;
/// A node that no tunnel leads to is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_mins(5);

/// Why there is no connection to a node.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// TCP or TLS.
    #[error("cannot connect")]
    Stream(#[from] io::Error),
    /// HTTP/2.
    #[error("no HTTP/2")]
    Http(#[from] h2::Error),
}

/// Another node.
pub(super) struct Peer {
    authority: Authority,
    tls: Option<BridgeTls>,
    /// What it calls itself, once it has said so.
    name: OnceLock<String>,
    connections: Vec<Connection>,
    /// Connections that are there.
    connected: Arc<AtomicUsize>,
    last_used: Mutex<Instant>,
    /// Who was meant by the last call.
    meant: Mutex<Option<NodeId>>,
}

#[derive(Default)]
struct Connection {
    /// `None` before it is needed. Whoever finds it broken opens it, and the others wait for that.
    requests: tokio::sync::Mutex<Option<Requests>>,
    streams: Arc<AtomicUsize>,
}

/// Counts something as long as it lives.
pub(super) struct CountGuard(Arc<AtomicUsize>);

impl CountGuard {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// Nothing is connected yet.
    pub(super) fn new(authority: Authority, tls: Option<BridgeTls>) -> Self {
        let connections = std::iter::repeat_with(Connection::default).take(CONNECTIONS).collect();
        let (name, connected) = (OnceLock::new(), Arc::default());
        let last_used = Mutex::new(Instant::now());
        let meant = Mutex::default();
        Self { authority, tls, name, connections, connected, last_used, meant }
    }

    /// As in a URI.
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn name(&self) -> &str {
        self.known_name().unwrap_or("unknown")
    }

    /// What it calls itself, once it has said so.
    pub(super) fn known_name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    /// Notes that the node with this id is called.
    pub(super) fn is_meant_as(&self, id: &NodeId) {
        let mut meant = self.meant.lock().unwrap_or_else(PoisonError::into_inner);
        if meant.as_ref() != Some(id) {
            *meant = Some(id.clone());
        }
    }

    /// Which node was meant by the last call.
    pub(super) fn meant(&self) -> Option<RemoteNode> {
        let id = self.meant.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(RemoteNode { id, address: self.authority.to_string() })
    }

    /// Notes what it calls itself; gives what it called itself first.
    pub(super) fn named(&self, said: &str) -> &str {
        self.name.get_or_init(|| wire::name_of(said).to_owned())
    }

    /// Tunnels to it.
    pub(super) fn streams(&self) -> usize {
        let streams = |connection: &Connection| connection.streams.load(Ordering::Relaxed);
        self.connections.iter().map(streams).sum()
    }

    /// Connections to it.
    pub(super) fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// The connection with the fewest tunnels, opened if it is not. What is given with it counts
    /// one more tunnel on it.
    pub(super) async fn least_loaded(&self) -> Result<(Requests, CountGuard), ConnectError> {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let connection = self
            .connections
            .iter()
            .min_by_key(|connection| connection.streams.load(Ordering::Relaxed))
            .expect("there are some");
        let guard = CountGuard::new(&connection.streams);
        let mut requests = connection.requests.lock().await;
        if let Some(open) = &*requests
            && let Ok(open) = open.clone().ready().await
        {
            return Ok((open, guard));
        }
        let opened = self.open().await?;
        *requests = Some(opened.clone());
        Ok((opened, guard))
    }

    /// A connection that is open, if there is one.
    pub(super) async fn any_open(&self) -> Option<Requests> {
        for connection in &self.connections {
            let requests = connection.requests.try_lock().ok().and_then(|it| it.clone());
            if let Some(requests) = requests
                && let Ok(Ok(requests)) = timeout(STEP, requests.ready()).await
            {
                return Some(requests);
            }
        }
        None
    }

    /// Whether no tunnel has led to it for a while.
    pub(super) fn is_forgotten(&self) -> bool {
        let last_used = *self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        self.streams() == 0 && last_used.elapsed() > FORGET_AFTER
    }

    async fn open(&self) -> Result<Requests, ConnectError> {
        let opened = timeout(STEP, async {
            let tcp = TcpStream::connect(self.authority.as_str()).await?;
            tcp.set_nodelay(true)?;
            let stream = match &self.tls {
                Some(tls) => tls.connect(host_of(&self.authority), tcp).await?,
                None => BridgeStream::plain(tcp),
            };
            let counted = stream.counted(CountGuard::new(&self.connected));
            Ok(connection::open(counted).await?)
        });
        opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// The host, without the brackets of an address of IPv6.
fn host_of(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_authorities() {
        let cases = [("node1:1213", "node1"), ("[::1]:1213", "::1"), ("127.0.0.1:1", "127.0.0.1")];
        for (authority, host) in cases {
            assert_eq!(host_of(&authority.parse().expect("an authority")), host);
        }
    }
}
