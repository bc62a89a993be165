//! With tonic's own server as the other node, which proves that the calls are valid gRPC.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use nymea_remoteproxy_proto::bridge::v1::bridge_server::{Bridge, BridgeServer};
use nymea_remoteproxy_proto::bridge::v1::{Attach, ProbeRequest, QueryReply, QueryRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Status, Streaming, async_trait};

use super::*;
use crate::cluster::call::{Incoming, Outgoing, SEND_BUFFER};
use crate::cluster::peer::CountGuard;
use crate::protocol::Chunk;

/// Echoes all messages.
struct Echo;

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[async_trait]
impl Bridge for Echo {
    type TunnelStream = Answers;

    async fn tunnel(
        &self,
        request: tonic::Request<Streaming<Frame>>,
    ) -> Result<tonic::Response<Answers>, Status> {
        let last = Err(Status::data_loss("that was all"));
        let answers = request.into_inner().chain(stream::iter([last]));
        Ok(tonic::Response::new(Box::pin(answers)))
    }

    async fn probe(
        &self,
        request: tonic::Request<ProbeRequest>,
    ) -> Result<tonic::Response<ProbeReply>, Status> {
        let alive = request.into_inner().secret == [7; 16][..];
        Ok(tonic::Response::new(ProbeReply { alive, ..ProbeReply::default() }))
    }

    async fn query(
        &self,
        _: tonic::Request<QueryRequest>,
    ) -> Result<tonic::Response<QueryReply>, Status> {
        Err(Status::unimplemented("an older release"))
    }

    async fn ping(
        &self,
        _: tonic::Request<PingRequest>,
    ) -> Result<tonic::Response<PingReply>, Status> {
        Err(Status::resource_exhausted("too much"))
    }
}

/// A node of its own; it ends with its runtime.
async fn echo(port: u16) -> (SocketAddr, Runtime) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listening = runtime.spawn(TcpListener::bind(("127.0.0.1", port))).await;
    let listener = listening.expect("no panic").expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = Server::builder().add_service(BridgeServer::new(Echo));
    runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (address, runtime)
}

fn budget() -> Arc<Budget> {
    Budget::new(512 << 20, &Metrics::off())
}

fn peer_at(address: SocketAddr) -> Arc<Peer> {
    let authority = address.to_string().parse().expect("an authority");
    Arc::new(Peer::new(authority, None, Lifecycle::default(), Metrics::off(), budget()))
}

async fn chosen(peer: &Arc<Peer>) -> Chosen {
    peer.choose().await.expect("a connection")
}

/// Begins a call, and waits for the head of its answer.
async fn called(peer: &Arc<Peer>, first: &Frame) -> (Outgoing, Incoming, CountGuard) {
    let lifecycle = Lifecycle::default();
    let asked = Asked::new(chosen(peer).await, request(peer, TUNNEL), first, &lifecycle);
    let mut asked = asked.expect("a call");
    asked.head().await.expect("an answer");
    asked.into_parts().expect("an answer")
}

async fn asked<R: Message + Default>(
    peer: &Arc<Peer>,
    method: &'static str,
    message: &impl Message,
) -> Result<R, BridgeError> {
    unary(chosen(peer).await, request(peer, method), message, &Lifecycle::default()).await
}

#[tokio::test]
async fn a_call_is_one_of_grpc_to_others_too() {
    let (address, node) = echo(0).await;
    let peer = peer_at(address);
    let attach = Frame { content: Some(Content::Attach(Attach::default())) };
    let (mut outgoing, mut incoming, _guard) = called(&peer, &attach).await;
    assert_eq!(incoming.message().await.expect("a frame"), Some(attach));

    let sizes = [0, 1, 4095, 4096, 16 * 1024, 64 * 1024, 3, 64 * 1024, 64 * 1024];
    let chunks = sizes.map(|size| Chunk::binary(vec![7; size]));
    let sent = async {
        for chunk in chunks.clone() {
            std::future::poll_fn(|cx| outgoing.poll_ready(cx, SEND_BUFFER)).await.expect("room");
            outgoing.push_data(chunk);
        }
        outgoing.close();
    };
    let heard = async {
        for chunk in &chunks {
            let frame: Option<Frame> = incoming.message().await.expect("a frame");
            let Some(Frame { content: Some(Content::Data(data)) }) = frame else {
                panic!("{frame:?}")
            };
            assert_eq!(&wire::read_data(data), chunk);
        }
        match incoming.message::<Frame>().await {
            Err(CallError::Status(status)) => assert_eq!(status.code(), Code::DataLoss),
            other => panic!("{other:?}"),
        }
    };
    tokio::join!(sent, heard);
    node.shutdown_background();
}

#[tokio::test]
async fn what_the_other_node_refuses_is_understood() {
    let (address, node) = echo(0).await;
    let peer = peer_at(address);
    let unknown = "/nymea.remoteproxy.bridge.v2.Bridge/Tunnel";
    let unknown = asked::<PingReply>(&peer, unknown, &PingRequest {}).await;
    assert!(matches!(unknown, Err(BridgeError::Refused(Refusal::Version(0)))), "{unknown:?}");
    match asked::<PingReply>(&peer, PING, &PingRequest {}).await {
        Err(BridgeError::Call(CallError::Status(status))) => {
            assert_eq!(status.code(), Code::ResourceExhausted);
        }
        other => panic!("{other:?}"),
    }
    let secret = Bytes::from_static(&[7; 16]);
    let probe = ProbeRequest { secret, ..ProbeRequest::default() };
    let reply = asked::<ProbeReply>(&peer, PROBE, &probe).await;
    assert!(reply.expect("a reply").alive);
    node.shutdown_background();
}

