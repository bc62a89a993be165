//! Calls other nodes: a few connections to each, kept and shared by the tunnels.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use nymea_remoteproxy_proto::bridge::v1::bridge_client::BridgeClient;
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{Frame, PingRequest};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower_service::Service;

use super::executor::AtOnce;
use super::leg::{BridgeLeg, Counted};
use super::outbox::outbox;
use super::tls::{BridgeStream, BridgeTls};
use super::wire::{self, Refusal};
use super::{
    AppCall, Bridged, CONNECTION_TRACE, CONNECTION_WINDOW, FRAME_SIZE, KEEPALIVE_INTERVAL,
    PING_INTERVAL, STEP, STREAM_WINDOW,
};
use crate::ids::OfferId;
use crate::lifecycle::Lifecycle;
use crate::observability::Metrics;
use crate::observability::trace::Bridging;
use crate::protocol::Profile;
use crate::rendezvous::Secret;

/// Connections to one node. One would do for the windows, but is one core for all its TLS.
const CONNECTIONS: usize = 4;
/// A node that no tunnel leads to is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// How long another node may take to ask an endpoint for a sign of life.
const PROBE: Duration = Duration::from_millis(4500);
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

impl BridgeError {
    /// A short constant name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Refused(refusal) => refusal.label(),
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Answer => "answer",
        }
    }
}

/// The other nodes, as far as tunnels lead there.
pub struct Peers {
    /// The name of this node.
    node: Arc<str>,
    tls: Option<BridgeTls>,
    stalled: Duration,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    by_address: Mutex<HashMap<String, Arc<Peer>>>,
}

struct Peer {
    /// What it calls itself, once it has said so.
    name: OnceLock<String>,
    connections: Vec<Connection>,
    /// Connections that are there.
    connected: Arc<AtomicUsize>,
    last_used: Mutex<Instant>,
}

struct Connection {
    channel: Channel,
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

impl Peers {
    /// Nobody is called yet. `node` is this node's name, `stalled` how long another one may leave
    /// data untaken.
    pub fn new(
        node: Arc<str>,
        tls: Option<BridgeTls>,
        stalled: Duration,
        lifecycle: Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let by_address = Mutex::default();
        let peers = Arc::new(Self { node, tls, stalled, lifecycle, metrics, by_address });
        let observed = |value: fn(&Peer) -> usize| {
            let peers = Arc::downgrade(&peers);
            move || {
                let Some(peers) = peers.upgrade() else { return Vec::new() };
                let peers = peers.by_address();
                let named = peers.values().map(|peer| (peer.name().to_owned(), value(peer)));
                // Two starts of a node may be known by two addresses.
                let mut sums = BTreeMap::new();
                named.for_each(|(name, value)| *sums.entry(name).or_default() += value);
                sums.into_iter().collect()
            }
        };
        peers.metrics.observe_peers(
            "remoteproxy.bridge.streams.out",
            "Tunnels that this node has opened to other nodes",
            observed(Peer::streams),
        );
        peers.metrics.observe_peers(
            "remoteproxy.bridge.connections",
            "Connections that this node has opened to other nodes",
            observed(|peer| peer.connected.load(Ordering::Relaxed)),
        );
        peers
    }

    /// Fetches the endpoint of a claimed offer from its node, for one with this profile; or the
    /// gateway of a registration, for an app.
    pub async fn bridge(
        &self,
        address: &str,
        offer: (OfferId, Secret),
        endpoint: (&Profile, Option<&AppCall>),
        bridging: &Bridging,
    ) -> Result<Bridged, BridgeError> {
        let bridged = self.call(address, offer, endpoint, bridging).await;
        let error = bridged.as_ref().err().map(BridgeError::label);
        self.metrics.bridge_call(error.unwrap_or("attached"));
        bridging.ends(address, error);
        bridged
    }

    async fn call(
        &self,
        address: &str,
        offer: (OfferId, Secret),
        endpoint: (&Profile, Option<&AppCall>),
        bridging: &Bridging,
    ) -> Result<Bridged, BridgeError> {
        let peer = self.peer(address)?;
        let (channel, guard) = peer.least_loaded();
        let (outbox, outgoing) = outbox();
        outbox.push(wire::attach(offer, endpoint, &self.node), 0);
        let mut client = BridgeClient::new(channel).max_decoding_message_size(MAX_FRAME);
        let call = timeout(STEP, client.tunnel(traced(outgoing, bridging)));
        let response = call.await.map_err(|_| BridgeError::Timeout)?.map_err(failed)?;
        let mut incoming = response.into_inner();
        let answer = timeout(STEP, incoming.message());
        match answer.await.map_err(|_| BridgeError::Timeout)?.map_err(failed)? {
            Some(Frame { content: Some(Content::Attached(attached)) }) => {
                let node = wire::name_of(&attached.node).to_owned();
                let profile = attached.profile.ok_or(BridgeError::Answer)?;
                let lifecycle = self.lifecycle.clone();
                let counted = Counted::Out { _guard: guard };
                let leg = BridgeLeg::new(outbox, incoming, self.stalled, lifecycle, counted)
                    .knowing_finished(attached.finished);
                let profile = wire::profile_from_proto(profile);
                Ok(Bridged { leg: Box::new(leg), profile, node })
            }
            Some(Frame { content: Some(Content::Refused(refused)) }) => {
                Err(wire::read_refused(refused).into())
            }
            _ => Err(BridgeError::Answer),
        }
    }

