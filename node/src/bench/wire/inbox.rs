//! Takes the bytes of a connection apart: pieces of messages for the check, and what else there is.

use anyhow::{bail, ensure};

use super::Check;
use super::frame::{Head, Opcode};
use super::message::Kind;

/// The largest payload of a control frame.
const CONTROL: u64 = 125;

/// What came besides messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Ping(Vec<u8>),
    /// The server has closed, with this code if it said one.
    Close(Option<u16>),
}

/// The frame that the next payload belongs to.
struct Current {
    opcode: Opcode,
    is_last: bool,
    rest: u64,
}

/// The reading side of a connection.
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    frame: Option<Current>,
    control: Vec<u8>,
    /// A message of several frames has begun.
    is_within: bool,
}

impl Inbox {
    pub(crate) fn new(capacity: usize) -> Self {
        let buffer = vec![0; capacity];
        Self { buffer, start: 0, end: 0, frame: None, control: Vec::new(), is_within: false }
    }

    /// Where to read to. There is always room once what is complete was taken out.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buffer[self.end..]
    }

    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Of a request's answer: all up to and with `end`.
    pub(crate) fn take_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        let data = &self.buffer[self.start..self.end];
        let place = data.windows(end.len()).position(|bytes| bytes == end)?;
        self.take(place + end.len())
    }

    pub(crate) fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let taken = self.buffer[self.start..self.end].get(..bytes)?.to_vec();
        self.start += bytes;
        Some(taken)
    }

    /// Returns a message of one frame, before the tunnel is established.
    pub(crate) fn take_message(&mut self) -> anyhow::Result<Option<(Opcode, Vec<u8>)>> {
        let Some(head) = Head::parse(&self.buffer[self.start..self.end])? else { return Ok(None) };
        ensure!(head.is_last, "a message in pieces");
        let end = head.length + usize::try_from(head.payload)?;
        ensure!(end <= self.buffer.len(), "a message of {} bytes", head.payload);
        let frame = self.take(end);
        Ok(frame.map(|frame| (head.opcode, frame[head.length..].to_vec())))
    }

    /// Checks buffered messages, up to a frame that is not part of a message.
    pub(crate) fn digest(&mut self, check: &mut Check) -> anyhow::Result<Option<Incoming>> {
        if check.kind() == Kind::Bytes {
            check.piece(&self.buffer[self.start..self.end])?;
            self.start = self.end;
            return Ok(None);
        }
        loop {
            if self.frame.is_none() && !self.next_frame(check.kind())? {
                return Ok(None);
            }
            if let Some(incoming) = self.payload(check)? {
                return Ok(Some(incoming));
            }
            if self.frame.is_some() {
                return Ok(None);
            }
        }
    }

    /// False: its head is not there yet.
    fn next_frame(&mut self, kind: Kind) -> anyhow::Result<bool> {
        let Some(head) = Head::parse(&self.buffer[self.start..self.end])? else {
            return Ok(false);
        };
        self.start += head.length;
        match (head.opcode, kind) {
            (Opcode::Text, Kind::Text) | (Opcode::Binary, Kind::Binary) => {
                ensure!(!self.is_within, "a message within a message");
            }
            (Opcode::Text | Opcode::Binary, _) => bail!("a message became {:?}", head.opcode),
            (Opcode::Continuation, _) => ensure!(self.is_within, "a piece of no message"),
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {
                ensure!(head.payload <= CONTROL, "a control frame of {} bytes", head.payload);
            }
        }
        if !head.opcode.is_control() {
            self.is_within = !head.is_last;
        }
        let Head { opcode, is_last, payload, .. } = head;
        self.frame = Some(Current { opcode, is_last, rest: payload });
        Ok(true)
    }

    fn payload(&mut self, check: &mut Check) -> anyhow::Result<Option<Incoming>> {
        let Some(frame) = &mut self.frame else { return Ok(None) };
        let there = self.end - self.start;
        let now = usize::try_from(frame.rest).map_or(there, |rest| rest.min(there));
        let data = &self.buffer[self.start..self.start + now];
        self.start += now;
        frame.rest -= now as u64;
        let (opcode, is_over) = (frame.opcode, frame.rest == 0);
        if opcode.is_control() {
            self.control.extend_from_slice(data);
        } else {
            check.piece(data)?;
        }
        if !is_over {
            return Ok(None);
        }
        let ends_message = frame.is_last && !opcode.is_control();
        self.frame = None;
        if ends_message {
            check.end()?;
        }
        let control = std::mem::take(&mut self.control);
        Ok(match opcode {
            Opcode::Close => {
                Some(Incoming::Close(control.first_chunk().copied().map(u16::from_be_bytes)))
            }
            Opcode::Ping => Some(Incoming::Ping(control)),
            Opcode::Pong | Opcode::Text | Opcode::Binary | Opcode::Continuation => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Message, pack};
    use super::*;

    /// A frame as the server sends it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[first, length], payload].concat()
    }

    fn receive(size: usize, data: &[u8]) -> anyhow::Result<(u64, Vec<Incoming>)> {
        let message = Message::new(Kind::Binary, 40);
        let (mut inbox, mut check) = (Inbox::new(64), Check::new(&message));
        let mut incoming = Vec::new();
        for piece in data.chunks(size) {
            inbox.room()[..piece.len()].copy_from_slice(piece);
            inbox.filled(piece.len());
            while let Some(other) = inbox.digest(&mut check)? {
                incoming.push(other);
            }
        }
        Ok((check.received(), incoming))
    }

    #[test]
    fn messages_may_come_in_frames_and_reads_of_any_size() {
        let message = Message::new(Kind::Binary, 40);
        let (one, two) = (message.numbered(0), message.numbered(1));
        let data = [
            frame(0x02, &one[..10]),
            frame(0x89, b"ping"),
            frame(0x00, &one[10..]),
            frame(0x80, b""),
            frame(0x8a, b"pong"),
            frame(0x82, &two),
            frame(0x88, &1001_u16.to_be_bytes()),
        ]
        .concat();
        let incoming = [Incoming::Ping(b"ping".to_vec()), Incoming::Close(Some(1001))];
        for size in [1, 2, 3, 50] {
            let (received, came) = receive(size, &data).expect("as sent");
            assert_eq!((received, &came[..]), (2, &incoming[..]), "{size}");
        }
    }

    #[test]
    fn another_kind_of_message_is_an_error() {
        let message = Message::new(Kind::Binary, 40).numbered(0);
        assert!(receive(50, &frame(0x81, &message)).is_err());
        assert!(receive(50, &frame(0x80, &message)).is_err());
        assert!(receive(50, &pack(Opcode::Binary, &message)).is_err());
    }
}
