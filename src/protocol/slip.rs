//! SLIP (RFC 1055) as the tunnel proxy uses it (`README.md`, section 4): frames of a big-endian
//! socket address and data, on the stream of a registered gateway, in both directions.
//!
//! The session of a gateway feeds its [`Decoder`] with received data, in pieces of any size, and
//! writes with [`encode`]. Which addresses are in use, and the messages on address 0, are not known
//! here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use memchr::{memchr, memchr2};
use thiserror::Error;

const END: u8 = 0xC0;
const ESC: u8 = 0xDB;
const ESCAPED_END: u8 = 0xDC;
const ESCAPED_ESC: u8 = 0xDD;
const ADDRESS_SIZE: usize = size_of::<u16>();

/// The address of the proxy itself: JSON messages. As a request has at most
/// [`MAX_REQUEST`](super::MAX_REQUEST) bytes, an event for this address with more data than that,
/// or one that is not the `last`, is too large a request.
pub const PROXY_ADDRESS: u16 = 0;

/// The most data a frame can have to be passed on whole or not at all, by default.
pub const WHOLE_FRAME: usize = 64 * 1024;

/// An event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A frame, or a piece of a large one. The pieces of a frame follow one another without other
    /// events in between.
    Data {
        /// The client it is for.
        address: u16,
        /// At most [`WHOLE_FRAME`] bytes; may be empty.
        data: Bytes,
        /// Whether the frame ends here. A frame that is small enough is one event with `last`.
        last: bool,
    },
    /// A frame is broken. Its rest is dropped, and the next event belongs to another frame.
    Abandoned {
        /// The client it was for, if that was still to be seen.
        address: Option<u16>,
        /// The bytes of this frame passed on as [`Event::Data`] before: 0 except for large frames.
        /// The client has received these without the rest, and the stream cannot express that. If it
        /// was promised complete data, it must be closed.
        passed_on: usize,
        /// The fault of the frame.
        fault: Fault,
    },
}

/// A fault in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The byte after ESC was neither the escaped END nor the escaped ESC.
    #[error("a SLIP frame has a byte other than DC or DD after DB")]
    BadEscape,
    /// The frame has one byte, which is no complete address.
    #[error("a SLIP frame of one byte has no room for its socket address")]
    NoAddress,
}

/// Finds the frames in a stream of bytes.
///
/// A frame of up to [`WHOLE_FRAME`] bytes of data is held back until it is complete, so that a
/// broken one leaves no trace. A larger one is passed on in pieces from there on, so that a decoder
/// never holds more than that, however large a frame is. Empty frames are skipped. An incomplete frame
/// at the end of the stream is ignored: drop the decoder.
#[derive(Debug)]
pub struct Decoder {
    whole: usize,
    frame: Frame,
    /// Whether the last byte was ESC.
    escaped: bool,
    /// Decoded and not passed on; unless the frame is streamed, it begins with the address.
    held: BytesMut,
}

/// The frame that the next byte belongs to.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// The frame is held until it is complete; if it is broken, nothing of it is passed on.
    Held,
    /// The frame is too large to be held.
    Streamed { address: u16, passed_on: usize },
    /// The frame is broken.
    Skipped,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_limit(WHOLE_FRAME)
    }
}

impl Decoder {
    /// A decoder that holds frames of up to `whole` bytes of data (at least 1), instead of
    /// [`WHOLE_FRAME`].
    pub fn with_limit(whole: usize) -> Self {
        Self { whole: whole.max(1), frame: Frame::Held, escaped: false, held: BytesMut::new() }
    }

    /// Takes the bytes of the next event from `input`. Returns `None` when all of it was taken: call
    /// again with the next input. After an event, the rest of `input` may stay where it is for as long
    /// as there is no room for another event.
    pub fn next_event(&mut self, input: &mut impl Buf) -> Option<Event> {
        while input.has_remaining() {
            let chunk = input.chunk();
            if self.is_between_frames() && chunk[0] == END {
                // Empty frames, all at once.
                let empty = chunk.iter().take_while(|byte| **byte == END).count();
                input.advance(empty);
                continue;
            }
            let window = &chunk[..chunk.len().min(self.room())];
            let end = memchr(END, window);
            let raw = &window[..end.unwrap_or(window.len())];
            let (taken, intact) = (raw.len(), self.unescape(raw));
            input.advance(taken + usize::from(intact && end.is_some()));
            let event = if !intact {
                Some(self.abandon(Fault::BadEscape, Frame::Skipped))
            } else if end.is_some() {
                self.end_frame()
            } else if self.room() == 0 {
                Some(self.pass_on())
            } else {
                None
            };
            if event.is_some() {
                return event;
            }
        }
        let to_pass_on = matches!(self.frame, Frame::Streamed { .. }) && !self.held.is_empty();
        to_pass_on.then(|| self.pass_on())
    }

