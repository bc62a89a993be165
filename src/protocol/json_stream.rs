//! Cuts a stream of bytes into JSON objects (`README.md`, section 1): they may follow one another
//! with or without white space in between, and arrive in any number of pieces.
//!
//! It finds where an object ends and leaves the check of what is inside to the parser. Each byte
//! is looked at once, whatever the pieces.

use thiserror::Error;

/// The largest request, in bytes from `{` to `}`.
pub const MAX_REQUEST: usize = 10 * 1024;

/// Why a stream cannot be cut any further. It stays so: the reader is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// Something other than `{` where an object must begin.
    #[error("a message must be a JSON object and begin with '{{'")]
    NotAnObject,
    /// The input ended within an object.
    #[error("the data ends within a JSON object")]
    Incomplete,
    /// An object of more than [`MAX_REQUEST`] bytes.
    #[error("the request is larger than 10 KiB")]
    TooLarge,
}

/// A reader for objects that follow one another.
#[derive(Debug, Default)]
pub struct JsonStream {
    /// Bytes not given out yet; begins with `{` once white space is skipped.
    buffer: Vec<u8>,
    /// The number of bytes of `buffer` that were scanned.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonStream {
    /// Takes the next piece of input.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next complete object, `None` if more input is needed.
    pub fn next_object(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        self.skip_white_space();
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.scanned == 0 && byte != b'{' {
                return Err(FramingError::NotAnObject);
            }
            if self.scanned == MAX_REQUEST {
                return Err(FramingError::TooLarge);
            }
            self.scanned += 1;
            if self.ends_object(byte) {
                let rest = self.buffer.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
        }
        Ok(None)
    }

    /// The same for input that may have `ended`: an error if that is within an object.
    pub(super) fn next_of(&mut self, ended: bool) -> Result<Option<Vec<u8>>, FramingError> {
        let next = self.next_object()?;
        if next.is_none() && ended {
            self.finish()?;
        }
        Ok(next)
    }

    /// Checks that the input may end here: an error within an object.
    pub fn finish(&self) -> Result<(), FramingError> {
        if self.is_empty() { Ok(()) } else { Err(FramingError::Incomplete) }
    }

    /// Whether everything that came, white space aside, has been given out.
    pub fn is_empty(&self) -> bool {
        self.buffer.iter().all(|byte| is_white_space(*byte))
    }

    /// Whether an object has begun and is not complete.
    pub(super) fn is_within_object(&self) -> bool {
        self.scanned > 0
    }

    /// The input after the objects that were given out, including white space.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    fn skip_white_space(&mut self) {
        if self.scanned == 0 {
            let spaces = self.buffer.iter().take_while(|byte| is_white_space(**byte)).count();
            self.buffer.drain(..spaces);
        }
        if self.buffer.is_empty() {
            // Given back: a connection may wait for hours without another request.
            self.buffer = Vec::new();
        }
    }

    /// Follows the structure by one byte; true when it closes the outermost bracket.
    fn ends_object(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// White space as JSON defines it (RFC 8259, section 2).
pub(super) fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything a stream yields when it is fed `pieces`.
    fn cut<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Vec<u8>>, Result<(), FramingError>) {
        let mut stream = JsonStream::default();
        let mut objects = Vec::new();
        for piece in pieces {
            stream.push(piece);
            loop {
                match stream.next_object() {
                    Ok(Some(object)) => objects.push(object),
                    Ok(None) => break,
                    Err(error) => return (objects, Err(error)),
                }
            }
        }
        let end = stream.finish();
        (objects, end)
    }

    #[test]
    fn objects_may_touch_and_hold_brackets_in_strings() {
        let input = br#" {"a":"}{\"\\"}{"b":[{}]}  {"c":1}"#;
        let (objects, end) = cut([&input[..]]);
        assert_eq!(objects, [&br#"{"a":"}{\"\\"}"#[..], br#"{"b":[{}]}"#, br#"{"c":1}"#]);
        assert_eq!(end, Ok(()));
    }

    #[test]
    fn what_is_no_object_is_refused_at_its_first_byte() {
        assert_eq!(cut([&b"\n x"[..]]).1, Err(FramingError::NotAnObject));
        assert_eq!(cut([&b"[1]"[..]]).1, Err(FramingError::NotAnObject));
        assert_eq!(cut([&b"{}}"[..]]), (vec![b"{}".to_vec()], Err(FramingError::NotAnObject)));
        assert_eq!(cut([&b"{\"id\":"[..]]).1, Err(FramingError::Incomplete));
    }

    #[test]
    fn the_largest_request_passes_and_one_byte_more_does_not() {
        let request = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8)).into_bytes();
        assert_eq!(request(MAX_REQUEST).len(), MAX_REQUEST);
        assert_eq!(cut([&request(MAX_REQUEST)[..]]).0.len(), 1);
        assert_eq!(cut([&request(MAX_REQUEST + 1)[..]]).1, Err(FramingError::TooLarge));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_objects(
            input in prop::collection::vec(
                prop::sample::select(&b"{}[]\"\\ \n:,a1"[..]), 0..200),
            cuts in prop::collection::vec(0usize..200, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(input.len())).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(pieces), cut([&input[..]]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (objects, _) = cut([&input[..]]);
            let intact = objects.iter().all(|object| object.first() == Some(&b'{'));
            prop_assert!(intact);
        }
    }
}
