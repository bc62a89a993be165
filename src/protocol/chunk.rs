//! The unit in which data moves: a piece of a message, or of a stream of bytes.

use bytes::Bytes;

/// The interpretation of the bytes of a message. A tunnel preserves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8. A chunk may end within a code point, a message may not.
    Text,
    /// Any bytes.
    Binary,
    /// Bytes that belong to no message: TCP, TLS and unix sockets have none. On WebSocket each
    /// chunk becomes text or binary by [`TextOrBinary`](super::TextOrBinary).
    Stream,
}

/// A piece of a message, at most `limits.message_size` bytes. Most messages are one chunk; large ones
/// may be several in sequence, without other messages in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The same for all chunks of a message.
    pub kind: Kind,
    /// The payload.
    pub data: Bytes,
    /// Whether the message ends here; never so in a stream.
    pub last: bool,
}

impl Chunk {
    /// A whole text message.
    pub fn text(text: impl Into<String>) -> Self {
        Self { kind: Kind::Text, data: Bytes::from(text.into()), last: true }
    }

    /// A whole binary message.
    pub fn binary(data: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Binary, data: data.into(), last: true }
    }

    /// Bytes of a stream.
    pub fn stream(data: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Stream, data: data.into(), last: false }
    }
}

/// Payload that will wait in a queue. It keeps the whole block in which it was read: a queue full of
/// small pieces would keep far more memory than its limit counts, so those of fewer bytes than
/// `small` are copied.
pub(crate) fn without_its_block(data: Bytes, small: usize) -> Bytes {
    if data.len() < small { Bytes::copy_from_slice(&data) } else { data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_payload_does_not_keep_the_block_it_came_in() {
        let block = Bytes::from(vec![7; 64 * 1024]);
        let within = |data: &Bytes| block.as_ptr_range().contains(&data.as_ptr());
        let small = without_its_block(block.slice(..999), 1000);
        assert!(!within(&small) && small == block[..999]);
        assert!(within(&without_its_block(block.slice(..1000), 1000)));
    }
}
