//! The input and output types of an [`Endpoint`].

use std::time::Duration;

#[cfg(doc)]
use super::Endpoint;
use super::methods::Offered;
use super::tunnel_proxy::Role;
use super::{Close, PairingKey, Token};

/// The protocol generation of a connection, decided by its first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The first protocol: authenticates with a token and maybe a nonce.
    One,
    /// Api 0.3: shows uuid and name, too.
    Two,
    /// Api 0.6: a gateway or an app of the tunnel proxy.
    Three,
}

/// The identity that an endpoint claims, unverified; empty for generation 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// As the client wrote it.
    pub uuid: String,
    /// As the client wrote it.
    pub name: String,
}

impl Identity {
    /// Whether both show the same UUID, however it is written. Showing none is no match.
    pub(super) fn same_uuid(&self, other: &Self) -> bool {
        let plain = |uuid: &str| uuid.trim_matches(['{', '}']).to_ascii_lowercase();
        !plain(&self.uuid).is_empty() && plain(&self.uuid) == plain(&other.uuid)
    }
}

/// The data about one endpoint of a tunnel that the other one needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Decides which notification the endpoint gets.
    pub generation: Generation,
    /// Sent to the other endpoint.
    pub identity: Identity,
}

/// The result of checking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The token is valid.
    Valid,
    /// The token is not valid.
    Invalid,
    /// The authentication server did not answer in time.
    Timeout,
    /// The authentication server could not be queried, or its answer was not valid.
    Unavailable,
    /// The token is valid, but its user has too many connections.
    NoRoom,
}

/// The limits of this stage of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// From the start until the connection must have requested authentication or registration.
    pub inactivity: Duration,
    /// From the start until the connection must be authenticated.
    pub authentication: Duration,
    /// From authentication until the other endpoint must be there.
    pub waiting: Duration,
    /// Requests before authentication.
    pub requests: u32,
    /// Whether the tunnel proxy (generation 3) is enabled.
    pub tunnel_proxy: bool,
    /// Whether gateways must present a token.
    pub token_for_gateways: bool,
    /// Whether apps must present a token.
    pub token_for_apps: bool,
    /// The bytes that a gateway with flow control may send to each app before it is notified that
    /// they were taken. Each frame counts for its data and
    /// [`FRAME_OVERHEAD`](super::FRAME_OVERHEAD).
    pub app_window: u32,
}

impl Rules {
    pub(super) fn offered(&self) -> Offered {
        Offered {
            authentication: true,
            tunnel_proxy: self.tunnel_proxy,
            token_for_gateways: self.token_for_gateways,
            token_for_apps: self.token_for_apps,
        }
    }
}

/// An instruction for the driver of an [`Endpoint`].
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this text message.
    Send(String),
    /// Ask whether the token is valid, then call [`Endpoint::authenticated`].
    Authenticate(Token),
    /// Find the other endpoint with this key, then call [`Endpoint::paired`] or
    /// [`Endpoint::close`].
    Offer(PairingKey),
    /// Register the connection with the tunnel proxy, then call [`Endpoint::registered`]. If there
    /// is a token, ask before whether it is valid and call [`Endpoint::authenticated`]; unless it
    /// is, there is nothing to register.
    Register {
        /// The role to register it in.
        role: Role,
        /// `None` if none is demanded.
        token: Option<Token>,
    },
    /// Send all pending data, then close. No action follows.
    Close(Close),
}
