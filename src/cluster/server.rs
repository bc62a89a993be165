//! Takes bridges from other nodes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{Map, StreamExt};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nymea_remoteproxy_proto::bridge::v1::bridge_server::{Bridge, BridgeServer};
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{
    Frame, PingReply, PingRequest, ProbeReply, ProbeRequest,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::executor::AtOnce;
use super::leg::{Answer, BridgeLeg, Counted};
use super::outbox::{Outgoing, outbox};
use super::tls::{BridgeStream, BridgeTls};
use super::wire::{Asked, name_of, read_attach, read_offer};
use super::{
    Attach, CONNECTION_TRACE, CONNECTION_WINDOW, FRAME_SIZE, Incoming, KEEPALIVE_INTERVAL,
    MAX_STREAMS, STEP, STREAM_WINDOW,
};
use crate::lifecycle::Lifecycle;
use crate::observability::Metrics;
use crate::observability::trace::Attaching;
use crate::trace_parent::TraceParent;

/// Connections whose TLS handshake is under way; more wait to be accepted.
const HANDSHAKES_AT_ONCE: usize = 64;
/// The largest frame that is read, in bytes: a piece of a message and what is around it.
const MAX_FRAME: usize = 128 * 1024;

/// What the bridge's server needs.
pub struct BridgeService {
    /// Who has the endpoints.
    pub attach: Arc<dyn Attach>,
    /// The name of this node.
    pub node: Arc<str>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How long a node may leave data untaken.
    pub stalled: Duration,
    /// The node's life.
    pub lifecycle: Lifecycle,
}

/// Serves until the task is aborted.
pub async fn serve(service: BridgeService, listener: TcpListener, tls: Option<BridgeTls>) {
    let bridge = BridgeServer::new(service).max_decoding_message_size(MAX_FRAME);
    let mut connections = http2::Builder::new(AtOnce);
    connections
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(STEP);
    let places = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (tcp, node_addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept connections of other nodes");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, connections, bridge) = (tls.clone(), connections.clone(), bridge.clone());
        AtOnce.execute(async move {
            let stream = match timeout(STEP, secure(tcp, tls)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    warn!(%node_addr, %error, "a node's connection was refused");
                    return;
                }
                Err(_) => {
                    debug!(%node_addr, "a node's handshake took too long");
                    return;
                }
            };
            drop(place);
            let bridge = TowerToHyperService::new(bridge);
            let served = connections.serve_connection(TokioIo::new(stream), bridge).await;
            if let Err(error) = served {
                debug!(%node_addr, %error, "a node's connection has failed");
            }
        });
    }
}

async fn secure(tcp: TcpStream, tls: Option<BridgeTls>) -> io::Result<BridgeStream> {
    tcp.set_nodelay(true)?;
    match tls {
        Some(tls) => tls.accept(tcp).await,
        None => Ok(BridgeStream::plain(tcp)),
    }
}

#[tonic::async_trait]
impl Bridge for BridgeService {
    type TunnelStream = Map<Outgoing, fn(Frame) -> Result<Frame, Status>>;

    async fn tunnel(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let began = Instant::now();
        let place = |name| request.metadata().get(name)?.to_str().ok()?.parse::<TraceParent>().ok();
        let (call, second) = (place("traceparent"), place(CONNECTION_TRACE));
        let attaching = Attaching { call, second, began };
        let mut incoming = request.into_inner();
        let first = timeout(STEP, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Attach in time"))??;
        let Some(Frame { content: Some(Content::Attach(attach)) }) = first else {
            return Err(Status::invalid_argument("the first frame must be Attach"));
        };
        // It sends nothing more until it is answered, except that it has given up: as it does when
        // this node was frozen for a while. Nobody is to be told of a partner that is gone.
        if incoming.message().now_or_never().is_some() {
            return Err(Status::cancelled("the caller has given up"));
        }
        let (outbox, outgoing) = outbox();
        let node = name_of(&attach.node);
        let counted = Counted::In { _gauge: self.metrics.bridge_stream_in(node) };
        let leg = BridgeLeg::new(outbox, incoming, self.stalled, self.lifecycle.clone(), counted)
            .knowing_finished(attach.finished);
        let answer = Answer::new(leg, Arc::clone(&self.node));
        match read_attach(&attach) {
            Ok(Asked { offer, secret, profile, app }) => {
                let incoming = Incoming { profile, app, node: node.into(), attaching, answer };
                Arc::clone(&self.attach).attach(offer, secret, incoming);
            }
            Err(refusal) => {
                debug!(%refusal, "a bridge was refused");
                answer.refuse(refusal);
            }
        }
        Ok(Response::new(outgoing.map(Ok)))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeReply>, Status> {
        let ProbeRequest { registration, secret } = request.into_inner();
        let (registration, secret) = read_offer(&registration, &secret)
            .map_err(|_| Status::invalid_argument("registration and secret have 16 bytes each"))?;
        let alive = Arc::clone(&self.attach).probe(registration, secret).await;
        Ok(Response::new(ProbeReply { alive }))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply { node: self.node.as_ref().into() }))
    }
}
