//! The messages of a load, and one end's way of sending them.

use std::sync::Arc;

use super::frame::{self, MASK, Opcode};

/// Bytes of the number at the beginning of a message.
pub(super) const NUMBER: usize = 8;

/// How messages go through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
    /// As bytes without boundaries, through a relay that knows nothing of WebSocket.
    Bytes,
}

/// What all messages of a load have in common.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// The whole message, with room for the number.
    pattern: Arc<[u8]>,
}

impl Message {
    /// Of so many bytes, and not less than the number needs.
    pub(crate) fn new(kind: Kind, size: usize) -> Self {
        // Any change of place shows: the bytes do not repeat within what a message can hold.
        let mut state = 0x2545_f491_u32;
        let bytes = (0..size.max(NUMBER)).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [byte, ..] = state.to_be_bytes();
            if kind == Kind::Text { b' ' + byte % 95 } else { byte }
        });
        Self { kind, pattern: bytes.collect() }
    }

    pub(crate) fn size(&self) -> usize {
        self.pattern.len()
    }

    /// The message with this number.
    pub(super) fn numbered(&self, number: u64) -> Vec<u8> {
        let mut bytes = self.pattern.to_vec();
        bytes[..NUMBER].copy_from_slice(&digits(number));
        bytes
    }
}

/// A number as text that is valid in any kind of message: 8 digits to the base of 64.
pub(super) fn digits(number: u64) -> [u8; NUMBER] {
    let mut digits = [0; NUMBER];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        let [.., six_bits] = (number >> (6 * place)).to_be_bytes();
        *digit = b'0' + (six_bits & 0x3f);
    }
    digits
}

/// One end's messages: what is written now, and how much of it is gone.
pub(crate) struct Outgoing {
    /// Messages as they are on the wire, to be written together.
    bytes: Vec<u8>,
    /// Where their numbers are.
    numbers: Vec<usize>,
    mask: [u8; 4],
    next: u64,
    written: usize,
}

impl Outgoing {
    /// Writes so many messages at once.
    pub(crate) fn new(message: &Message, at_once: usize) -> Self {
        let (one, mask) = match message.kind {
            Kind::Text => (frame::pack(Opcode::Text, &message.pattern), MASK),
            Kind::Binary => (frame::pack(Opcode::Binary, &message.pattern), MASK),
            Kind::Bytes => (message.pattern.to_vec(), [0; 4]),
        };
        let head = one.len() - message.size();
        let numbers = (0..at_once).map(|copy| copy * one.len() + head).collect();
        let mut outgoing = Self { bytes: one.repeat(at_once), numbers, mask, next: 0, written: 0 };
        outgoing.number();
        outgoing
    }

    /// How many messages are gone.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Notes that bytes of the rest were written; true if that was all of it.
    pub(crate) fn advance(&mut self, bytes: usize) -> bool {
        self.written += bytes;
        if self.written < self.bytes.len() {
            return false;
        }
        self.written = 0;
        self.next += self.numbers.len() as u64;
        self.number();
        true
    }

    fn number(&mut self) {
        for (number, place) in (self.next..).zip(&self.numbers) {
            let masked = digits(number).into_iter().zip(self.mask.iter().cycle());
            for (byte, (digit, mask)) in self.bytes[*place..].iter_mut().zip(masked) {
                *byte = digit ^ mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_text_and_differ() {
        assert_eq!(&digits(0), b"00000000");
        assert_eq!(&digits(1), b"00000001");
        assert_eq!(&digits(64), b"00000010");
        assert!(digits(u64::MAX).iter().all(u8::is_ascii));
    }

    #[test]
    fn a_text_is_text() {
        let message = Message::new(Kind::Text, 1000);
        assert!(message.numbered(5).iter().all(|byte| (b' '..=b'~').contains(byte)));
        assert_eq!(message.size(), 1000);
        assert_eq!(Message::new(Kind::Binary, 1).size(), NUMBER);
    }

    #[test]
    fn only_the_numbers_change_from_write_to_write() {
        let message = Message::new(Kind::Binary, 20);
        let mut outgoing = Outgoing::new(&message, 2);
        for first in [0, 2, 4] {
            let frames = [first, first + 1]
                .map(|number| frame::pack(Opcode::Binary, &message.numbered(number)));
            assert_eq!(outgoing.rest(), frames.concat());
            assert_eq!(outgoing.sent(), first);
            assert!(!outgoing.advance(5));
            let rest = outgoing.rest().len();
            assert!(outgoing.advance(rest));
        }
    }
}
