//! The terms of generation 3 (`README.md`, section 4): roles, and the errors of registrations.
//! [`Endpoint`](super::Endpoint) speaks it until a connection is registered, and
//! [`GatewayControl`](super::GatewayControl) with a registered gateway from then on.

use serde_json::{Value, json};
use thiserror::Error;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Close;
use super::message::success_response;

/// The addresses that a gateway's apps can have; 0 is the proxy, and 0xFFFF is never used.
pub const APP_ADDRESSES: std::ops::RangeInclusive<u16> = 1..=0xFFFE;

/// The role of a registered connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A server of the tunnel proxy: many apps attach to it.
    Gateway(Gateway),
    /// A client of the tunnel proxy, attached to a gateway.
    App(App),
}

/// The claims of a gateway about itself, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Apps find it by this.
    pub uuid: Uuid,
    /// As the gateway wrote it.
    pub name: String,
    /// The gateway sends each app no more than fits into a window, and is notified when there is room
    /// again. An extension of this server that the public releases do not have.
    pub flow_control: bool,
}

/// The bytes that a frame takes from a window in addition to its data.
pub const FRAME_OVERHEAD: usize = 128;

/// The claims of an app about itself, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The UUID of the app.
    pub uuid: Uuid,
    /// As the app wrote it.
    pub name: String,
    /// The gateway that it wants to be attached to.
    pub gateway: Uuid,
}

/// Why the tunnel proxy does not carry out a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum TunnelProxyError {
    /// A UUID is malformed, or null.
    #[error("a UUID is not valid")]
    InvalidUuid,
    /// The directory could not be queried.
    #[error("the registration is not available")]
    InternalServerError,
    /// No gateway has registered under this UUID.
    #[error("the gateway is not registered")]
    ServerNotFound,
    /// Only another role may call this.
    #[error("the call is not allowed here")]
    ForbiddenCall,
    /// The UUID is registered already, in this role or the other, or so is the connection.
    #[error("the UUID or the connection is registered already")]
    AlreadyRegistered,
    /// The connection has not registered.
    #[error("the connection is not registered")]
    NotRegistered,
    /// The gateway has no app with this address.
    #[error("there is no such socket address")]
    UnknownSocketAddress,
}

/// The value of `tunnelProxyError` on success.
pub(super) const NO_ERROR: &str = "TunnelProxyErrorNoError";

impl TunnelProxyError {
    /// Returns a short constant name for logs and metric labels.
    pub const fn class(self) -> &'static str {
        match self {
            Self::InvalidUuid => "invalid_uuid",
            Self::InternalServerError => "internal_server_error",
            Self::ServerNotFound => "server_not_found",
            Self::ForbiddenCall => "forbidden_call",
            Self::AlreadyRegistered => "already_registered",
            Self::NotRegistered => "not_registered",
            Self::UnknownSocketAddress => "unknown_socket_address",
        }
    }

    /// The value of `tunnelProxyError` on the wire.
    pub const fn label(self) -> &'static str {
        match self {
            Self::InvalidUuid => "TunnelProxyErrorInvalidUuid",
            Self::InternalServerError => "TunnelProxyErrorInternalServerError",
            Self::ServerNotFound => "TunnelProxyErrorServerNotFound",
            Self::ForbiddenCall => "TunnelProxyErrorForbiddenCall",
            Self::AlreadyRegistered => "TunnelProxyErrorAlreadyRegistered",
            Self::NotRegistered => "TunnelProxyErrorNotRegistered",
            Self::UnknownSocketAddress => "TunnelProxyErrorUnknownSocketAddress",
        }
    }

    /// The reason for closing a connection after a refused registration.
    pub(super) const fn close(self) -> Close {
        match self {
            Self::InvalidUuid => Close::InvalidUuid,
            Self::InternalServerError => Close::RegistrationUnavailable,
            Self::ServerNotFound => Close::GatewayNotFound,
            Self::AlreadyRegistered => Close::AlreadyRegistered,
            Self::ForbiddenCall | Self::NotRegistered | Self::UnknownSocketAddress => {
                Close::ForbiddenCall
            }
        }
    }
}

/// The role that a call is for, also where it shows no valid UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoleKind {
    Gateway,
    App,
}

impl Role {
    pub(super) fn kind(&self) -> RoleKind {
        match self {
            Self::Gateway(_) => RoleKind::Gateway,
            Self::App(_) => RoleKind::App,
        }
    }
}

/// A UUID as clients must write it: hyphenated, with or without braces, in any case. `None` for
/// everything else, and for the null UUID.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    let plain = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    if plain.len() != Hyphenated::LENGTH {
        return None;
    }
    Uuid::try_parse(plain).ok().filter(|uuid| !uuid.is_nil())
}

/// A UUID as it is sent to clients: with braces, in lower case.
pub fn braced(uuid: Uuid) -> String {
    uuid.braced().to_string()
}

/// The answer to `RegisterServer` or `RegisterClient`. Its status is `success` also with an error.
/// The window is for gateways with flow control.
pub(super) fn registration_response(
    request: i64,
    kind: RoleKind,
    result: Result<(), TunnelProxyError>,
    window: Option<u32>,
) -> String {
    let mut params = json!({ "tunnelProxyError": label_of(result) });
    if kind == RoleKind::Gateway {
        params["slipEnabled"] = result.is_ok().into();
    }
    if let Some(window) = window {
        params["clientWindow"] = window.into();
    }
    success_response(request, Some(params))
}

/// The answer to `DisconnectClient`.
pub(super) fn disconnect_response(request: i64, result: Result<(), TunnelProxyError>) -> String {
    success_response(request, Some(json!({ "tunnelProxyError": label_of(result) })))
}

/// The params of the answer to `Ping`.
pub(super) fn pong(timestamp: u64) -> Value {
    json!({ "timestamp": timestamp })
}

fn label_of(result: Result<(), TunnelProxyError>) -> &'static str {
    result.err().map_or(NO_ERROR, TunnelProxyError::label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_braces_or_not_and_any_case() {
        let uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        for text in [
            "01234567-89ab-cdef-0123-456789abcdef",
            "{01234567-89ab-cdef-0123-456789abcdef}",
            "{01234567-89AB-CDEF-0123-456789aBcDeF}",
        ] {
            assert_eq!(parse_uuid(text), Some(uuid), "{text}");
        }
        assert_eq!(braced(uuid), "{01234567-89ab-cdef-0123-456789abcdef}");
    }

    #[test]
    fn everything_else_is_no_uuid() {
        for text in [
            "",
            "{}",
            "null",
            "00000000-0000-0000-0000-000000000000",
            "{00000000-0000-0000-0000-000000000000}",
            "0123456789abcdef0123456789abcdef",
            "urn:uuid:01234567-89ab-cdef-0123-456789abcdef",
            "{01234567-89ab-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdef}",
            "{{01234567-89ab-cdef-0123-456789abcdef}}",
            " 01234567-89ab-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdeg",
        ] {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
    }
}
