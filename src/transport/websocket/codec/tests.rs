//! The codec beside tungstenite's, which serves as the reference: the same bytes in, the same
//! messages out, whatever the pieces in which they come.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Message, protocol};

use super::{Event, Reader, Violation, mask};
use crate::protocol::{Chunk, Kind};

const LIMIT: usize = 40_000;

/// What came of some bytes: what was read in order, and how it ended, if it did.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    messages: Vec<Seen>,
    end: Option<End>,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
}

#[derive(Debug, PartialEq)]
enum End {
    Close(Option<u16>),
    Protocol,
    TooLarge,
    NotText,
}

/// Reads with the codec; the bytes come in pieces of this size.
fn ours(bytes: &[u8], piece: usize) -> Outcome {
    let mut reader = Reader::new(LIMIT as u64);
    let (mut inbox, mut outcome) = (BytesMut::new(), Outcome::default());
    let mut begun: Option<(Kind, Vec<u8>)> = None;
    for piece in bytes.chunks(piece) {
        inbox.extend_from_slice(piece);
        loop {
            let seen = match reader.next(&mut inbox) {
                Ok(None) => break,
                Ok(Some(Event::Data(Chunk { kind, data, last }))) => {
                    let (begun_as, mut message) = begun.take().unwrap_or((kind, Vec::new()));
                    assert_eq!(begun_as, kind, "the kind of a message changed within it");
                    message.extend_from_slice(&data);
                    if !last {
                        begun = Some((kind, message));
                        continue;
                    }
                    match kind {
                        Kind::Text => Seen::Text(message),
                        Kind::Binary | Kind::Stream => Seen::Binary(message),
                    }
                }
                Ok(Some(Event::Ping(payload))) => Seen::Ping(payload.to_vec()),
                Ok(Some(Event::Pong)) => Seen::Pong,
                Ok(Some(Event::Empty)) => continue,
                Ok(Some(Event::Close(code))) => {
                    outcome.end = Some(End::Close(code));
                    return outcome;
                }
                Err(violation) => {
                    outcome.end = Some(match violation {
                        Violation::Protocol(_) => End::Protocol,
                        Violation::TooLarge => End::TooLarge,
                        Violation::NotText => End::NotText,
                    });
                    return outcome;
                }
            };
            outcome.messages.push(seen);
        }
        assert!(inbox.len() < 17 * 1024, "{} bytes are collected", inbox.len());
    }
    outcome
}

/// Bytes to be read; writes are discarded.
struct Stream<'a>(&'a [u8]);

impl Read for Stream<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self.0.read(space)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn reference(bytes: &[u8]) -> Outcome {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT))
        .write_buffer_size(0);
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let (mut stream, mut outcome) = (Stream(bytes), Outcome::default());
    loop {
        let seen = match context.read(&mut stream) {
            Ok(Message::Text(text)) => Seen::Text(text.as_bytes().to_vec()),
            Ok(Message::Binary(data)) => Seen::Binary(data.to_vec()),
            Ok(Message::Ping(payload)) => Seen::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Seen::Pong,
            Ok(Message::Frame(_)) => unreachable!("it is never read"),
            // So it says that the code of the goodbye is not allowed.
            Ok(Message::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                outcome.end = Some(End::Protocol);
                return outcome;
            }
            Ok(Message::Close(frame)) => {
                let code = frame.map(|frame: protocol::CloseFrame| frame.code.into());
                outcome.end = Some(End::Close(code));
                return outcome;
            }
            Err(WsError::Io(_)) => return outcome,
            Err(error) => {
                outcome.end = Some(match error {
                    WsError::Capacity(_) => End::TooLarge,
                    WsError::Utf8(_) => End::NotText,
                    _ => End::Protocol,
                });
                return outcome;
            }
        };
        outcome.messages.push(seen);
    }
}

/// A client's frame, right or wrong.
#[derive(Clone, Debug)]
struct Frame {
    first: u8,
    is_masked: bool,
    mask: [u8; 4],
    payload: Vec<u8>,
}

