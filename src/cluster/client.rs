//! Calls other nodes: fetches the far ends of tunnels, and measures the round trips to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, TE};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Uri, Version};
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{Frame, PingReply, PingRequest, ProbeReply, Refused};
use prost::Message;
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::asked::Asked;
use super::budget::Budget;
use super::call::CallError;
use super::failure::REASONS;
use super::leg::{BridgeLeg, Counted};
use super::misdirected::{Misdirections, node_of};
use super::peer::{Chosen, ConnectError, Peer};
use super::tls::BridgeTls;
use super::watch::Health;
use super::wire::{self, Life, Refusal};
use super::{AppCall, Bridged, CONNECTION_TRACE, GRPC, PING, PING_INTERVAL, PROBE, STEP, TUNNEL};
use crate::ids::{NodeId, OfferId};
use crate::lifecycle::Lifecycle;
use crate::lock::lock;
use crate::observability::Metrics;
use crate::observability::trace::Bridging;
use crate::protocol::Profile;
use crate::rendezvous::{RemoteNode, Secret};

/// The time for another node to probe an endpoint.
const PROBE_TIME: Duration = Duration::from_millis(4500);
/// A call that is not answered for so long has its connection checked, and is looked at again each
/// time so long. Short enough that another connection can be tried within a [`STEP`].
const UNANSWERED: Duration = Duration::from_millis(600);

