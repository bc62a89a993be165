//! What nodes ask each other about their entries. Before an endpoint is turned away because of an
//! entry of another node, that node says whether the offer is still there. The bridge implements it.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::RemoteNode;
use crate::ids::OfferId;

/// The state of an offer or a registration on its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferState {
    /// It waits for a partner, or is registered.
    Waiting,
    /// It has a partner, or is about to have one.
    Paired,
    /// It is not on this node, or no longer.
    Gone,
}

/// The result of a query to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The node has answered.
    Known(OfferState),
    /// Nothing listens at its address: connections are refused.
    Refused,
    /// Another node answers at its address: one that was started in its place, or the address is
    /// wrong.
    Replaced,
    /// The node runs, but its release does not know the query.
    Unable,
    /// No answer in time, or no way to the node: nothing is known.
    Silent,
}

/// The other nodes of a cluster.
pub trait Neighbours: Send + Sync {
    /// Queries a node about an offer or a registration in one of its entries. Takes a few seconds
    /// at most.
    fn query(self: Arc<Self>, node: RemoteNode, id: OfferId) -> BoxFuture<'static, Report>;
}