#[tokio::test]
async fn a_connection_that_has_ended_is_opened_anew() {
    let (address, node) = echo(0).await;
    let peer = peer_at(address);
    let attach = Frame { content: Some(Content::Attach(Attach::default())) };
    let (mut outgoing, mut incoming, _guard) = called(&peer, &attach).await;
    assert_eq!(incoming.message().await.expect("a frame"), Some(attach));
    assert_eq!(peer.connected(), 1);
    node.shutdown_background();
    let ended = incoming.message::<Frame>().await;
    assert!(matches!(ended, Err(CallError::Stream(_))), "{ended:?}");
    std::future::poll_fn(|cx| outgoing.poll_ready(cx, SEND_BUFFER))
        .await
        .expect_err("nobody takes it");
    // Its listener may end later than its connections.
    let ended = timeout(STEP, async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    ended.await.expect("it listens no more");
    assert!(peer.choose().await.is_err(), "nobody listens");

    let (_, node) = echo(address.port()).await;
    let ping = asked::<PingReply>(&peer, PING, &PingRequest {}).await;
    assert!(matches!(ping, Err(BridgeError::Call(CallError::Status(_)))));
    assert_eq!(peer.connected(), 1);
    node.shutdown_background();
}

/// Hands connections on to a node, and can stop to do so.
struct Relay {
    address: SocketAddr,
    /// Which connections still carry data, in the order in which they were accepted.
    carried: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
    /// Connections that are accepted; more are closed at once.
    limit: Arc<AtomicUsize>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let relay = Self {
            address,
            carried: Arc::default(),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let (carried, limit) = (Arc::clone(&relay.carried), Arc::clone(&relay.limit));
        tokio::spawn(async move {
            loop {
                let (here, _) = listener.accept().await.expect("a connection");
                let open = Arc::new(AtomicBool::new(true));
                {
                    let mut carried = carried.lock().expect("no panic");
                    if carried.len() >= limit.load(Ordering::Relaxed) {
                        continue;
                    }
                    carried.push(Arc::clone(&open));
                }
                let there = TcpStream::connect(to).await.expect("the node");
                let (calls, to_caller) = here.into_split();
                let (answers, to_node) = there.into_split();
                tokio::spawn(copy(calls, to_node, Arc::clone(&open)));
                tokio::spawn(copy(answers, to_caller, open));
            }
        });
        relay
    }

    /// From now on, all that is sent on this connection vanishes.
    fn block(&self, number: usize) {
        self.carried.lock().expect("no panic")[number].store(false, Ordering::Relaxed);
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    open: Arc<AtomicBool>,
) {
    let mut data = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut data).await {
        if open.load(Ordering::Relaxed) && to.write_all(&data[..length]).await.is_err() {
            return;
        }
    }
}

fn peers() -> Arc<Peers> {
    let misdirections = Misdirections::new(NodeId::from("here"), Arc::default());
    Peers::new(
        "here".into(),
        None,
        STEP,
        Lifecycle::default(),
        Metrics::off(),
        misdirections,
        budget(),
    )
}

fn there(relay: &Relay) -> RemoteNode {
    RemoteNode { id: NodeId::from("there"), address: relay.address.to_string() }
}

/// How long a call takes, which must succeed.
async fn probed(peers: &Peers, relay: &Relay) -> Duration {
    let since = Instant::now();
    let registration = (OfferId::random(), Secret([7; 16]));
    let life = peers.probe(&there(relay), registration).await;
    assert_eq!(life.expect("an answer"), Life::Alive);
    since.elapsed()
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_stops_no_call() {
    let (address, node) = echo(0).await;
    let relay = Relay::start(address).await;
    relay.limit.store(1, Ordering::Relaxed);
    let peer = peer_at(relay.address);
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push(peer.choose().await.expect("the connection that is open"));
    }
    assert_eq!((peer.connected(), peer.streams()), (1, 8));
    // They are opened as soon as that can be.
    relay.limit.store(usize::MAX, Ordering::Relaxed);
    let opened = timeout(PROBE_TIME, async {
        while peer.connected() < 4 {
            calls.push(chosen(&peer).await);
            sleep(Duration::from_millis(50)).await;
        }
    });
    opened.await.expect("four connections");
    node.shutdown_background();
}

#[tokio::test]
async fn calls_pass_by_a_connection_that_is_dead() {
    let (address, node) = echo(0).await;
    let relay = Relay::start(address).await;
    let peers = peers();
    let peer = peers.peer(&there(&relay)).expect("an address");
    let mut calls = Vec::new();
    for _ in 0..4 {
        calls.push(chosen(&peer).await);
    }
    assert_eq!(peer.connected(), 4);
    relay.block(0);
    // Now it has the fewest calls.
    calls.remove(0);
    let first = probed(&peers, &relay).await;
    assert!(first < STEP, "{first:?}");
    for _ in 0..4 {
        let next = probed(&peers, &relay).await;
        assert!(next < UNANSWERED, "{next:?}");
    }
    node.shutdown_background();
}
