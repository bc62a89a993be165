//! The frames of WebSocket (RFC 6455) as a server reads and writes them. Pure: bytes in, events
//! out, and the reverse; no IO.
//!
//! Frames are passed on as they arrive: a small one as a whole, a large one in pieces, so that no
//! message is ever collected. Masks are removed in place and payload is not copied.

mod mask;
mod reader;
mod utf8;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use thiserror::Error;

use crate::protocol::Chunk;

pub(super) use self::reader::Reader;
pub(super) use self::writer::{Writer, control_frame};

/// The largest payload of a control frame (RFC 6455, section 5.5).
pub(super) const MAX_CONTROL: usize = 125;

/// An event from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A message, or a piece of one.
    Data(Chunk),
    /// A frame without payload in the middle of a message.
    Empty,
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    /// An answer to a ping.
    Pong,
    /// A close, with its code if it has one.
    Close(Option<u16>),
}

/// A violation of the protocol by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Violation {
    /// A frame is not as the RFC has it.
    #[error("{0}")]
    Protocol(&'static str),
    /// A message has more bytes than are allowed.
    #[error("the message is too large")]
    TooLarge,
    /// A text message is not UTF-8.
    #[error("the text is not UTF-8")]
    NotText,
}

/// The opcode of a frame (RFC 6455, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    /// More of the message before.
    Continuation = 0x0,
    /// A text message, or its beginning.
    Text = 0x1,
    /// A binary message, or its beginning.
    Binary = 0x2,
    /// A goodbye.
    Close = 0x8,
    /// A question for a sign of life.
    Ping = 0x9,
    /// The sign.
    Pong = 0xA,
}

impl Opcode {
    fn read(bits: u8) -> Result<Self, Violation> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(Violation::Protocol("a frame has an unknown opcode")),
        })
    }
}
