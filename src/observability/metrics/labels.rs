//! The values of labels.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::lock::lock;

/// Names of other nodes that become labels while a node runs: nodes of a cluster may have new names
/// with each start, and each label stays for as long as the node lives.
const MAX_PEERS: usize = 256;
/// The label of all further ones.
const OTHERS: &str = "other";

/// The names of other nodes that are labels.
#[derive(Debug, Default)]
pub(super) struct PeerNames {
    known: Mutex<BTreeSet<String>>,
}

impl PeerNames {
    /// The label for the node of this name.
    pub(super) fn label(&self, name: &str) -> String {
        let mut known = lock(&self.known);
        if known.contains(name) {
            return name.to_owned();
        }
        if known.len() >= MAX_PEERS {
            return OTHERS.to_owned();
        }
        known.insert(name.to_owned());
        name.to_owned()
    }
}

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TLS and the upgrade are under way.
    Handshake,
    /// No authentication or registration was requested yet, or the connection is being closed.
    Greeting,
    /// The token is being checked.
    Authenticating,
    /// The rendezvous is being queried for its partner.
    Offering,
    /// The endpoint waits for a partner.
    Waiting,
    /// The partner is being fetched from another node.
    Bridging,
    /// The UUID is being registered.
    Registering,
    /// A registered gateway.
    Gateway,
    /// An end of a tunnel.
    Tunnel,
}

impl Stage {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Greeting => "greeting",
            Self::Authenticating => "authenticating",
            Self::Offering => "offering",
            Self::Waiting => "waiting",
            Self::Bridging => "bridging",
            Self::Registering => "registering",
            Self::Gateway => "gateway",
            Self::Tunnel => "tunnel",
        }
    }
}

/// A step of a tunnel's set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// TLS and the upgrade.
    Handshake,
    /// From the request to the verdict.
    Authenticate,
    /// The rendezvous's answer to an offer.
    Claim,
    /// Fetching the partner from its node.
    Bridge,
    /// From the partner's arrival to the notifications.
    Introduce,
    /// All of the above, for the second endpoint.
    Total,
}

impl Step {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Authenticate => "authenticate",
            Self::Claim => "claim",
            Self::Bridge => "bridge",
            Self::Introduce => "introduce",
            Self::Total => "total",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_make_a_bounded_number_of_labels() {
        let names = PeerNames::default();
        let labels: BTreeSet<_> = (0..10_000).map(|node| names.label(&node.to_string())).collect();
        assert_eq!(labels.len(), MAX_PEERS + 1);
        assert_eq!(names.label("7"), "7");
        assert_eq!(names.label("9999"), OTHERS);
    }
}
