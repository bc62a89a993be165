//! Calls other nodes: a few connections to each, kept and shared by the tunnels.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use nymea_remoteproxy_proto::bridge::v1::Frame;
use nymea_remoteproxy_proto::bridge::v1::bridge_client::BridgeClient;
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower_service::Service;

use super::leg::BridgeLeg;
use super::outbox::outbox;
use super::tls::{BridgeStream, BridgeTls};
use super::wire::{self, Refusal};
use super::{Bridged, CONNECTION_WINDOW, KEEPALIVE_INTERVAL, STEP, STREAM_WINDOW};
use crate::ids::OfferId;
use crate::lifecycle::Lifecycle;
use crate::protocol::Profile;
use crate::rendezvous::Secret;

/// Connections to one node. One would do for the windows, but is one core for all its TLS.
const CONNECTIONS: usize = 4;
/// A node that no tunnel leads to is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// The largest frame that is read, in bytes.
const MAX_FRAME: usize = 128 * 1024;

/// Why there is no bridge.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// The address makes no sense.
    #[error("{0:?} is no address of a node")]
    Address(String),
    /// The other node said no.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The other node cannot be reached.
    #[error("the other node cannot be reached")]
    Unreachable(#[source] Box<Status>),
    /// The other node took too long.
    #[error("the other node did not answer in time")]
    Timeout,
    /// The other node's answer makes no sense.
    #[error("the other node's answer makes no sense")]
    Answer,
}

/// The other nodes, as far as tunnels lead there.
pub struct Peers {
    tls: Option<BridgeTls>,
    stalled: Duration,
    lifecycle: Lifecycle,
    by_address: Mutex<HashMap<String, Arc<Peer>>>,
}

struct Peer {
    connections: Vec<Connection>,
    last_used: Mutex<Instant>,
}

struct Connection {
    channel: Channel,
    streams: Arc<AtomicUsize>,
}

/// Counts a tunnel on its connection as long as it lives.
pub(super) struct StreamGuard(Arc<AtomicUsize>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peers {
    /// Nobody is called yet. `stalled` is how long a node may leave data untaken.
    pub fn new(tls: Option<BridgeTls>, stalled: Duration, lifecycle: Lifecycle) -> Self {
        Self { tls, stalled, lifecycle, by_address: Mutex::default() }
    }

    /// Fetches the endpoint of a claimed offer from its node, for one with this profile.
    pub async fn bridge(
        &self,
        address: &str,
        offer: OfferId,
        secret: Secret,
        profile: &Profile,
    ) -> Result<Bridged, BridgeError> {
        let (channel, guard) = self.peer(address)?.least_loaded();
        let (outbox, outgoing) = outbox();
        outbox.push(wire::attach(offer, secret, profile), 0);
        let mut client = BridgeClient::new(channel).max_decoding_message_size(MAX_FRAME);
        let call = timeout(STEP, client.tunnel(outgoing));
        let response = call.await.map_err(|_| BridgeError::Timeout)?.map_err(failed)?;
        let mut incoming = response.into_inner();
        let answer = timeout(STEP, incoming.message());
        match answer.await.map_err(|_| BridgeError::Timeout)?.map_err(failed)? {
            Some(Frame { content: Some(Content::Attached(attached)) }) => {
                let profile = attached.profile.ok_or(BridgeError::Answer)?;
                let lifecycle = self.lifecycle.clone();
                let leg = BridgeLeg::new(outbox, incoming, self.stalled, lifecycle, Some(guard));
                Ok(Bridged { leg: Box::new(leg), profile: wire::profile_from_proto(profile) })
            }
            Some(Frame { content: Some(Content::Refused(refused)) }) => {
                Err(wire::read_refused(refused).into())
            }
            _ => Err(BridgeError::Answer),
        }
    }

    fn peer(&self, address: &str) -> Result<Arc<Peer>, BridgeError> {
        let mut peers = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(address) {
            return Ok(Arc::clone(peer));
        }
        peers.retain(|_, peer| !peer.is_forgotten());
        let peer = Arc::new(Peer::new(address, self.tls.as_ref())?);
        peers.insert(address.to_owned(), Arc::clone(&peer));
        Ok(peer)
    }
}

impl Peer {
    fn new(address: &str, tls: Option<&BridgeTls>) -> Result<Self, BridgeError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| BridgeError::Address(address.to_owned()))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(STEP)
            .keep_alive_while_idle(true);
        let dial = Dial { address: address.into(), tls: tls.cloned() };
        let connection = || Connection {
            channel: endpoint.connect_with_connector_lazy(dial.clone()),
            streams: Arc::default(),
        };
        let connections = std::iter::repeat_with(connection).take(CONNECTIONS).collect();
        Ok(Self { connections, last_used: Mutex::new(Instant::now()) })
    }

    fn least_loaded(&self) -> (Channel, StreamGuard) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let connection = self
            .connections
            .iter()
            .min_by_key(|connection| connection.streams.load(Ordering::Relaxed))
            .expect("there are some");
        connection.streams.fetch_add(1, Ordering::Relaxed);
        (connection.channel.clone(), StreamGuard(Arc::clone(&connection.streams)))
    }

    fn is_forgotten(&self) -> bool {
        let unused = |connection: &Connection| connection.streams.load(Ordering::Relaxed) == 0;
        let last_used = *self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.iter().all(unused) && last_used.elapsed() > FORGET_AFTER
    }
}

fn failed(status: Status) -> BridgeError {
    match status.code() {
        // Its bridge is of a package that this node does not know, or the reverse.
        Code::Unimplemented => Refusal::Version(0).into(),
        _ => BridgeError::Unreachable(Box::new(status)),
    }
}

/// Opens connections to one node.
#[derive(Clone)]
struct Dial {
    address: Arc<str>,
    tls: Option<BridgeTls>,
}

impl Dial {
    async fn connect(self) -> io::Result<TokioIo<BridgeStream>> {
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = match &self.tls {
            Some(tls) => tls.connect(host_of(&self.address), tcp).await?,
            None => BridgeStream::Plain(tcp),
        };
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<BridgeStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let dial = self.clone();
        async move {
            match timeout(STEP, dial.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
        .boxed()
    }
}

/// The host of `host:port` or `[v6]:port`.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(host_of("node1:1213"), "node1");
        assert_eq!(host_of("[::1]:1213"), "::1");
        assert_eq!(host_of("127.0.0.1:1"), "127.0.0.1");
    }
}
