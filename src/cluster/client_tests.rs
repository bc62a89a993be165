//! With tonic's own server as the other node: what is said here is gRPC to others, too.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use nymea_remoteproxy_proto::bridge::v1::bridge_server::{Bridge, BridgeServer};
use nymea_remoteproxy_proto::bridge::v1::{Attach, ProbeRequest};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Streaming, async_trait};

use super::*;
use crate::protocol::Chunk;

/// Says what it hears.
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

fn peer_at(address: SocketAddr) -> Peer {
    Peer::new(address.to_string().parse().expect("an authority"), None)
}

async fn requests(peer: &Peer) -> Requests {
    peer.least_loaded().await.expect("a connection").0
}

#[tokio::test]
async fn a_call_is_one_of_grpc_to_others_too() {
    let (address, node) = echo(0).await;
    let peer = peer_at(address);
    let (mut outgoing, response) =
        ask(requests(&peer).await, request(&peer, TUNNEL)).expect("a call");
    let attach = Frame { content: Some(Content::Attach(Attach::default())) };
    outgoing.push(&attach);
    outgoing.flush();
    let mut incoming = answered(response.await.expect("a response")).expect("an answer");
    assert_eq!(incoming.message().await.expect("a frame"), Some(attach));

    let sizes = [0, 1, 4095, 4096, 16 * 1024, 64 * 1024, 3, 64 * 1024, 64 * 1024];
    let chunks = sizes.map(|size| Chunk::binary(vec![7; size]));
    let sent = async {
        for chunk in chunks.clone() {
            std::future::poll_fn(|cx| outgoing.poll_ready(cx)).await.expect("room");
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
    let unknown = request(&peer, "/nymea.remoteproxy.bridge.v2.Bridge/Tunnel");
    let unknown = unary::<PingReply>(requests(&peer).await, unknown, &PingRequest {}).await;
    assert!(matches!(unknown, Err(BridgeError::Refused(Refusal::Version(0)))), "{unknown:?}");
    let ping = unary::<PingReply>(requests(&peer).await, request(&peer, PING), &PingRequest {});
    match ping.await {
        Err(BridgeError::Call(CallError::Status(status))) => {
            assert_eq!(status.code(), Code::ResourceExhausted);
        }
        other => panic!("{other:?}"),
    }
    let secret = Bytes::from_static(&[7; 16]);
    let probe = ProbeRequest { secret, ..ProbeRequest::default() };
    let reply = unary::<ProbeReply>(requests(&peer).await, request(&peer, PROBE), &probe).await;
    assert!(reply.expect("a reply").alive);
    node.shutdown_background();
}

#[tokio::test]
async fn a_connection_that_has_ended_is_opened_anew() {
    let (address, node) = echo(0).await;
    let peer = peer_at(address);
    let (mut outgoing, response) =
        ask(requests(&peer).await, request(&peer, TUNNEL)).expect("a call");
    let mut incoming = answered(response.await.expect("a response")).expect("an answer");
    assert_eq!(peer.connected(), 1);
    node.shutdown_background();
    let ended = incoming.message::<Frame>().await;
    assert!(matches!(ended, Err(CallError::Stream(_))), "{ended:?}");
    std::future::poll_fn(|cx| outgoing.poll_ready(cx)).await.expect_err("nobody takes it");
    // Its listener may end later than its connections.
    let ended = timeout(STEP, async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    ended.await.expect("it listens no more");
    assert!(peer.least_loaded().await.is_err(), "nobody listens");

    let (_, node) = echo(address.port()).await;
    let ping = unary::<PingReply>(requests(&peer).await, request(&peer, PING), &PingRequest {});
    assert!(matches!(ping.await, Err(BridgeError::Call(CallError::Status(_)))));
    assert_eq!(peer.connected(), 1);
    node.shutdown_background();
}
