//! Checks whether a text in pieces is UTF-8 (RFC 3629).

use simdutf8::compat::from_utf8;

/// The state of the text so far.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The bytes of a code point that is not complete.
    begun: [u8; 4],
    length: usize,
}

impl Utf8 {
    /// Looks at the next piece; false if it can be no UTF-8.
    pub(super) fn push(&mut self, mut piece: &[u8]) -> bool {
        while self.length > 0 {
            let Some((byte, rest)) = piece.split_first() else { return true };
            piece = rest;
            self.begun[self.length] = *byte;
            self.length += 1;
            match from_utf8(&self.begun[..self.length]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let begun = &piece[error.valid_up_to()..];
                self.begun[..begun.len()].copy_from_slice(begun);
                self.length = begun.len();
                true
            }
        }
    }

    /// Whether the text may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "plain, süß, 水, \u{10FFFF}, 🦀";

    /// Whether the pieces are UTF-8, and complete in the end.
    fn check<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let mut text = Utf8::default();
        pieces.into_iter().all(|piece| text.push(piece)) && text.is_complete()
    }

    #[test]
    fn a_text_may_come_in_any_pieces() {
        for size in 1..TEXT.len() {
            assert!(check(TEXT.as_bytes().chunks(size)), "pieces of {size}");
        }
        for end in 0..TEXT.len() {
            let complete = check(TEXT.as_bytes()[..end].chunks(3));
            assert_eq!(complete, TEXT.is_char_boundary(end), "{end}");
        }
    }

    #[test]
    fn what_is_no_text_is_noticed_in_any_pieces() {
        for wrong in [
            &b"\xff"[..],
            b"a\x80",
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xf8\x88\x80\x80\x80",
            b"\xe6\xb0x",
        ] {
            for size in 1..=wrong.len() {
                assert!(!check(wrong.chunks(size)), "{wrong:x?} in pieces of {size}");
            }
        }
    }
}