    /// Whether the endpoint of another node's registration gives a sign of life.
    pub async fn probe(
        &self,
        address: &str,
        registration: (OfferId, Secret),
    ) -> Result<bool, BridgeError> {
        let (channel, _guard) = self.peer(address)?.least_loaded();
        let mut client = BridgeClient::new(channel);
        let answer = timeout(PROBE, client.probe(wire::probe(registration)));
        let answer = answer.await.map_err(|_| BridgeError::Timeout)?.map_err(failed)?;
        Ok(answer.into_inner().alive)
    }

    fn peer(&self, address: &str) -> Result<Arc<Peer>, BridgeError> {
        let mut peers = self.by_address();
        if let Some(peer) = peers.get(address) {
            return Ok(Arc::clone(peer));
        }
        peers.retain(|_, peer| !peer.is_forgotten());
        let peer = Arc::new(Peer::new(address, self.tls.as_ref())?);
        tokio::spawn(ping(Arc::downgrade(&peer), Arc::clone(&self.metrics)));
        peers.insert(address.to_owned(), Arc::clone(&peer));
        Ok(peer)
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<String, Arc<Peer>>> {
        // Each change is a single step: what a panicking thread left behind is in order.
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says where the call belongs in the trace of the tunnel.
fn traced<T>(message: T, bridging: &Bridging) -> Request<T> {
    let mut request = Request::new(message);
    let places = [("traceparent", bridging.place()), (CONNECTION_TRACE, bridging.connection())];
    for (name, place) in places {
        if let Some(value) = place.and_then(|place| place.to_string().parse().ok()) {
            request.metadata_mut().insert(name, value);
        }
    }
    request
}

/// Measures the round trip to a node as long as tunnels lead there.
async fn ping(peer: Weak<Peer>, metrics: Arc<Metrics>) {
    while let Some(channel) = peer.upgrade().and_then(|peer| peer.channel()) {
        let began = Instant::now();
        let mut client = BridgeClient::new(channel);
        let answer = timeout(STEP, client.ping(PingRequest {})).await;
        let took = began.elapsed();
        if let (Ok(Ok(reply)), Some(peer)) = (answer, peer.upgrade()) {
            let reply = reply.into_inner();
            let name = peer.name.get_or_init(|| wire::name_of(&reply.node).to_owned());
            metrics.round_trip(name, took);
        }
        sleep(PING_INTERVAL).await;
    }
}

impl Peer {
    fn new(address: &str, tls: Option<&BridgeTls>) -> Result<Self, BridgeError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| BridgeError::Address(address.to_owned()))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(STEP)
            .keep_alive_while_idle(true)
            .executor(AtOnce);
        let connected = Arc::default();
        let dial =
            Dial { address: address.into(), tls: tls.cloned(), connected: Arc::clone(&connected) };
        let connection = || Connection {
            channel: endpoint.connect_with_connector_lazy(dial.clone()),
            streams: Arc::default(),
        };
        let connections = std::iter::repeat_with(connection).take(CONNECTIONS).collect();
        let last_used = Mutex::new(Instant::now());
        Ok(Self { name: OnceLock::new(), connections, connected, last_used })
    }

    fn name(&self) -> &str {
        self.name.get().map_or("unknown", String::as_str)
    }

    fn streams(&self) -> usize {
        let streams = |connection: &Connection| connection.streams.load(Ordering::Relaxed);
        self.connections.iter().map(streams).sum()
    }

    /// One that is in use, so that asking for a round trip makes no connection; `None` once the
    /// node is to be forgotten.
    fn channel(&self) -> Option<Channel> {
        let busiest = |it: &&Connection| it.streams.load(Ordering::Relaxed);
        let connection = self.connections.iter().max_by_key(busiest)?;
        (!self.is_forgotten()).then(|| connection.channel.clone())
    }

    fn least_loaded(&self) -> (Channel, CountGuard) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let connection = self
            .connections
            .iter()
            .min_by_key(|connection| connection.streams.load(Ordering::Relaxed))
            .expect("there are some");
        (connection.channel.clone(), CountGuard::new(&connection.streams))
    }

    fn is_forgotten(&self) -> bool {
        let last_used = *self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        self.streams() == 0 && last_used.elapsed() > FORGET_AFTER
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
    connected: Arc<AtomicUsize>,
}

impl Dial {
    async fn connect(self) -> io::Result<TokioIo<BridgeStream>> {
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = match &self.tls {
            Some(tls) => tls.connect(host_of(&self.address), tcp).await?,
            None => BridgeStream::plain(tcp),
        };
        Ok(TokioIo::new(stream.counted(CountGuard::new(&self.connected))))
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