    fn is_between_frames(&self) -> bool {
        matches!(self.frame, Frame::Held) && self.held.is_empty() && !self.escaped
    }

    /// The bytes that can still be held; no input is larger decoded than encoded.
    fn room(&self) -> usize {
        let limit = match self.frame {
            // One more than is passed on whole: only that one tells that the frame is larger.
            Frame::Held => ADDRESS_SIZE + self.whole + 1,
            Frame::Streamed { .. } => self.whole,
            Frame::Skipped => usize::MAX,
        };
        limit - self.held.len()
    }

    /// Takes bytes of the current frame, without END; false if they break it.
    fn unescape(&mut self, mut raw: &[u8]) -> bool {
        if let Frame::Skipped = self.frame {
            return true;
        }
        self.held.reserve(raw.len());
        while let Some(&first) = raw.first() {
            if self.escaped {
                match first {
                    ESCAPED_END => self.held.put_u8(END),
                    ESCAPED_ESC => self.held.put_u8(ESC),
                    _ => return false,
                }
                self.escaped = false;
                raw = &raw[1..];
                continue;
            }
            let run = memchr(ESC, raw).unwrap_or(raw.len());
            self.held.extend_from_slice(&raw[..run]);
            self.escaped = run < raw.len();
            raw = &raw[run + usize::from(self.escaped)..];
        }
        true
    }

    fn end_frame(&mut self) -> Option<Event> {
        if self.escaped {
            return Some(self.abandon(Fault::BadEscape, Frame::Held));
        }
        let address = match self.frame {
            Frame::Held if self.held.is_empty() => return None,
            Frame::Held if self.held.len() < ADDRESS_SIZE => {
                return Some(self.abandon(Fault::NoAddress, Frame::Held));
            }
            Frame::Held => self.held.get_u16(),
            Frame::Streamed { address, .. } => address,
            Frame::Skipped => {
                self.frame = Frame::Held;
                return None;
            }
        };
        self.frame = Frame::Held;
        let data = std::mem::take(&mut self.held).freeze();
        Some(Event::Data { address, data, last: true })
    }

    /// Gives out a piece of a frame that is too large to be held.
    fn pass_on(&mut self) -> Event {
        let (address, before) = match self.frame {
            Frame::Streamed { address, passed_on } => (address, passed_on),
            Frame::Held | Frame::Skipped => (self.held.get_u16(), 0),
        };
        let mut data = std::mem::take(&mut self.held);
        if data.len() > self.whole {
            self.held.extend_from_slice(&data[self.whole..]);
            data.truncate(self.whole);
        }
        self.frame = Frame::Streamed { address, passed_on: before + data.len() };
        Event::Data { address, data: data.freeze(), last: false }
    }

    fn abandon(&mut self, fault: Fault, next: Frame) -> Event {
        let (address, passed_on) = match std::mem::replace(&mut self.frame, next) {
            Frame::Streamed { address, passed_on } => (Some(address), passed_on),
            Frame::Held | Frame::Skipped => (self.held.try_get_u16().ok(), 0),
        };
        self.escaped = false;
        self.held = BytesMut::new();
        Event::Abandoned { address, passed_on, fault }
    }
}

/// Appends a frame to `out`.
pub fn encode(address: u16, data: &[u8], out: &mut BytesMut) {
    start_frame(address, out);
    push_data(data, out);
    end_frame(out);
}

/// Begins a frame with data in pieces: [`push_data`] for each, then [`end_frame`].
pub fn start_frame(address: u16, out: &mut BytesMut) {
    push_data(&address.to_be_bytes(), out);
}

/// Appends a piece of the data of a frame that [`start_frame`] has begun.
pub fn push_data(mut data: &[u8], out: &mut BytesMut) {
    // Enough for random data, where every 128th byte needs two.
    out.reserve(data.len() + data.len() / 64 + ADDRESS_SIZE);
    while let Some(run) = memchr2(END, ESC, data) {
        out.extend_from_slice(&data[..run]);
        let escaped = if data[run] == END { ESCAPED_END } else { ESCAPED_ESC };
        out.extend_from_slice(&[ESC, escaped]);
        data = &data[run + 1..];
    }
    out.extend_from_slice(data);
}

/// Completes the frame that [`start_frame`] has begun.
pub fn end_frame(out: &mut BytesMut) {
    out.put_u8(END);
}

#[cfg(test)]
#[path = "slip_tests.rs"]
mod tests;
