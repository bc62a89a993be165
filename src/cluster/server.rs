//! Takes bridges from other nodes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::request::Parts as Head;
use http::{HeaderValue, Response};
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{
    Frame, PingReply, PingRequest, ProbeReply, ProbeRequest, QueryReply, QueryRequest,
};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Status;
use tracing::{debug, warn};

use super::budget::Budget;
use super::call::{CallError, Incoming as Messages, Outgoing, Role};
use super::connection::{Accepted, Request};
use super::failure::Watched;
use super::leg::{Answer, BridgeLeg, Counted};
use super::misdirected::node_of;
use super::peer::CountGuard;
use super::pieces::Pieces;
use super::tls::{BridgeStream, BridgeTls};
use super::wire::{self, Asked, Refusal, name_of, read_attach, read_offer};
use super::{
    Attach, CONNECTION_TRACE, GRPC, Incoming, Misdirections, PING, PROBE, QUERY, STEP, TUNNEL,
    ThisNode, query,
};
use crate::accept::{self, Guest, LastDescriptors, Listening, Manners, Owner, Room, Visit};
use crate::ids::ClientAddr;
use crate::lifecycle::Lifecycle;
use crate::observability::Metrics;
use crate::observability::trace::Attaching;
use crate::trace_parent::TraceParent;
use crate::transport::Socket;

/// Connections that have not proved to be of a node of the cluster: with more, the oldest are closed.
const STRANGERS: usize = 256;
/// The same of one address.
const STRANGERS_PER_NETWORK: usize = 128;

/// The dependencies of the bridge's server.
pub struct BridgeService {
    /// The sessions of this node.
    pub attach: Arc<dyn Attach>,
    /// This node.
    pub node: ThisNode,
    /// The metrics of this node.
    pub metrics: Arc<Metrics>,
    /// How long a node may leave data unread.
    pub stalled: Duration,
    /// The node's life.
    pub lifecycle: Lifecycle,
    /// The memory for all bridged tunnels.
    pub budget: Arc<Budget>,
    /// Calls that mean another node.
    pub misdirections: Arc<Misdirections>,
}

/// Serves until the task is aborted. Connections of nodes are not limited; those that have not
/// authenticated as a node give way to newer ones.
pub async fn serve(service: BridgeService, listener: TcpListener, tls: Option<BridgeTls>) {
    let manners = Manners {
        who: "other nodes",
        room: Room::new(STRANGERS, STRANGERS_PER_NETWORK),
        first_byte: STEP,
        last_descriptors: LastDescriptors::Taken,
    };
    let service = Arc::new(service);
    let handle = move |guest| take(guest, tls.clone(), Arc::clone(&service));
    accept::serve(Listening::Tcp(listener), manners, Owner::of_loop(), handle).await;
}

/// Serves one connection, if it is of a node of the cluster.
async fn take(guest: Guest, tls: Option<BridgeTls>, service: Arc<BridgeService>) {
    let Guest { socket, peer, visit, .. } = guest;
    let (Socket::Tcp(tcp), ClientAddr::Ip(node_addr)) = (socket, peer) else { return };
    let displaced = visit.displaced().clone();
    let watched = Watched {
        name: Arc::default(),
        address: node_addr.to_string(),
        tunnels: Arc::default(),
        metrics: Arc::clone(&service.metrics),
    };
    let accepted = tokio::select! {
        accepted = accept(tcp, &watched, tls, visit, &service.budget) => accepted,
        () = displaced.cancelled() => {
            debug!(%node_addr, "an unauthenticated bridge connection is closed for a newer one");
            None
        }
    };
    if let Some(connection) = accepted {
        serve_connection(&service, connection, watched).await;
    }
}

/// Both handshakes. The connection keeps its place among strangers until its certificate has been
/// checked, or without TLS, until it speaks HTTP/2.
async fn accept(
    tcp: TcpStream,
    watched: &Watched,
    tls: Option<BridgeTls>,
    visit: Visit,
    budget: &Arc<Budget>,
) -> Option<Accepted> {
    let (node_addr, is_secure) = (&watched.address, tls.is_some());
    let stream = match timeout(STEP, secure(tcp, tls)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            warn!(node_addr, %error, "a node's connection was refused");
            return None;
        }
        Err(_) => {
            debug!(node_addr, "a node's handshake took too long");
            return None;
        }
    };
    let stranger = (!is_secure).then_some(visit);
    let accepted = timeout(STEP, Accepted::new(stream, watched.clone(), budget)).await.ok()?;
    drop(stranger);
    accepted.inspect_err(|error| debug!(node_addr, %error, "the HTTP/2 handshake failed")).ok()
}

async fn serve_connection(
    service: &Arc<BridgeService>,
    mut connection: Accepted,
    watched: Watched,
) {
    while let Some(request) = connection.request().await {
        // As many at once as a connection has streams.
        tokio::spawn(respond(Arc::clone(service), request, watched.clone()));
    }
}

async fn respond(service: Arc<BridgeService>, (request, mut respond): Request, watched: Watched) {
    let (head, body) = request.into_parts();
    let messages = Messages::new(body);
    let done = match head.uri.path() {
        TUNNEL => service.tunnel(&head, messages, &mut respond, &watched).await,
        PROBE => unary(messages, &mut respond, |request| service.probe(&head, request)).await,
        QUERY => {
            unary(messages, &mut respond, async |request| service.query(&head, &request)).await
        }
        PING => unary(messages, &mut respond, async |PingRequest {}| Ok(service.ping())).await,
        _ => Err(Status::unimplemented("the bridge has no such method")),
    };
    if let Err(status) = done {
        // A caller that has gone away asks no more.
        let _gone = respond.send_response(status.into_http(), true);
    }
}

