//! Error messages for the user: what happened, why, and what to do.

use std::io;

use nymea_remoteproxy::client::{ConnectError, TunnelError};

/// The error in one line, with its causes and what to do about it.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Some wrap another error and say just the same.
        if !line.contains(&text) {
            let colon = if line.is_empty() { "" } else { ": " };
            line = format!("{line}{colon}{text}");
        }
    }
    let advice = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(error) => for_connect(error),
        None => cause.downcast_ref().and_then(tunnel_error).and_then(for_tunnel),
    });
    if let Some(advice) = advice {
        line = format!("{line}; {advice}");
    }
    line
}

fn for_connect(error: &ConnectError) -> Option<&'static str> {
    Some(match error {
        ConnectError::Unreachable { .. } => "check --url and whether the proxy runs",
        ConnectError::Timeout(_) => "check --url, and whether something on the way blocks it",
        ConnectError::CertificateNotTrusted(_) => {
            "give the fingerprint that the node logs with --fingerprint, or a certificate with \
             --ca, or for a test accept any with -i"
        }
        ConnectError::FingerprintMismatch { .. } => {
            "compare with what the node logs: a self-signed certificate changes with each start, \
             otherwise the connection may be intercepted"
        }
        ConnectError::Tls(_) => "if the proxy has no TLS, use ws:// in --url",
        ConnectError::NotARemoteProxy(_) => "check --url; a proxy with TLS needs wss://",
        ConnectError::TokenRefused => "check the token",
        ConnectError::AuthenticationUnavailable
        | ConnectError::GoingAway
        | ConnectError::TryAgainLater => "try again later, or use --wait",
        ConnectError::NobodyCame => {
            "start it with the same token and nonce, and use --wait to give it more time"
        }
        ConnectError::Taken => "use another token, or a --nonce on both ends",
        ConnectError::GatewayNotFound => {
            "start the gateway and check --server-uuid, or use --wait until it is there"
        }
        ConnectError::AlreadyRegistered => {
            "stop the other gateway or app with this UUID, or use another one; one whose \
             connection is dead loses it within seconds"
        }
        ConnectError::InvalidUuid => "the null UUID is not allowed",
        ConnectError::Loop => "give each endpoint an own --uuid, or none",
        ConnectError::Setup(_)
        | ConnectError::Rejected(_)
        | ConnectError::Closed { .. }
        | ConnectError::Lost(_)
        | ConnectError::Protocol(_) => return None,
    })
}

/// An error within an [`io::Error`] is not among its sources.
fn tunnel_error(error: &io::Error) -> Option<&TunnelError> {
    error.get_ref()?.downcast_ref()
}

fn for_tunnel(error: &TunnelError) -> Option<&'static str> {
    Some(match error {
        TunnelError::OtherLeft => "what it did not take is lost",
        TunnelError::OtherLost
        | TunnelError::GoingAway
        | TunnelError::Closed { .. }
        | TunnelError::Lost(_)
        | TunnelError::TooSlow
        | TunnelError::NotConfirmed => "the transfer is incomplete, repeat it",
        TunnelError::MessageTooLarge | TunnelError::SentAfterClose | TunnelError::Protocol(_) => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_why_and_what_to_do() {
        let source = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let error = ConnectError::Unreachable { address: "a:1".into(), source };
        assert_eq!(
            line(&error.into()),
            "cannot reach a:1: refused; check --url and whether the proxy runs"
        );
    }

    #[test]
    fn an_error_of_the_tunnel_is_found_within_an_io_error() {
        let error = anyhow::Error::from(io::Error::from(TunnelError::OtherLost));
        assert_eq!(
            line(&error.context("receiving")),
            "receiving: the other endpoint was lost; the transfer is incomplete, repeat it"
        );
    }
}
