//! The errors of an endpoint, and how they are derived from close codes and reasons.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};

use crate::protocol::Close;

/// An option of a [`Connector`](super::Connector) that cannot be used.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Not a URL.
    #[error("the URL is not valid")]
    Url(#[source] url::ParseError),
    /// None of the schemes that there are.
    #[error("the URL must begin with wss:// or ws://, or without WebSocket with tls:// or tcp://")]
    Scheme,
    /// Endpoints that are paired by token are reached by WebSocket.
    #[error("the URL must begin with wss:// or ws://, unless it is for a gateway or an app")]
    NotWebSocket,
    /// Not 32 bytes in hexadecimal digits.
    #[error("a fingerprint is a SHA-256: 64 hexadecimal digits, with or without colons")]
    Fingerprint,
    /// The certificate file cannot be read.
    #[error("cannot read certificates from {}", path.display())]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The certificates cannot be used as roots of trust.
    #[error("{} holds no certificate that can be trusted", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The system's certificates cannot be used.
    #[error("the certificates that this system trusts cannot be loaded")]
    SystemCertificates(#[source] rustls::Error),
}

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The connector cannot be used as it is.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No TCP connection: refused, no such host, no route, …
    #[error("cannot reach {address}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The proxy did not react in time.
    #[error("the proxy did not answer in time (waiting for {0})")]
    Timeout(&'static str),
    /// The certificate has no trusted issuer, is for another name, or has expired.
    #[error("the certificate of the proxy is not trusted")]
    CertificateNotTrusted(#[source] rustls::Error),
    /// The certificate does not have the expected fingerprint.
    #[error("the certificate of the proxy has another fingerprint: {found}")]
    FingerprintMismatch {
        /// SHA-256 of the certificate that was shown.
        found: String,
    },
    /// The TLS handshake failed for another reason; maybe the server does not speak TLS.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// Something answers there, but it does not speak this protocol.
    #[error("there is no remote proxy at this address: {0}")]
    NotARemoteProxy(String),
    /// The token was refused.
    #[error("the proxy refused the token")]
    TokenRefused,
    /// The proxy could not find out whether the token is valid. Temporary.
    #[error("the proxy cannot check tokens at the moment")]
    AuthenticationUnavailable,
    /// No gateway is registered under this UUID. Temporary.
    #[error("no gateway is registered under this UUID")]
    GatewayNotFound,
    /// The UUID is registered already, by a gateway or an app.
    #[error("the UUID is registered already")]
    AlreadyRegistered,
    /// The UUID is null.
    #[error("the proxy does not accept the UUID")]
    InvalidUuid,
    /// The proxy did not accept the request, for the reason in its words.
    #[error("the proxy refused the request: {0:?}")]
    Rejected(String),
    /// The other endpoint did not come in time. Temporary.
    #[error("the other endpoint did not come")]
    NobodyCame,
    /// Two other endpoints have a tunnel with this token and nonce.
    #[error("two other endpoints already have the tunnel of this token")]
    Taken,
    /// Both endpoints showed the same UUID.
    #[error("both endpoints have the same UUID")]
    Loop,
    /// The node is shutting down; another one will serve. Temporary.
    #[error("the proxy is going away")]
    GoingAway,
    /// The proxy has no room at the moment. Temporary.
    #[error("the proxy is too busy")]
    TryAgainLater,
    /// The proxy closed the connection for another reason.
    #[error("the proxy closed the connection: {reason:?} (code {code})")]
    Closed {
        /// WebSocket close code.
        code: u16,
        /// The proxy's words.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection to the proxy broke")]
    Lost(#[source] io::Error),
    /// The proxy broke the rules of the protocol.
    #[error("the proxy violated the protocol: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// Whether the same may well succeed later.
    ///
    /// ```
    /// use nymea_remoteproxy::client::ConnectError;
    ///
    /// assert!(ConnectError::GoingAway.is_temporary());
    /// assert!(!ConnectError::TokenRefused.is_temporary());
    /// ```
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::NobodyCame
                | Self::GatewayNotFound
                | Self::GoingAway
                | Self::TryAgainLater
                | Self::AuthenticationUnavailable
        )
    }

    /// Reads the close frame that ended a connection without a tunnel.
    pub(super) fn from_close(frame: Option<CloseFrame>) -> Self {
        let (code, reason) = code_and_reason(frame);
        let is = |close: Close| close.code() == code && close.reason() == reason;
        match code {
            _ if is(Close::TokenRefused) => Self::TokenRefused,
            _ if is(Close::AuthenticationUnavailable) => Self::AuthenticationUnavailable,
            _ if is(Close::NobodyCame) => Self::NobodyCame,
            _ if is(Close::Taken) => Self::Taken,
            _ if is(Close::Loop) => Self::Loop,
            _ if is(Close::GatewayNotFound) => Self::GatewayNotFound,
            _ if is(Close::AlreadyRegistered) => Self::AlreadyRegistered,
            1001 => Self::GoingAway,
            1013 => Self::TryAgainLater,
            _ => Self::Closed { code, reason },
        }
    }
}

impl From<tungstenite::Error> for ConnectError {
    /// For a connection that is open and has no tunnel yet.
    fn from(error: tungstenite::Error) -> Self {
        match TunnelError::from(error) {
            TunnelError::Lost(source) => Self::Lost(io::Error::new(source.kind(), source)),
            error => Self::Protocol(error.to_string()),
        }
    }
}

/// Why a tunnel ended otherwise than by a normal close, or could not take data.
///
/// As the source of an [`io::Error`] it can be had by [`io::Error::get_ref`].
#[derive(Clone, Debug, Error)]
pub enum TunnelError {
    /// The other endpoint closed the tunnel in order, while there was still data to be sent.
    #[error("the other endpoint closed the tunnel before everything was sent")]
    OtherLeft,
    /// The connection between the proxy and the other endpoint broke.
    #[error("the other endpoint was lost")]
    OtherLost,
    /// The node is shutting down.
    #[error("the proxy is going away")]
    GoingAway,
    /// The tunnel was closed for another reason.
    #[error("the tunnel was closed: {reason:?} (code {code})")]
    Closed {
        /// WebSocket close code; 1005 if there was none.
        code: u16,
        /// The proxy's words.
        reason: String,
    },
    /// The connection to the proxy broke.
    #[error("the connection to the proxy broke")]
    Lost(#[source] Arc<io::Error>),
    /// The data of the app was left unread for too long, so that it was disconnected.
    #[error("the data of the app was left unread for too long")]
    TooSlow,
    /// The proxy did not confirm in time that it has everything.
    #[error("the proxy did not confirm that it has all data")]
    NotConfirmed,
    /// A message is larger than [`Connector::message_limit`](super::Connector::message_limit).
    #[error("a message is larger than the limit")]
    MessageTooLarge,
    /// Data was given to a tunnel that has been closed on this side.
    #[error("this side of the tunnel has been closed")]
    SentAfterClose,
    /// The proxy broke the rules of WebSocket.
    #[error("the proxy violated the protocol: {0}")]
    Protocol(String),
}

impl TunnelError {
    /// Reads the close frame that ended a tunnel: `Ok` is a normal end.
    pub(super) fn from_close(frame: Option<CloseFrame>) -> Result<(), Self> {
        let (code, reason) = code_and_reason(frame);
        Err(match code {
            1000 => return Ok(()),
            1001 if reason == Close::OtherLost.reason() => Self::OtherLost,
            1001 if reason == Close::Draining.reason() => Self::GoingAway,
            1009 => Self::MessageTooLarge,
            code => Self::Closed { code, reason },
        })
    }
}

fn code_and_reason(frame: Option<CloseFrame>) -> (u16, String) {
    frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()))
}

impl From<tungstenite::Error> for TunnelError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => Self::Lost(Arc::new(error)),
            tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed
            | tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Lost(Arc::new(io::ErrorKind::UnexpectedEof.into()))
            }
            tungstenite::Error::Capacity(_) => Self::MessageTooLarge,
            // As text: some variants hold the message itself.
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> Self {
        let kind = match &error {
            TunnelError::OtherLeft | TunnelError::SentAfterClose => io::ErrorKind::BrokenPipe,
            TunnelError::OtherLost | TunnelError::GoingAway | TunnelError::Closed { .. } => {
                io::ErrorKind::ConnectionAborted
            }
            TunnelError::Lost(source) => source.kind(),
            TunnelError::NotConfirmed | TunnelError::TooSlow => io::ErrorKind::TimedOut,
            TunnelError::MessageTooLarge | TunnelError::Protocol(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(close: Close) -> CloseFrame {
        CloseFrame { code: close.code().into(), reason: close.reason().into() }
    }

    #[test]
    fn a_refusal_is_told_by_code_and_reason() {
        let error = |close| ConnectError::from_close(Some(frame(close)));
        assert!(matches!(error(Close::TokenRefused), ConnectError::TokenRefused));
        assert!(matches!(error(Close::Taken), ConnectError::Taken));
        assert!(matches!(error(Close::Loop), ConnectError::Loop));
        assert!(matches!(error(Close::NobodyCame), ConnectError::NobodyCame));
        assert!(matches!(error(Close::Draining), ConnectError::GoingAway));
        assert!(matches!(error(Close::TooManyRequests), ConnectError::TryAgainLater));
        assert!(matches!(
            error(Close::AuthenticationUnavailable),
            ConnectError::AuthenticationUnavailable
        ));
        assert!(matches!(error(Close::Inactive), ConnectError::Closed { code: 1008, .. }));
        assert!(matches!(ConnectError::from_close(None), ConnectError::Closed { code: 1005, .. }));
    }

    #[test]
    fn only_code_1000_is_a_normal_end() {
        let end = |close| TunnelError::from_close(Some(frame(close)));
        assert!(end(Close::OtherLeft).is_ok());
        assert!(matches!(end(Close::OtherLost), Err(TunnelError::OtherLost)));
        assert!(matches!(end(Close::Draining), Err(TunnelError::GoingAway)));
        assert!(matches!(end(Close::Stalled), Err(TunnelError::Closed { code: 1008, .. })));
        assert!(TunnelError::from_close(None).is_err());
    }

    #[test]
    fn an_io_error_keeps_its_source() {
        let error = io::Error::from(TunnelError::OtherLost);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let source = error.get_ref().and_then(|source| source.downcast_ref::<TunnelError>());
        assert!(matches!(source, Some(TunnelError::OtherLost)));
    }
}
