//! Makes keys of the bytes that a terminal sends for them.
//!
//! The bytes are read here and not by crossterm: its reader goes on for ever, with a core of its
//! own, when the terminal is gone.

use std::io::{self, ErrorKind, Read};
use std::thread;

use tokio::sync::mpsc::{Receiver, channel};

/// The most keys in the queue. While it is full, the terminal is not read.
const BACKLOG: usize = 16;
/// Far longer than any sequence that means something here.
const LONGEST: usize = 32;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C, Ctrl-D or Ctrl-\.
    Interrupt,
    /// Ctrl-L.
    Redraw,
}

/// Reads standard input in a thread of its own. The channel ends with the terminal.
pub(crate) fn read() -> Receiver<Vec<u8>> {
    let (pieces, receiver) = channel(BACKLOG);
    thread::spawn(move || {
        let mut piece = [0; 256];
        loop {
            let read = match io::stdin().lock().read(&mut piece) {
                // The end, or EIO: the terminal is gone.
                Ok(0) => return,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if pieces.blocking_send(piece[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Takes bytes in any pieces.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The beginning of a key.
    pending: Vec<u8>,
}

impl Decoder {
    /// All keys that are complete with these bytes.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        for &byte in piece {
            self.pending.push(byte);
            match interpret(&self.pending) {
                Meaning::Incomplete if self.pending.len() < LONGEST => continue,
                Meaning::Incomplete | Meaning::Nothing => {}
                Meaning::Key(key) => keys.push(key),
                Meaning::EscapeAnd(last) => {
                    keys.push(Key::Escape);
                    self.pending.clear();
                    keys.extend(self.push(&[last]));
                    continue;
                }
            }
            self.pending.clear();
        }
        keys
    }

    /// Whether the key may still turn out to be another one.
    pub(crate) fn is_within(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing more has come for a while: what began a sequence was the key itself.
    pub(crate) fn pause(&mut self) -> Option<Key> {
        let pending = std::mem::take(&mut self.pending);
        (pending == [0x1B]).then_some(Key::Escape)
    }
}

enum Meaning {
    Key(Key),
    /// Escape, and then the first byte of something else.
    EscapeAnd(u8),
    Nothing,
    Incomplete,
}

fn interpret(bytes: &[u8]) -> Meaning {
    match *bytes {
        [0x1B] | [0x1B, b'[' | b'O'] => Meaning::Incomplete,
        [0x1B, b'[' | b'O', ref parameters @ .., last] => match last {
            b'0'..=b'?' | b' '..=b'/' => Meaning::Incomplete,
            _ => sequence(parameters, last).map_or(Meaning::Nothing, Meaning::Key),
        },
        [0x1B, other, ..] => Meaning::EscapeAnd(other),
        [b'\r' | b'\n'] => Meaning::Key(Key::Enter),
        [b'\t'] => Meaning::Key(Key::Tab),
        [0x7F | 0x08] => Meaning::Key(Key::Backspace),
        [0x03 | 0x04 | 0x1C] => Meaning::Key(Key::Interrupt),
        [0x0C] => Meaning::Key(Key::Redraw),
        _ => match str::from_utf8(bytes) {
            Ok(text) => match text.chars().next() {
                Some(char) if !char.is_control() => Meaning::Key(Key::Char(char)),
                _ => Meaning::Nothing,
            },
            Err(error) if error.error_len().is_none() => Meaning::Incomplete,
            Err(_) => Meaning::Nothing,
        },
    }
}

/// What xterm and the Linux console send; with modifiers, too.
fn sequence(parameters: &[u8], last: u8) -> Option<Key> {
    let first = parameters.split(|byte| *byte == b';').next();
    Some(match (last, first) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'H', _) | (b'~', Some(b"1" | b"7")) => Key::Home,
        (b'F', _) | (b'~', Some(b"4" | b"8")) => Key::End,
        (b'~', Some(b"5")) => Key::PageUp,
        (b'~', Some(b"6")) => Key::PageDown,
        (b'M', _) => Key::Enter,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_any_pieces() {
        let typed = "aü€\r\t\x7f\x1b[A\x1bOB\x1b[5~\x1b[1;5H\x1b[6~\x1b[4~\x1b[200~\x03q";
        let expected = [
            Key::Char('a'),
            Key::Char('ü'),
            Key::Char('€'),
            Key::Enter,
            Key::Tab,
            Key::Backspace,
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::Home,
            Key::PageDown,
            Key::End,
            Key::Interrupt,
            Key::Char('q'),
        ];
        for size in 1..=typed.len() {
            let mut decoder = Decoder::default();
            let pieces = typed.as_bytes().chunks(size);
            let keys: Vec<_> = pieces.flat_map(|piece| decoder.push(piece)).collect();
            assert_eq!(keys, expected, "in pieces of {size}");
            assert!(!decoder.is_within());
        }
    }

    #[test]
    fn escape_is_a_key_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"\x1b"), []);
        assert!(decoder.is_within());
        assert_eq!(decoder.pause(), Some(Key::Escape));
        assert_eq!(decoder.push(b"\x1bq"), [Key::Escape, Key::Char('q')]);
        assert_eq!(decoder.push(b"\x1b\x1b"), [Key::Escape]);
        assert_eq!(decoder.push(b"[A"), [Key::Up]);
    }

    #[test]
    fn what_means_nothing_is_skipped() {
        let mut decoder = Decoder::default();
        for nothing in [&b"\xff"[..], b"\xc3\x28", b"\x01", b"\x1b[?1;2c", &[b'\x1b'; 0]] {
            assert_eq!(decoder.push(nothing), [], "{nothing:?}");
            assert!(!decoder.is_within(), "{nothing:?}");
        }
        let endless = [&b"\x1b["[..], &[b'1'; 1000]].concat();
        decoder.push(&endless);
        assert!(decoder.pending.len() < LONGEST);
    }
}
