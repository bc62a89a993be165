//! From the bytes of a client to [`Event`]s.

use bytes::{Buf, Bytes, BytesMut};

use super::utf8::Utf8;
use super::{Event, MAX_CONTROL, Opcode, Violation, mask};
use crate::protocol::{Chunk, Kind};

/// A frame of up to this size is passed on as a whole, a larger one in pieces.
const WHOLE: u64 = 16 * 1024;
/// The largest header: two bytes, a length of eight, a mask of four.
const MAX_HEADER: usize = 14;

/// Reads the frames of one client.
#[derive(Debug)]
pub(in super::super) struct Reader {
    /// The largest message, in bytes.
    pub(in super::super) limit: u64,
    frame: Option<Frame>,
    message: Option<Message>,
}

/// A frame after its header has been read.
#[derive(Debug)]
struct Frame {
    opcode: Opcode,
    is_final: bool,
    mask: [u8; 4],
    /// Payload that is still to come.
    rest: u64,
}

/// A message that is not complete yet.
#[derive(Debug)]
struct Message {
    kind: Kind,
    /// The payload of all its frames with a header that has been read.
    length: u64,
    text: Utf8,
}

impl Reader {
    pub(in super::super) fn new(limit: u64) -> Self {
        Self { limit, frame: None, message: None }
    }

    /// Whether a message has begun and not ended.
    pub(in super::super) fn is_within_message(&self) -> bool {
        self.message.is_some()
    }

    /// The next event in the inbox; `None` if more bytes are needed for one.
    pub(in super::super) fn next(
        &mut self,
        inbox: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        if self.frame.is_none() {
            let Some(frame) = read_header(inbox)? else { return Ok(None) };
            self.begin(&frame)?;
            self.frame = Some(frame);
        }
        let Some(frame) = &mut self.frame else { return Ok(None) };
        let available = frame.rest.min(inbox.len() as u64);
        let is_whole = available == frame.rest;
        if !is_whole && (frame.rest <= WHOLE || available == 0) {
            return Ok(None);
        }
        let payload = take(inbox, frame, available);
        let (opcode, is_final) = (frame.opcode, frame.is_final);
        if is_whole {
            self.frame = None;
        }
        Ok(Some(match opcode {
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                let last = is_whole && is_final;
                let kind = self.goes_on(&payload, last)?;
                if last || !payload.is_empty() {
                    Event::Data(Chunk { kind, data: payload, last })
                } else {
                    Event::Empty
                }
            }
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong,
            Opcode::Close => Event::Close(read_close(&payload)?),
        }))
    }

    /// Applies a frame header to the state of its message.
    fn begin(&mut self, frame: &Frame) -> Result<(), Violation> {
        let kind = match frame.opcode {
            Opcode::Text => Some(Kind::Text),
            Opcode::Binary => Some(Kind::Binary),
            Opcode::Continuation => None,
            Opcode::Close | Opcode::Ping | Opcode::Pong => return Ok(()),
        };
        let message = match (kind, &mut self.message) {
            (Some(kind), message @ None) => {
                message.insert(Message { kind, length: 0, text: Utf8::default() })
            }
            (None, Some(message)) => message,
            (Some(_), Some(_)) => {
                return Err(Violation::Protocol("a message begins within another one"));
            }
            (None, None) => {
                return Err(Violation::Protocol("a message goes on that has not begun"));
            }
        };
        message.length = message.length.saturating_add(frame.rest);
        if message.length > self.limit { Err(Violation::TooLarge) } else { Ok(()) }
    }

    /// Looks at a piece of the message, and forgets the message at its end.
    fn goes_on(&mut self, piece: &Bytes, last: bool) -> Result<Kind, Violation> {
        let Some(message) = &mut self.message else { return Ok(Kind::Binary) };
        let kind = message.kind;
        if kind == Kind::Text {
            let is_text = message.text.push(piece) && (!last || message.text.is_complete());
            if !is_text {
                return Err(Violation::NotText);
            }
        }
        if last {
            self.message = None;
        }
        Ok(kind)
    }
}

/// Takes so much of a frame's payload out of the inbox, without its mask.
fn take(inbox: &mut BytesMut, frame: &mut Frame, bytes: u64) -> Bytes {
    let Ok(length) = usize::try_from(bytes) else { return Bytes::new() };
    frame.mask = mask::apply(&mut inbox[..length], frame.mask);
    frame.rest -= bytes;
    inbox.split_to(length).freeze()
}

/// The header at the front of the inbox, if it is complete (RFC 6455, section 5.2).
fn read_header(inbox: &mut BytesMut) -> Result<Option<Frame>, Violation> {
    let &[first, second, ..] = &inbox[..] else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(Violation::Protocol("a frame uses bits that are reserved for extensions"));
    }
    if second & 0x80 == 0 {
        return Err(Violation::Protocol("a frame of the client has no mask"));
    }
    let (is_final, opcode) = (first & 0x80 != 0, Opcode::read(first & 0x0f)?);
    let is_control = matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong);
    if is_control && (!is_final || usize::from(second & 0x7f) > MAX_CONTROL) {
        return Err(Violation::Protocol("a control frame is fragmented or too large"));
    }
    let more = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if inbox.len() < MAX_HEADER - 8 + more {
        return Ok(None);
    }
    inbox.advance(2);
    let rest = match more {
        2 => inbox.get_u16().into(),
        8 => inbox.get_u64(),
        _ => (second & 0x7f).into(),
    };
    let mut mask = [0; 4];
    inbox.copy_to_slice(&mut mask);
    Ok(Some(Frame { opcode, is_final, mask, rest }))
}

/// The code of a goodbye (RFC 6455, section 5.5.1).
fn read_close(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(Violation::Protocol("the code of a goodbye is incomplete"))
        };
    };
    let code = u16::from_be_bytes(*code);
    if simdutf8::basic::from_utf8(reason).is_err() {
        return Err(Violation::NotText);
    }
    // Those that may be on the wire (RFC 6455, section 7.4, and the registry of IANA).
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("the code of a goodbye is not allowed"));
    }
    Ok(Some(code))
}
