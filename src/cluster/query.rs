//! Queries about offers and registrations, both ends: an entry may be stale, and only the node that
//! created it knows.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nymea_remoteproxy_proto::bridge::v1 as proto;
use proto::query_reply::State;
use tonic::Status;
use tracing::debug;

use super::client::{BridgeError, Peers};
use super::peer::ConnectError;
use super::wire::{Refusal, bytes_of, id_from};
use super::{Attach, QUERY};
use crate::ids::{NodeId, OfferId};
use crate::rendezvous::{Neighbours, OfferState, RemoteNode, Report};

/// The time for a query. Without an answer nothing is known, and it is sent again.
const QUERY_TIME: Duration = Duration::from_secs(2);

impl Neighbours for Peers {
    fn query(self: Arc<Self>, node: RemoteNode, id: OfferId) -> BoxFuture<'static, Report> {
        async move {
            match self.state_at(&node, id).await {
                Ok(state) => read_state(state),
                Err(error) => {
                    debug!(node = %node.id, %error, "a node does not answer a query");
                    report_of(&error)
                }
            }
        }
        .boxed()
    }
}

impl Peers {
    async fn state_at(&self, node: &RemoteNode, id: OfferId) -> Result<State, BridgeError> {
        let (id, meant) = (bytes_of(id), node.id.as_str().into());
        let query = proto::QueryRequest { id, meant, node: self.name().into() };
        let reply: proto::QueryReply = self.ask_once(node, QUERY, &query, QUERY_TIME).await?;
        self.note_answer(node, &reply.node);
        Ok(reply.state())
    }
}

fn read_state(state: State) -> Report {
    match state {
        State::Waiting => Report::Known(OfferState::Waiting),
        State::Paired => Report::Known(OfferState::Paired),
        State::Gone => Report::Known(OfferState::Gone),
        State::WrongNode => Report::Replaced,
        // Of a later release.
        State::Unspecified => Report::Unable,
    }
}

/// The report about a node that has not answered.
fn report_of(error: &BridgeError) -> Report {
    match error {
        BridgeError::Unreachable(ConnectError::Stream(error))
            if error.kind() == io::ErrorKind::ConnectionRefused =>
        {
            Report::Refused
        }
        BridgeError::Refused(Refusal::Version(_)) => Report::Unable,
        BridgeError::Address(_)
        | BridgeError::Refused(_)
        | BridgeError::Unreachable(_)
        | BridgeError::Call(_)
        | BridgeError::Timeout
        | BridgeError::Answer => Report::Silent,
    }
}

/// Answers a query that means another node.
pub(super) fn wrong_node(id: &NodeId) -> proto::QueryReply {
    proto::QueryReply { state: State::WrongNode.into(), node: id.as_str().into() }
}

/// Answers a query on behalf of this node.
pub(super) fn answer(
    query: &proto::QueryRequest,
    attach: &dyn Attach,
) -> Result<proto::QueryReply, Status> {
    let id = id_from(&query.id).map_err(|_| Status::invalid_argument("an id has 16 bytes"))?;
    let state = match attach.query(id) {
        OfferState::Waiting => State::Waiting,
        OfferState::Paired => State::Paired,
        OfferState::Gone => State::Gone,
    };
    Ok(proto::QueryReply { state: state.into(), node: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refused_connection_shows_that_nothing_listens() {
        let unreachable = |kind: io::ErrorKind| {
            report_of(&BridgeError::Unreachable(io::Error::from(kind).into()))
        };
        assert_eq!(unreachable(io::ErrorKind::ConnectionRefused), Report::Refused);
        assert_eq!(unreachable(io::ErrorKind::TimedOut), Report::Silent);
        assert_eq!(unreachable(io::ErrorKind::ConnectionReset), Report::Silent);
        assert_eq!(unreachable(io::ErrorKind::HostUnreachable), Report::Silent);
        assert_eq!(report_of(&BridgeError::Timeout), Report::Silent);
        assert_eq!(report_of(&BridgeError::Refused(Refusal::Version(0))), Report::Unable);
        assert_eq!(read_state(State::WrongNode), Report::Replaced);
        assert_eq!(read_state(State::Unspecified), Report::Unable);
    }
}
