//! Pairs endpoints with the same key: the [`Rendezvous`] trait and its rules.
//! [`MemoryRendezvous`] serves one node, [`redis::RedisRendezvous`] a cluster.
//!
//! An entry belongs to the offer that created it. It is *waiting* until a second offer claims it, and
//! *established* from then until it is released; during that time further offers of its key are
//! refused. A release names the offer, so that it never removes a later entry of the same key.
//!
//! Both implementations also have the [`Directory`] of registered UUIDs.

mod directory;
mod memory;
mod neighbours;
pub mod redis;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ids::{NodeId, OfferId};
use crate::protocol::PairingKey;
use crate::trace_parent::TraceParent;

pub use directory::{Directory, Holder, Registered, Registration, Role, Unavailable};
pub use memory::MemoryRendezvous;
pub use neighbours::{Neighbours, OfferState, Report};

/// An endpoint's request to be paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The pairing key of both endpoints.
    pub key: PairingKey,
    /// New for each offer.
    pub id: OfferId,
    /// Another node must present it to bridge to this offer.
    pub secret: Secret,
    /// The set-up of the tunnel in its trace.
    pub trace: Option<TraceParent>,
}

impl Offer {
    /// A new offer of this key.
    pub fn new(key: PairingKey, trace: Option<TraceParent>) -> Self {
        Self { key, id: OfferId::random(), secret: Secret(rand::random()), trace }
    }
}

/// A random one-time secret, sent only to the node that claims the offer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The result of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is no other offer; this one is kept until it is claimed or released.
    Wait,
    /// This offer was waiting and is now claimed: the two belong together.
    Claimed(Waiting),
    /// Two endpoints have this key already.
    Taken,
}

/// An offer that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The id of the offer.
    pub id: OfferId,
    /// The node of the endpoint.
    pub home: Home,
}

/// The node of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// This node.
    Here,
    /// Another node.
    There {
        /// That node.
        node: RemoteNode,
        /// The secret of the offer.
        secret: Secret,
        /// The set-up of the tunnel in its trace.
        trace: Option<TraceParent>,
    },
}

/// Another node, as the entry of its endpoint names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// Which node it is, from which start to which end.
    pub id: NodeId,
    /// The bridge address of the node, `host:port`.
    pub address: String,
}

/// A node of a cluster, as it describes itself in its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The id of the node; new for each start.
    pub node: String,
    /// The name of the node.
    pub name: String,
    /// The bridge address for other nodes, `host:port`.
    pub address: String,
    /// The version of the program.
    pub version: String,
    /// When it started (RFC 3339).
    pub started: String,
    /// The load of the node when it last refreshed its lease.
    #[serde(default)]
    pub load: Load,
}

/// The load of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Connections of clients.
    pub connections: usize,
    /// Tunnels; bridged ones count on both nodes.
    pub tunnels: usize,
    /// Whether the node is draining.
    pub draining: bool,
}

/// Decides, in one atomic step, which two offers belong together.
pub trait Rendezvous: Send + Sync {
    /// Puts an offer up, or up again: an offer that is there already is answered as before. Does
    /// not resolve before the answer is known, however long that takes. Dropping the future takes
    /// nothing back; release does.
    fn offer(self: Arc<Self>, offer: Offer) -> BoxFuture<'static, Answer>;

    /// Frees the key, if its entry was made by this offer: it waits no more, or its tunnel has
    /// ended, or its endpoint was not found. Takes effect as soon as possible, without waiting.
    fn release(&self, key: PairingKey, offer: OfferId);

    /// Takes back the claim of `claimer` on `owner`, which it will not join after all: `owner` waits
    /// again.
    fn give_back(&self, key: PairingKey, owner: OfferId, claimer: OfferId);

    /// The endpoint of this offer, which waits on this node, is being joined from another node.
    /// Called before it can no longer be found waiting, perhaps before the offer is answered.
    /// False if another tunnel of its key is established on this node: then it must not be joined.
    #[must_use]
    fn stands(&self, offer: Offer) -> bool;

    /// Changes when entries may have been lost; then waiting offers must be put up again.
    fn epoch(&self) -> watch::Receiver<u64>;

    /// Done when the entry of this offer, which waits, may have been lost: with all others since
    /// `epoch` was obtained, or alone.
    fn lost(&self, offer: Offer, epoch: watch::Receiver<u64>) -> BoxFuture<'static, ()>;

    /// Whether an offer is one of this node that is not released.
    fn has(&self, offer: OfferId) -> bool;
}
