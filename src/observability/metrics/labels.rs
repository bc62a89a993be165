//! The words by which metrics are told apart.

/// Where a connection is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TLS and the upgrade are under way.
    Handshake,
    /// It has not asked for anything yet, or is being closed.
    Greeting,
    /// Its token is being checked.
    Authenticating,
    /// The rendezvous is being asked for its partner.
    Offering,
    /// Its partner has not come yet.
    Waiting,
    /// Its partner is being fetched from another node.
    Bridging,
    /// Its UUID is being registered.
    Registering,
    /// It is a gateway.
    Gateway,
    /// It is one end of a tunnel.
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
    /// All of the above, for the endpoint that comes second.
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