/// Why there is no bridge.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// The address is malformed.
    #[error("{0:?} is not the address of a node")]
    Address(String),
    /// The other node refused the call.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The other node cannot be reached.
    #[error("the other node cannot be reached")]
    Unreachable(#[source] ConnectError),
    /// The other node has failed to carry out the call.
    #[error("the call to the other node has failed")]
    Call(#[source] CallError),
    /// The other node took too long.
    #[error("the other node did not answer in time")]
    Timeout,
    /// The answer of the other node is malformed.
    #[error("the other node's answer is not valid")]
    Answer,
}

impl BridgeError {
    /// A short constant name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Refused(refusal) => refusal.label(),
            Self::Unreachable(_) | Self::Call(_) => "unreachable",
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
    misdirections: Arc<Misdirections>,
    budget: Arc<Budget>,
    by_address: Mutex<HashMap<String, Arc<Peer>>>,
}

impl Peers {
    /// Creates it without connections. `node` is the name of this node, `stalled` how long another
    /// node may leave data unread, `budget` the memory for all bridged tunnels.
    pub fn new(
        node: Arc<str>,
        tls: Option<BridgeTls>,
        stalled: Duration,
        lifecycle: Lifecycle,
        metrics: Arc<Metrics>,
        misdirections: Arc<Misdirections>,
        budget: Arc<Budget>,
    ) -> Arc<Self> {
        let by_address = Mutex::default();
        let peers = Arc::new(Self {
            node,
            tls,
            stalled,
            lifecycle,
            metrics,
            misdirections,
            budget,
            by_address,
        });
        let observed = |value: fn(&Peer) -> usize| {
            let peers = Arc::downgrade(&peers);
            move || {
                let Some(peers) = peers.upgrade() else { return Vec::new() };
                let peers = peers.by_address();
                peers.values().map(|peer| (peer.name().to_owned(), value(peer))).collect()
            }
        };
        peers.metrics.bridge_connections_may_fail(&REASONS);
        peers.metrics.observe_peers(
            "remoteproxy.bridge.streams.out",
            "Bridge calls open from this node to other nodes",
            observed(Peer::streams),
        );
        peers.metrics.observe_peers(
            "remoteproxy.bridge.connections",
            "Bridge connections open from this node to other nodes",
            observed(Peer::connected),
        );
        peers
    }

    /// Fetches the endpoint of a claimed offer from its node, for one with this profile; or the
    /// gateway of a registration, for an app.
    pub async fn bridge(
        &self,
        node: &RemoteNode,
        offer: (OfferId, Secret),
        endpoint: (&Profile, Option<&AppCall>),
        bridging: &Bridging,
    ) -> Result<Bridged, BridgeError> {
        let bridged = self.call(node, offer, endpoint, bridging).await;
        let error = bridged.as_ref().err().map(BridgeError::label);
        self.metrics.bridge_call(error.unwrap_or("attached"));
        bridging.ends(&node.address, error);
        bridged
    }

    async fn call(
        &self,
        node: &RemoteNode,
        offer: (OfferId, Secret),
        endpoint: (&Profile, Option<&AppCall>),
        bridging: &Bridging,
    ) -> Result<Bridged, BridgeError> {
        let peer = self.peer(node)?;
        let attach = wire::attach(offer, endpoint, &self.node, &node.id);
        let request = || traced(request(&peer, TUNNEL), bridging);
        let mut asked = in_time(STEP, self.answered(&peer, request, &attach, Stays::Open)).await?;
        let answer = in_time(STEP, async { asked.message().await.map_err(failed) }).await?;
        match answer {
            Some(Frame { content: Some(Content::Attached(attached)) }) => {
                self.misdirections.reached(&node.id);
                let node = wire::name_of(&attached.node).to_owned();
                peer.named(&attached.node);
                let profile = attached.profile.ok_or(BridgeError::Answer)?;
                let (outgoing, incoming, guard) = asked.into_parts().ok_or(BridgeError::Answer)?;
                let lifecycle = self.lifecycle.clone();
                let share = self.budget.tunnel();
                let counted = Counted { _guard: guard, gauge: None, share };
                let leg = BridgeLeg::new(outgoing, incoming, self.stalled, lifecycle, counted)
                    .knowing_finished(attached.finished);
                let profile = wire::profile_from_proto(profile);
                Ok(Bridged { leg: Box::new(leg), profile, node })
            }
            Some(Frame { content: Some(Content::Refused(refused)) }) => {
                Err(self.refused(node, &peer, &refused).into())
            }
            _ => Err(BridgeError::Answer),
        }
    }

    /// Why `node` has refused a call, or the one that was reached in its place.
    fn refused(&self, node: &RemoteNode, peer: &Peer, refused: &Refused) -> Refusal {
        let refusal = wire::read_refused(refused);
        if !refused.node.is_empty() {
            self.misdirections.answered(node, &node_of(&refused.node));
        } else if refusal == Refusal::Gone
            && let Some(name) = peer.known_name()
            && name != wire::name_of(node.id.name())
        {
            // An older release, which does not check whether it is meant.
            self.misdirections.answered(node, &NodeId::from(name));
            return Refusal::WrongNode;
        }
        refusal
    }

    /// Sends a request, and waits for the head of its answer: over another connection if the first
    /// one gives no sign of life.
    async fn answered(
        &self,
        peer: &Arc<Peer>,
        request: impl Fn() -> Request<()>,
        message: &impl Message,
        stays: Stays,
    ) -> Result<Asked, BridgeError> {
        let mut chosen = peer.choose().await.map_err(BridgeError::Unreachable)?;
        loop {
            let health = Arc::clone(&chosen.health);
            let asked = Asked::new(chosen, request(), message, &self.lifecycle);
            let mut asked = asked.map_err(failed)?;
            if stays == Stays::Closed {
                asked.is_all();
            }
            chosen = tokio::select! {
                head = asked.head() => return head.map(|()| asked).map_err(failed),
                other = another(peer, &health) => other,
            };
        }
    }

    /// Whether the endpoint of another node's registration lives.
    pub async fn probe(
        &self,
        node: &RemoteNode,
        registration: (OfferId, Secret),
    ) -> Result<Life, BridgeError> {
        let message = wire::probe(registration, &self.node, &node.id);
        let reply: ProbeReply = self.ask_once(node, PROBE, &message, PROBE_TIME).await?;
        self.note_answer(node, &reply.node);
        Ok(wire::read_life(&reply)?)
    }

    /// The name of this node.
    pub(super) fn name(&self) -> &str {
        &self.node
    }

    /// Records the id of the node that has answered in place of this one, if it is known.
    pub(super) fn note_answer(&self, node: &RemoteNode, id: &str) {
        if !id.is_empty() {
            self.misdirections.answered(node, &node_of(id));
        }
    }

    /// A whole call of this method with one message each way, within `time`.
    pub(super) async fn ask_once<R: Message + Default>(
        &self,
        node: &RemoteNode,
        method: &'static str,
        message: &impl Message,
        time: Duration,
    ) -> Result<R, BridgeError> {
        let peer = self.peer(node)?;
        let answer = in_time(time, async {
            let request = || request(&peer, method);
            reply(self.answered(&peer, request, message, Stays::Closed).await?).await
        });
        answer.await
    }

    fn peer(&self, node: &RemoteNode) -> Result<Arc<Peer>, BridgeError> {
        let address = &node.address;
        let mut peers = self.by_address();
        if let Some(peer) = peers.get(address) {
            peer.is_meant_as(&node.id);
            return Ok(Arc::clone(peer));
        }
        peers.retain(|_, peer| !peer.is_forgotten());
        let authority = address.parse().map_err(|_| BridgeError::Address(address.to_owned()))?;
        let (lifecycle, metrics) = (self.lifecycle.clone(), Arc::clone(&self.metrics));
        let peer = Arc::new(Peer::new(
            authority,
            self.tls.clone(),
            lifecycle.clone(),
            metrics,
            Arc::clone(&self.budget),
        ));
        peer.is_meant_as(&node.id);
        let (metrics, misdirections) = (Arc::clone(&self.metrics), Arc::clone(&self.misdirections));
        tokio::spawn(ping(Arc::downgrade(&peer), lifecycle, metrics, misdirections));
        peers.insert(address.to_owned(), Arc::clone(&peer));
        Ok(peer)
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<String, Arc<Peer>>> {
        lock(&self.by_address)
    }
}

/// A call of this method on that node.
fn request(peer: &Peer, method: &'static str) -> Request<()> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(peer.authority().clone());
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.path_and_query(method).build().expect("parts of a URI");
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Says where the call belongs in the trace of the tunnel.
fn traced(mut request: Request<()>, bridging: &Bridging) -> Request<()> {
    let places = [("traceparent", bridging.place()), (CONNECTION_TRACE, bridging.connection())];
    for (name, place) in places {
        if let Some(value) = place.and_then(|place| place.to_string().parse().ok()) {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

/// Whether the caller has more to say than its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    Open,
    Closed,
}

/// Ready when a connection has given no sign of life since this was called, and another one to that
/// node does.
async fn another(peer: &Peer, health: &Health) -> Chosen {
    sleep(UNANSWERED).await;
    health.check();
    loop {
        sleep(UNANSWERED).await;
        if health.is_suspect()
            && let Some(other) = peer.sound()
        {
            return other;
        }
    }
}

/// The only message of an answer.
async fn reply<R: Message + Default>(mut asked: Asked) -> Result<R, BridgeError> {
    let reply = asked.message().await.map_err(failed)?;
    // What follows is the end, which is awaited so that the stream needs no reset.
    let _end: Option<R> = asked.message().await.map_err(failed)?;
    reply.ok_or(BridgeError::Answer)
}

/// A whole call with one message each way.
async fn unary<R: Message + Default>(
    chosen: Chosen,
    request: Request<()>,
    message: &impl Message,
    lifecycle: &Lifecycle,
) -> Result<R, BridgeError> {
    let mut asked = Asked::new(chosen, request, message, lifecycle).map_err(failed)?;
    asked.is_all();
    reply(asked).await
}

async fn in_time<T>(
    time: Duration,
    step: impl Future<Output = Result<T, BridgeError>>,
) -> Result<T, BridgeError> {
    timeout(time, step).await.map_err(|_| BridgeError::Timeout)?
}

/// Measures the round trip to a node as long as tunnels lead there.
async fn ping(
    peer: Weak<Peer>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    misdirections: Arc<Misdirections>,
) {
    while let Some(peer) = peer.upgrade().filter(|peer| !peer.is_forgotten()) {
        // Asking for a round trip makes no connection.
        let pause = match peer.any_open() {
            Some(chosen) => {
                let began = Instant::now();
                let request = request(&peer, PING);
                let answer = unary(chosen, request, &PingRequest {}, &lifecycle);
                if let Ok(PingReply { node, id }) = in_time(STEP, answer).await {
                    metrics.round_trip(peer.named(&node), began.elapsed());
                    let found = node_of(if id.is_empty() { &node } else { &id });
                    // Which start of a node is meant may be out of date here.
                    if let Some(meant) = peer.meant()
                        && found.name() != meant.id.name()
                    {
                        misdirections.answered(&meant, &found);
                    }
                }
                PING_INTERVAL
            }
            None => STEP,
        };
        drop(peer);
        sleep(pause).await;
    }
}

fn failed(error: impl Into<CallError>) -> BridgeError {
    match error.into() {
        // Its bridge is of a package that this node does not know, or the reverse.
        CallError::Status(status) if status.code() == Code::Unimplemented => {
            Refusal::Version(0).into()
        }
        error => BridgeError::Call(error),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
