//! Connections of the load's clients to a node, on every transport, as a reader and a writer.

mod connect;
mod halves;

use rand::RngExt;
use rand::rngs::StdRng;

pub(crate) use self::connect::{Dialogue, Place, Refused, connect, trust};
pub(crate) use self::halves::{Closing, Reader, Received, Writer, of_library};

/// How a client reaches a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    WebSocket,
    SecureWebSocket,
    Tcp,
    Tls,
    Unix,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::WebSocket, Self::SecureWebSocket, Self::Tcp, Self::Tls, Self::Unix];

    pub(crate) fn any(random: &mut StdRng) -> Self {
        Self::ALL[random.random_range(0..Self::ALL.len())]
    }

    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::SecureWebSocket)
    }

    /// The scheme of a URL for the client library, if it has one.
    pub(crate) fn scheme(self) -> Option<&'static str> {
        match self {
            Self::WebSocket => Some("ws"),
            Self::SecureWebSocket => Some("wss"),
            Self::Tcp => Some("tcp"),
            Self::Tls => Some("tls"),
            Self::Unix => None,
        }
    }
}