/// Sends the head of a call's response, and returns the stream for its messages.
fn answer(respond: &mut SendResponse<Pieces>) -> Result<Outgoing, Status> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    let stream = respond.send_response(head, false);
    stream.map(|stream| Outgoing::new(stream, Role::Called)).map_err(|_| given_up())
}

/// A call with one message each way.
async fn unary<Q: Message + Default, R: Message>(
    mut messages: Messages,
    respond: &mut SendResponse<Pieces>,
    reply: impl AsyncFnOnce(Q) -> Result<R, Status>,
) -> Result<(), Status> {
    let request = timeout(STEP, messages.message()).await;
    let request = request.map_err(|_| Status::deadline_exceeded("no request in time"))?;
    let request = request.map_err(|error| unusable(&error))?;
    let reply = reply(request.ok_or_else(|| Status::invalid_argument("no request"))?).await?;
    let mut outgoing = answer(respond)?;
    outgoing.push(&reply);
    outgoing.close();
    Ok(())
}

fn given_up() -> Status {
    Status::cancelled("the caller has given up")
}

/// The address at which the caller has reached this node.
fn dialed(head: &Head) -> &str {
    head.uri.authority().map_or("", |authority| name_of(authority.as_str()))
}

/// The status for a caller that sent malformed messages.
fn unusable(error: &CallError) -> Status {
    match error {
        CallError::Status(_) | CallError::Stream(_) => given_up(),
        CallError::Malformed(why) => Status::invalid_argument(*why),
    }
}

async fn secure(tcp: TcpStream, tls: Option<BridgeTls>) -> io::Result<BridgeStream> {
    tcp.set_nodelay(true)?;
    match tls {
        Some(tls) => tls.accept(tcp).await,
        None => Ok(BridgeStream::plain(tcp)),
    }
}

impl BridgeService {
    async fn tunnel(
        &self,
        head: &Head,
        mut messages: Messages,
        respond: &mut SendResponse<Pieces>,
        watched: &Watched,
    ) -> Result<(), Status> {
        let began = Instant::now();
        let place = |name| head.headers.get(name)?.to_str().ok()?.parse::<TraceParent>().ok();
        let (call, second) = (place("traceparent"), place(CONNECTION_TRACE));
        let attaching = Attaching { call, second, began };
        let first = timeout(STEP, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Attach in time"))?;
        let Some(Frame { content: Some(Content::Attach(attach)) }) =
            first.map_err(|error| unusable(&error))?
        else {
            return Err(Status::invalid_argument("the first frame must be Attach"));
        };
        // The caller sends nothing more until it is answered, unless it has given up, for example
        // because this node was frozen. The waiting endpoint must not be paired with a partner that
        // is gone.
        if messages.message::<Frame>().now_or_never().is_some() {
            return Err(given_up());
        }
        let outgoing = answer(respond)?;
        let node = name_of(&attach.node);
        watched.named(node);
        let (guard, share) = (CountGuard::new(&watched.tunnels), self.budget.tunnel());
        let counted = Counted { _guard: guard, gauge: None, share };
        let lifecycle = self.lifecycle.clone();
        let leg = BridgeLeg::new(outgoing, messages, self.stalled, lifecycle, counted)
            .knowing_finished(attach.finished);
        let (this, metrics) = (self.node.clone(), Arc::clone(&self.metrics));
        let answer = Answer { leg, this, caller: node.into(), metrics };
        if !self.is_meant(&attach.meant) {
            self.misdirections.called(&node_of(&attach.meant), node, dialed(head));
            answer.refuse(Refusal::WrongNode);
            return Ok(());
        }
        match read_attach(&attach) {
            Ok(Asked { offer, secret, profile, app }) => {
                let incoming = Incoming { profile, app, node: node.into(), attaching, answer };
                Arc::clone(&self.attach).attach(offer, secret, incoming);
            }
            Err(refusal) => {
                debug!(%refusal, "a bridge call was refused");
                answer.refuse(refusal);
            }
        }
        Ok(())
    }

    /// Whether a call is for this node. A caller of an older release does not say for which one.
    fn is_meant(&self, meant: &str) -> bool {
        meant.is_empty() || meant == self.node.id.as_str()
    }

    async fn probe(&self, head: &Head, request: ProbeRequest) -> Result<ProbeReply, Status> {
        let ProbeRequest { registration, secret, meant, node } = request;
        if !self.is_meant(&meant) {
            self.misdirections.called(&node_of(&meant), name_of(&node), dialed(head));
            return Ok(wire::probed_wrong_node(&self.node.id));
        }
        let (registration, secret) = read_offer(&registration, &secret)
            .map_err(|_| Status::invalid_argument("registration and secret have 16 bytes each"))?;
        Ok(wire::life(Arc::clone(&self.attach).probe(registration, secret).await))
    }

    fn query(&self, head: &Head, request: &QueryRequest) -> Result<QueryReply, Status> {
        if !self.is_meant(&request.meant) {
            let caller = name_of(&request.node);
            self.misdirections.called(&node_of(&request.meant), caller, dialed(head));
            return Ok(query::wrong_node(&self.node.id));
        }
        query::answer(request, &*self.attach)
    }

    fn ping(&self) -> PingReply {
        PingReply { node: self.node.name.as_ref().into(), id: self.node.id.as_str().into() }
    }
}
