//! SLIP frames: however a stream is cut, its events equal those of a decoder that is too simple to be
//! wrong; no event exceeds its limit; and decoded frames encode to the same stream.

use bytes::BytesMut;
use nymea_remoteproxy::protocol::slip::{Decoder, Event, encode};

/// So small that large frames are common.
const WHOLE: usize = 16;
const END: u8 = 0xC0;

/// The first byte says how the others are cut.
pub(crate) fn run(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    // The END makes an end of a frame that is still open.
    let stream = [stream, &[END]].concat();
    let expected = by_the_book(&stream);
    check(decode([&stream[..]]), &expected);
    check(decode(stream.chunks(usize::from(*cut).max(1))), &expected);
    for frame in &expected {
        if let Outcome::Whole(address, data) = frame {
            let mut stream = BytesMut::new();
            encode(*address, data, &mut stream);
            check(decode([&stream[..]]), std::slice::from_ref(frame));
        }
    }
}

/// What becomes of a frame.
#[derive(Debug)]
enum Outcome {
    Whole(u16, Vec<u8>),
    /// It breaks after this data.
    Broken(Vec<u8>),
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut decoder = Decoder::with_limit(WHOLE);
    let mut events = Vec::new();
    for mut piece in pieces {
        while let Some(event) = decoder.next_event(&mut piece) {
            events.push(event);
        }
        assert!(piece.is_empty());
    }
    events
}

/// A byte at a time, from all of the stream at once.
fn by_the_book(stream: &[u8]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for frame in stream.split_inclusive(|byte| *byte == END) {
        let mut payload = Vec::new();
        let mut bytes = frame[..frame.len() - 1].iter();
        let is_intact = loop {
            match bytes.next() {
                None => break payload.len() != 1,
                Some(0xDB) => match bytes.next() {
                    Some(0xDC) => payload.push(0xC0),
                    Some(0xDD) => payload.push(0xDB),
                    Some(_) | None => break false,
                },
                Some(other) => payload.push(*other),
            }
        };
        match payload.split_first_chunk() {
            Some((address, data)) if is_intact => {
                outcomes.push(Outcome::Whole(u16::from_be_bytes(*address), data.to_vec()));
            }
            Some((_, data)) => outcomes.push(Outcome::Broken(data.to_vec())),
            None if is_intact => {}
            None => outcomes.push(Outcome::Broken(Vec::new())),
        }
    }
    outcomes
}

fn check(events: Vec<Event>, expected: &[Outcome]) {
    let mut expected = expected.iter();
    let mut open: Option<(u16, Vec<u8>)> = None;
    for event in events {
        match event {
            Event::Data { address, data, last } => {
                assert!(data.len() <= WHOLE);
                let (of, sum) = open.get_or_insert((address, Vec::new()));
                assert_eq!(*of, address);
                sum.extend_from_slice(&data);
                if last {
                    let Some(Outcome::Whole(address, data)) = expected.next() else {
                        panic!("a frame to {of} where there is none")
                    };
                    assert_eq!(open.take(), Some((*address, data.clone())));
                }
            }
            Event::Abandoned { address, passed_on, .. } => {
                let (of, sum) = open.take().unzip();
                assert!(of.is_none() || of == address);
                let sum = sum.unwrap_or_default();
                assert_eq!(sum.len(), passed_on);
                let Some(Outcome::Broken(data)) = expected.next() else {
                    panic!("a broken frame to {address:?} where there is none")
                };
                assert!(data.starts_with(&sum) && (sum.is_empty() || data.len() > WHOLE));
            }
        }
    }
    assert!(open.is_none() && expected.next().is_none());
}
