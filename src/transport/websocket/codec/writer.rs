//! The headers of a server's frames.

use super::{MAX_CONTROL, Opcode};
use crate::protocol::{Chunk, Kind};

/// Puts chunks into frames.
#[derive(Debug, Default)]
pub(in super::super) struct Writer {
    /// The next chunk goes on with a message.
    within_message: bool,
}

/// The largest header: two bytes, and a length of eight.
const MAX_HEADER: usize = 10;

/// A header.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Writer {
    /// The header before the payload of this chunk.
    pub(in super::super) fn header(&mut self, chunk: &Chunk) -> Header {
        let opcode = match (self.within_message, chunk.kind) {
            (true, _) => Opcode::Continuation,
            (false, Kind::Text) => Opcode::Text,
            (false, Kind::Binary | Kind::Stream) => Opcode::Binary,
        };
        self.within_message = !chunk.last;
        header(opcode, chunk.last, chunk.data.len())
    }
}

/// A whole control frame. What does not fit into its payload is left out.
pub(in super::super) fn control_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_CONTROL)];
    let mut frame = header(opcode, true, payload.len()).as_ref().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn header(opcode: Opcode, is_final: bool, payload: usize) -> Header {
    let mut header = Header { bytes: [0; MAX_HEADER], length: 2 };
    let [first, second, length @ ..] = &mut header.bytes;
    *first = opcode as u8 | if is_final { 0x80 } else { 0 };
    // Written in the shortest form, as the RFC wants it.
    match (u8::try_from(payload), u16::try_from(payload)) {
        (Ok(short @ 0..126), _) => *second = short,
        (_, Ok(medium)) => {
            *second = 126;
            length[..2].copy_from_slice(&medium.to_be_bytes());
            header.length += 2;
        }
        _ => {
            *second = 127;
            *length = (payload as u64).to_be_bytes();
            header.length += 8;
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        for (payload, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(header(Opcode::Binary, true, payload).as_ref(), expected);
        }
    }

    #[test]
    fn the_chunks_of_a_message_are_its_frames() {
        let mut writer = Writer::default();
        let chunk = |last| Chunk { last, ..Chunk::text("ab") };
        for (last, first_byte) in [(false, 0x01), (false, 0x00), (true, 0x80), (true, 0x81)] {
            assert_eq!(writer.header(&chunk(last)).as_ref(), [first_byte, 2]);
        }
        assert_eq!(control_frame(Opcode::Pong, b"x"), [0x8a, 1, b'x']);
        assert_eq!(control_frame(Opcode::Close, &[0; 200]).len(), 127);
    }
}
