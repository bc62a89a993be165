//! The bridge: how a tunnel's two nodes reach each other, by gRPC (`proto/`). The only place that
//! knows tonic, and the HTTP/2 below it.
//!
//! [`server`] accepts calls from nodes that have claimed an offer of this node, [`client`] calls the
//! owners of offers that were claimed here, and both turn a call into a [`Leg`] for the relay. Sessions
//! are not known here: an incoming call is handed to an implementation of [`Attach`].
//!
//! The path of the data: `leg`, the relay's side of a call; `call`, its messages; `connection`, the
//! HTTP/2 connection that it shares with others, of which a `peer` has a few; `tls`. Failures:
//! `asked`, a call abandoned by its caller; `watch`, a silent node; `failure`, the record of it; `dial`,
//! a host with addresses that do not answer. Memory: `budget`, shared by all tunnels; `backlog`, the
//! data for a stalled reader.
//!
//! Messages and status are those that tonic generates and knows, but between them and h2 there is
//! no more than `call`: with tonic's own server and channel, each call has a task of hyper's on
//! either node that every message must wake, and each message is copied once more on its way out
//! and on its way in.

mod asked;
mod backlog;
mod budget;
mod call;
pub mod client;
mod connection;
mod dial;
mod failure;
mod leg;
mod misdirected;
mod peer;
mod pieces;
mod query;
pub mod server;
pub mod tls;
mod watch;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::ids::{NodeId, OfferId};
use crate::observability::trace::Attaching;
use crate::protocol::Profile;
use crate::rendezvous::{OfferState, Secret};
use crate::transport::Leg;

pub use budget::Budget;
pub use leg::Answer;
pub use misdirected::Misdirections;
pub use wire::{Life, Refusal};

/// The version of the bridge protocol that this node speaks.
pub const VERSION: u32 = 1;

/// The window of a connection, in bytes. It is no limit of its own: with one that some stalled tunnels can use
/// up, they would stall all others, and each tunnel is bounded by its stream anyway.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame of HTTP/2, in bytes: a piece of a message and what is around it are one frame.
const FRAME_SIZE: u32 = 72 * 1024;
/// Tunnels on one connection between two nodes.
const MAX_STREAMS: u32 = 10_000;
/// The interval of pings that check a connection between nodes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of pings that measure the round trip to another node.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The longest name of a node that is believed.
const MAX_NODE_NAME: usize = 256;
/// The metadata of a call that places the connection of the second endpoint in its trace.
const CONNECTION_TRACE: &str = "connection-traceparent";
/// The type of the messages of a call.
const GRPC: &str = "application/grpc";
/// The methods of the service.
const TUNNEL: &str = "/nymea.remoteproxy.bridge.v1.Bridge/Tunnel";
const PROBE: &str = "/nymea.remoteproxy.bridge.v1.Bridge/Probe";
const QUERY: &str = "/nymea.remoteproxy.bridge.v1.Bridge/Query";
const PING: &str = "/nymea.remoteproxy.bridge.v1.Bridge/Ping";
/// The time for each step of setting up a bridge call.
const STEP: Duration = Duration::from_secs(3);

/// A tunnel's end on another node.
pub struct Bridged {
    /// Leads to the other endpoint.
    pub leg: Box<dyn Leg>,
    /// The other endpoint.
    pub profile: Profile,
    /// The name of its node.
    pub node: String,
}

/// Takes bridges for the endpoints that wait on this node.
pub trait Attach: Send + Sync + 'static {
    /// Gives the endpoint of this offer the far end of its tunnel, if the secret is right and it
    /// still waits. Either way it is answered through [`Incoming::answer`].
    fn attach(self: Arc<Self>, offer: OfferId, secret: Secret, bridge: Incoming);

    /// Whether the endpoint of this registration lives, if the secret is right.
    fn probe(self: Arc<Self>, registration: OfferId, secret: Secret) -> BoxFuture<'static, Life>;

    /// Returns the state of an offer or a registration of this node.
    fn query(&self, id: OfferId) -> OfferState;
}

/// This node, as it introduces itself to the others.
#[derive(Clone, Debug)]
pub struct ThisNode {
    /// The name of the node.
    pub name: Arc<str>,
    /// The id of the node, as in its lease.
    pub id: NodeId,
}

/// An app that is to be attached to a gateway of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppCall {
    /// The id of its registration, which is also the id of the tunnel.
    pub id: OfferId,
    /// The IP address of the app, as its own node sees it.
    pub peer_address: String,
}

/// A bridge from another node that has not been answered yet.
pub struct Incoming {
    /// The endpoint at its other end.
    pub profile: Profile,
    /// If that is an app, for a gateway.
    pub app: Option<AppCall>,
    /// The name of its node.
    pub node: String,
    /// The call in the trace of the tunnel.
    pub attaching: Attaching,
    /// The means to accept or refuse it.
    pub answer: Answer,
}
