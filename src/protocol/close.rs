//! The reasons for which the proxy ends a connection.

use std::fmt;

/// The reason for which the proxy closes a connection.
///
/// Each has a WebSocket close code (RFC 6455, section 7.4), a text for the client, and a class
/// for logs and metrics. None carries anything that a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Close {
    /// The other endpoint closed the tunnel in order.
    OtherLeft,
    /// The other endpoint's connection broke, or broke a rule.
    OtherLost,
    /// This node is shutting down; any other node will serve.
    Draining,
    /// An operator ended the tunnel.
    Dismissed,
    /// A request that the protocol does not allow; the response has the reason.
    InvalidRequest,
    /// A request of more than [`MAX_REQUEST`](crate::protocol::MAX_REQUEST) bytes.
    RequestTooLarge,
    /// The connection was closed for others before it was authenticated, or its user has too many
    /// connections.
    NoRoom,
    /// More requests before authenticating than `limits.requests`.
    TooManyRequests,
    /// The token was refused.
    TokenRefused,
    /// The token could not be checked.
    AuthenticationUnavailable,
    /// No authentication within `timeouts.authentication`.
    AuthenticationTimeout,
    /// The connection requested neither authentication nor registration within
    /// `timeouts.inactivity`.
    Inactive,
    /// No other endpoint connected within `timeouts.waiting`.
    NobodyCame,
    /// Two other endpoints have the tunnel of this token and nonce already.
    Taken,
    /// Both endpoints showed the same UUID.
    Loop,
    /// Data was received after authentication and before the tunnel was established, or while a
    /// registration was still to be answered.
    EarlyData,
    /// A registration with a malformed or null UUID; the response has the reason.
    InvalidUuid,
    /// No gateway has registered under the UUID that an app requested.
    GatewayNotFound,
    /// The UUID is registered already, or the connection has registered before.
    AlreadyRegistered,
    /// A call that is not for this connection.
    ForbiddenCall,
    /// The directory could not be queried.
    RegistrationUnavailable,
    /// The gateway has sent nothing for too long.
    SilentGateway,
    /// The gateway requested to disconnect this app.
    Disconnected,
    /// The app took data of its gateway so slowly that there was no more room for it
    /// (`tunnel_proxy.backlog` and `tunnel_proxy.overflow`).
    Backlog,
    /// A message of more than `limits.message_size` bytes.
    MessageTooLarge,
    /// The endpoint broke the rules of the transport (framing, masking, …).
    TransportViolation,
    /// A text message that is not UTF-8.
    InvalidText,
    /// The endpoint sent frames without data too often before it had a tunnel.
    IdleFrames,
    /// The endpoint took none of its data for `timeouts.stalled`.
    Stalled,
    /// The endpoint answered no pings.
    Unresponsive,
    /// The node failed.
    Fault,
}

impl Close {
    /// The WebSocket close code.
    pub const fn code(self) -> u16 {
        match self {
            Self::OtherLeft | Self::Disconnected => 1000,
            Self::OtherLost | Self::Draining | Self::Dismissed | Self::Unresponsive => 1001,
            Self::TransportViolation => 1002,
            Self::InvalidText => 1007,
            Self::InvalidRequest
            | Self::TokenRefused
            | Self::AuthenticationTimeout
            | Self::Inactive
            | Self::Taken
            | Self::Loop
            | Self::EarlyData
            | Self::InvalidUuid
            | Self::AlreadyRegistered
            | Self::ForbiddenCall
            | Self::SilentGateway
            | Self::Backlog
            | Self::IdleFrames
            | Self::Stalled => 1008,
            Self::RequestTooLarge | Self::MessageTooLarge => 1009,
            Self::Fault => 1011,
            Self::NoRoom
            | Self::TooManyRequests
            | Self::AuthenticationUnavailable
            | Self::RegistrationUnavailable
            | Self::GatewayNotFound
            | Self::NobodyCame => 1013,
        }
    }