impl Frame {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.first);
        let masked = if self.is_masked { 0x80 } else { 0 };
        let length = self.payload.len();
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ 0..126), _) => bytes.push(masked + short),
            (_, Ok(medium)) => {
                bytes.push(masked + 126);
                bytes.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                bytes.push(masked + 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let mut payload = self.payload.clone();
        if self.is_masked {
            bytes.extend_from_slice(&self.mask);
            mask::apply(&mut payload, self.mask);
        }
        bytes.extend_from_slice(&payload);
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-zäöü水🦀 ]{0,40}".prop_map(String::into_bytes),
        // Cut anywhere: also within a code point.
        2 => ("[äöü水🦀]{1,20}", any::<prop::sample::Index>()).prop_map(|(text, cut)| {
            let mut text = text.into_bytes();
            text.truncate(cut.index(text.len()) + 1);
            text
        }),
        2 => vec(any::<u8>(), 0..200),
        1 => (100_usize..140).prop_map(|length| vec![b'x'; length]),
        1 => (16_300_usize..16_500).prop_map(|length| vec![b'y'; length]),
        1 => (65_000_usize..66_000).prop_map(|length| vec![b'z'; length]),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let first = prop_oneof![
        // Whole messages, their beginnings and their ends.
        8 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x80, 0x80]),
        3 => prop::sample::select(vec![0x89, 0x8a]),
        1 => Just(0x88),
        1 => prop::sample::select(vec![0x09, 0x08, 0x83, 0x8b, 0xc1, 0x91, 0xa2]),
    ];
    let masked = prop::bool::weighted(0.99);
    let code = prop_oneof![
        prop::sample::select(vec![1000_u16, 1001, 1002, 1005, 1006, 1011, 1015, 3000, 4999, 5000]),
        any::<u16>(),
    ];
    (first, masked, any::<[u8; 4]>(), payload(), code).prop_map(
        |(first, is_masked, mask, mut payload, code)| {
            if first & 0x0f == 0x8 && payload.len() % 8 != 0 {
                payload.splice(0..0, code.to_be_bytes());
            }
            if first & 0x08 != 0 && payload.len() % 16 != 0 {
                payload.truncate(125);
            }
            Frame { first, is_masked, mask, payload }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_same_bytes_are_the_same_messages(frames in vec(frame(), 1..12), piece in 1_usize..20_000) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes);
        }
        let expected = reference(&bytes);
        for piece in [piece, 1 + piece % 7, bytes.len()] {
            let mut ours = ours(&bytes, piece);
            // A frame may be wrong in two ways; the codec may report either.
            if ours.end == Some(End::Protocol) && expected.end == Some(End::TooLarge) {
                ours.end = Some(End::TooLarge);
            }
            prop_assert_eq!(&ours, &expected, "in pieces of {}", piece);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..2000), piece in 1_usize..500) {
        ours(&bytes, piece);
    }
}

/// The bytes of some frames.
fn bytes_of(frames: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (first, payload) in frames {
        let frame =
            Frame { first: *first, is_masked: true, mask: [1, 2, 3, 4], payload: payload.to_vec() };
        frame.write(&mut bytes);
    }
    bytes
}

#[test]
fn a_large_message_is_passed_on_as_it_comes() {
    let message = vec![7; LIMIT];
    let bytes = bytes_of(&[(0x82, &message)]);
    let mut reader = Reader::new(LIMIT as u64);
    let mut inbox = BytesMut::from(&bytes[..20_000]);
    let Ok(Some(Event::Data(piece))) = reader.next(&mut inbox) else { panic!("a piece") };
    assert!(!piece.last && piece.data.len() > 19_000 && inbox.is_empty());
    inbox.extend_from_slice(&bytes[20_000..]);
    let Ok(Some(Event::Data(rest))) = reader.next(&mut inbox) else { panic!("the rest") };
    assert!(rest.last);
    assert_eq!(piece.data.len() + rest.data.len(), LIMIT);
    assert!(piece.data.iter().chain(&rest.data).all(|byte| *byte == 7));
}

#[test]
fn control_frames_may_stand_between_the_frames_of_a_message() {
    let bytes = bytes_of(&[(0x01, b"Hel"), (0x89, b"?"), (0x00, b""), (0x8a, b"!"), (0x80, b"lo")]);
    let messages = vec![Seen::Ping(b"?".to_vec()), Seen::Pong, Seen::Text(b"Hello".to_vec())];
    let expected = Outcome { messages, end: None };
    for piece in 1..=bytes.len() {
        assert_eq!(ours(&bytes, piece), expected, "in pieces of {piece}");
    }
}

#[test]
fn the_limit_counts_all_frames_of_a_message() {
    let half = vec![0; LIMIT / 2];
    let fits = bytes_of(&[(0x02, &half), (0x80, &half)]);
    assert_eq!(ours(&fits, 1000).messages.len(), 1);
    let too_large = bytes_of(&[(0x02, &half), (0x00, &half), (0x80, b"x")]);
    assert_eq!(ours(&too_large, 1000).end, Some(End::TooLarge));
    // Said by the header alone.
    let announced = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert_eq!(ours(&announced, 3).end, Some(End::TooLarge));
}
