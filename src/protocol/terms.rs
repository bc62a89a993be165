//! What goes into an [`Endpoint`] and what comes out of it.

use std::time::Duration;

#[cfg(doc)]
use super::Endpoint;
use super::methods::Offered;
use super::tunnel_proxy::Role;
use super::{Close, PairingKey, Token};

/// Which client generation a connection belongs to, told by what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The first protocol: authenticates with a token and maybe a nonce.
    One,
    /// Api 0.3: shows uuid and name, too.
    Two,
    /// Api 0.6: a gateway or an app of the tunnel proxy.
    Three,
}

/// Who an endpoint says it is; empty for generation 1. Nobody vouches for it.
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

/// What one endpoint of a tunnel has to know about the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Decides which notification the endpoint gets.
    pub generation: Generation,
    /// Told to the other endpoint.
    pub identity: Identity,
}

/// What came of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The token is good.
    Valid,
    /// The token is bad.
    Invalid,
    /// The authentication server did not answer in time.
    Timeout,
    /// The authentication server could not be asked or did not make sense.
    Unavailable,
    /// The token is good, but its user has too many connections.
    NoRoom,
}

/// The limits of this stage of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// From the start until the connection must have asked for authentication.
    pub inactivity: Duration,
    /// From the start until the connection must be authenticated.
    pub authentication: Duration,
    /// From authentication until the other endpoint must be there.
    pub waiting: Duration,
    /// Requests before authentication.
    pub requests: u32,
    /// Whether the tunnel proxy (generation 3) is there.
    pub tunnel_proxy: bool,
    /// Whether who registers as a gateway must show a token.
    pub token_for_gateways: bool,
    /// Whether who registers as an app must show a token.
    pub token_for_apps: bool,
    /// What a gateway with flow control may send to each app before it hears that it was taken: in
    /// bytes, where each frame counts for [`FRAME_OVERHEAD`](super::FRAME_OVERHEAD) besides its
    /// data.
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

/// What the driver of an [`Endpoint`] has to do.
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
        /// What it wants to be.
        role: Role,
        /// `None` if none is demanded.
        token: Option<Token>,
    },
    /// Send what is still to be sent, then close. Nothing follows.
    Close(Close),
}