    /// The text for the client; at most 123 bytes, as a close frame holds no more. Clients recognise
    /// some reasons by it ([`ConnectError`](crate::client::ConnectError)), which must not change.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::OtherLeft => "The other endpoint closed the tunnel.",
            Self::OtherLost => "The connection to the other endpoint was lost.",
            Self::Draining => "This node is shutting down. Please connect again.",
            Self::Dismissed => "An operator of this server ended the tunnel.",
            Self::InvalidRequest => "Invalid request. The response says why.",
            Self::RequestTooLarge => "A request must not be larger than 10 KiB.",
            Self::NoRoom => "Too many connections. Try again later.",
            Self::TooManyRequests => "Too many requests before authentication. Try again later.",
            Self::TokenRefused => "Invalid token.",
            Self::AuthenticationUnavailable => {
                "Authentication is temporarily unavailable. Try again later."
            }
            Self::AuthenticationTimeout => "Not authenticated in time.",
            Self::Inactive => "No authentication or registration request arrived in time.",
            Self::NobodyCame => "The other endpoint did not come in time. Try again later.",
            Self::Taken => "The tunnel of this token stands already.",
            Self::Loop => "Both endpoints have the same UUID.",
            Self::EarlyData => "Data was sent before the tunnel was established.",
            Self::InvalidUuid => "A UUID in the registration is malformed or null.",
            Self::GatewayNotFound => "No server is registered under this UUID. Try again later.",
            Self::AlreadyRegistered => "The UUID or this connection is registered already.",
            Self::ForbiddenCall => "This call is not allowed on this connection.",
            Self::RegistrationUnavailable => {
                "Registration is temporarily unavailable. Try again later."
            }
            Self::SilentGateway => "The server sent nothing for too long. It must ping.",
            Self::Disconnected => "The server disconnected this client.",
            Self::Backlog => "Data was read so slowly that too much of it was waiting.",
            Self::MessageTooLarge => "The message is too large for this server.",
            Self::TransportViolation => "The data violates the transport protocol.",
            Self::InvalidText => "A text message must be UTF-8.",
            Self::IdleFrames => "Too many frames without data before the tunnel was established.",
            Self::Stalled => "No data was read for too long.",
            Self::Unresponsive => "Pings were not answered.",
            Self::Fault => "The server failed.",
        }
    }

    /// A short constant name for logs and metric labels.
    pub const fn class(self) -> &'static str {
        match self {
            Self::OtherLeft => "other_left",
            Self::OtherLost => "other_lost",
            Self::Draining => "draining",
            Self::Dismissed => "dismissed",
            Self::InvalidRequest => "invalid_request",
            Self::RequestTooLarge => "request_too_large",
            Self::NoRoom => "no_room",
            Self::TooManyRequests => "too_many_requests",
            Self::TokenRefused => "token_refused",
            Self::AuthenticationUnavailable => "authentication_unavailable",
            Self::AuthenticationTimeout => "authentication_timeout",
            Self::Inactive => "inactive",
            Self::NobodyCame => "nobody_came",
            Self::Taken => "taken",
            Self::Loop => "loop",
            Self::EarlyData => "early_data",
            Self::InvalidUuid => "invalid_uuid",
            Self::GatewayNotFound => "gateway_not_found",
            Self::AlreadyRegistered => "already_registered",
            Self::ForbiddenCall => "forbidden_call",
            Self::RegistrationUnavailable => "registration_unavailable",
            Self::SilentGateway => "silent_gateway",
            Self::Disconnected => "disconnected",
            Self::Backlog => "backlog",
            Self::MessageTooLarge => "message_too_large",
            Self::TransportViolation => "transport_violation",
            Self::InvalidText => "invalid_text",
            Self::IdleFrames => "idle_frames",
            Self::Stalled => "stalled",
            Self::Unresponsive => "unresponsive",
            Self::Fault => "fault",
        }
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
}
