//! Makes messages of a stream of bytes: text where it is UTF-8, binary otherwise (`README.md`,
//! section 6). This is the way from TCP, unix sockets and SLIP frames to an endpoint on WebSocket,
//! where each text message must be UTF-8 on its own.
//!
//! It is fed with each piece as it was read. The opposite direction needs no conversion. As there is
//! no clock here, the caller decides how long to wait for the rest of a character.

use bytes::Bytes;

use super::{Chunk, Kind};

/// All but the last byte of the longest UTF-8 sequence.
const LONGEST_PART: usize = 3;

/// Decides for each piece of a stream whether it is sent as text or as binary.
///
/// Each piece makes one message at most, and nothing is ever changed, lost or out of order. A piece
/// that ends within a code point is text up to there; the rest waits for its other bytes:
///
/// - if they arrive, it is the beginning of the next text;
/// - if others arrive, it was no UTF-8, and is sent as binary together with the piece that showed it;
/// - if nothing arrives, the stream has ended, or pauses and was not text.
///   [`TextOrBinary::flush`] sends it as binary.
///
/// A piece with anything else than UTF-8 in it is binary as a whole, up to its last byte: there
/// is nothing to wait for.
#[derive(Debug, Default)]
pub struct TextOrBinary {
    /// The part of a code point that is held back.
    part: [u8; LONGEST_PART],
    part_size: usize,
}

impl TextOrBinary {
    /// The message that the next piece makes, if any.
    pub fn push(&mut self, piece: Bytes) -> Option<Chunk> {
        if piece.is_empty() {
            return None;
        }
        let mut data = self.with_part(piece);
        let kind = match simdutf8::compat::from_utf8(&data) {
            Ok(_) => Kind::Text,
            Err(error) if error.error_len().is_none() => {
                let part = data.split_off(error.valid_up_to());
                self.part[..part.len()].copy_from_slice(&part);
                self.part_size = part.len();
                Kind::Text
            }
            Err(_) => Kind::Binary,
        };
        message(kind, data)
    }

    /// The bytes that are held back, at most 3, as a binary message. To be called at the end of
    /// the stream, and when [`TextOrBinary::is_waiting`] has been true for so long that the other
    /// endpoint may be waiting for these bytes to answer.
    pub fn flush(&mut self) -> Option<Chunk> {
        let part = self.with_part(Bytes::new());
        message(Kind::Binary, part)
    }

    /// Whether a part of a code point is held back.
    pub fn is_waiting(&self) -> bool {
        self.part_size > 0
    }

    /// The bytes held back, followed by `piece`. Bytes are copied only if some were held back.
    fn with_part(&mut self, piece: Bytes) -> Bytes {
        match std::mem::take(&mut self.part_size) {
            0 => piece,
            size => [&self.part[..size], &piece].concat().into(),
        }
    }
}

fn message(kind: Kind, data: Bytes) -> Option<Chunk> {
    (!data.is_empty()).then_some(Chunk { kind, data, last: true })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The messages that `pieces` make, and what is left at their end.
    fn messages(pieces: &[&[u8]]) -> (Vec<Chunk>, Option<Chunk>) {
        let mut splitter = TextOrBinary::default();
        let made = pieces.iter().filter_map(|piece| splitter.push(Bytes::copy_from_slice(piece)));
        let made = made.collect();
        let waiting = splitter.is_waiting();
        let rest = splitter.flush();
        assert_eq!(waiting, rest.is_some());
        assert!(!splitter.is_waiting() && splitter.flush().is_none());
        (made, rest)
    }

    fn binary(data: &[u8]) -> Chunk {
        Chunk::binary(data.to_vec())
    }

    #[test]
    fn text_is_text_and_the_rest_is_binary() {
        let (made, rest) = messages(&[b"{}\n", b"", b"\xC0\x80", "ü€😀".as_bytes(), b"a\xFFb"]);
        let expected =
            [Chunk::text("{}\n"), binary(b"\xC0\x80"), Chunk::text("ü€😀"), binary(b"a\xFFb")];
        assert_eq!(made, expected);
        assert_eq!(rest, None);
    }

    #[test]
    fn a_code_point_waits_for_its_rest() {
        let (made, rest) = messages(&[b"a\xF0", b"\x9F", b"\x98", b"\x80b\xC3", b"\xBC"]);
        assert_eq!(made, [Chunk::text("a"), Chunk::text("😀b"), Chunk::text("ü")]);
        assert_eq!(rest, None);
    }

    #[test]
    fn what_waited_in_vain_is_binary_with_what_follows() {
        let (made, rest) = messages(&[b"a\xE2\x82", b"bc", b"d"]);
        assert_eq!(made, [Chunk::text("a"), binary(b"\xE2\x82bc"), Chunk::text("d")]);
        assert_eq!(rest, None);
    }

    #[test]
    fn what_waits_at_the_end_is_binary() {
        let (made, rest) = messages(&[b"a\xE2\x82"]);
        assert_eq!((made, rest), (vec![Chunk::text("a")], Some(binary(b"\xE2\x82"))));
    }

    #[test]
    fn what_can_not_become_utf8_does_not_wait() {
        // Too long a form, a surrogate, beyond Unicode, a continuation without a beginning.
        for bytes in [&b"\xE0\x80"[..], b"\xED\xA0", b"\xF4\x90", b"\xC1", b"\x80", b"\xF5"] {
            assert_eq!(messages(&[bytes]), (vec![binary(bytes)], None), "{bytes:x?}");
        }
        // Nor does binary data that ends like the beginning of a code point.
        assert_eq!(messages(&[b"\xFF\xC3"]), (vec![binary(b"\xFF\xC3")], None));
    }

    #[test]
    fn text_is_not_copied() {
        let piece = Bytes::from("text".repeat(100));
        let made = TextOrBinary::default().push(piece.clone()).expect("message");
        assert_eq!(made.data.as_ptr(), piece.as_ptr());
    }

    fn cut<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|at| at % (input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn nothing_is_changed(
            parts in prop::collection::vec(
                prop_oneof![
                    "[a-zü€😀\u{7ff}\u{800}\u{ffff}\u{10000}]{0,8}".prop_map(String::into_bytes),
                    prop::collection::vec(any::<u8>(), 0..3),
                ],
                0..20,
            ),
            cuts in prop::collection::vec(any::<usize>(), 0..30),
        ) {
            let input = parts.concat();
            let pieces = cut(&input, &cuts);
            let (made, rest) = messages(&pieces);
            prop_assert!(made.len() <= pieces.len());
            let mut sum = Vec::new();
            for message in made.iter().chain(&rest) {
                prop_assert!(message.last && !message.data.is_empty());
                prop_assert!(message.kind == Kind::Binary || str::from_utf8(&message.data).is_ok());
                sum.extend_from_slice(&message.data);
            }
            prop_assert!(rest.is_none_or(|rest| rest.data.len() <= LONGEST_PART));
            prop_assert_eq!(sum, input);
        }

        #[test]
        fn text_is_text_however_it_is_cut(
            text in "[a-zü€😀\u{7ff}\u{800}\u{ffff}\u{10000}]{0,60}",
            cuts in prop::collection::vec(any::<usize>(), 0..100),
        ) {
            let (made, rest) = messages(&cut(text.as_bytes(), &cuts));
            prop_assert!(rest.is_none());
            let all_text = made.iter().all(|message| message.kind == Kind::Text);
            prop_assert!(all_text);
            let sum: Vec<u8> = made.iter().flat_map(|message| message.data.to_vec()).collect();
            prop_assert_eq!(sum, text.into_bytes());
        }
    }
}
