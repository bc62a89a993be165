//! Frames against bytes written down, and against a decoder that is too simple to be wrong.

use proptest::prelude::*;

use super::*;

/// Everything a decoder makes of `pieces`.
fn decode<'a>(whole: usize, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut decoder = Decoder::with_limit(whole);
    let mut events = Vec::new();
    for mut piece in pieces {
        while let Some(event) = decoder.next_event(&mut piece) {
            events.push(event);
        }
        assert!(piece.is_empty() && decoder.held.len() <= ADDRESS_SIZE + whole);
    }
    events
}

fn encoded(address: u16, data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    encode(address, data, &mut out);
    out
}

fn data(address: u16, data: &[u8], last: bool) -> Event {
    Event::Data { address, data: Bytes::copy_from_slice(data), last }
}

fn broken(address: Option<u16>, passed_on: usize) -> Event {
    Event::Abandoned { address, passed_on, fault: Fault::BadEscape }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Whole(u16, Vec<u8>),
    /// What was passed on before it broke.
    Broken(Vec<u8>),
}

/// Puts the pieces of frames together again, and checks their order and size.
fn outcomes(whole: usize, events: Vec<Event>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut open: Option<(u16, Vec<u8>)> = None;
    for event in events {
        match event {
            Event::Data { address, data, last } => {
                assert!(data.len() <= whole);
                let (of, mut sum) = open.take().unwrap_or((address, Vec::new()));
                assert_eq!(of, address);
                sum.extend_from_slice(&data);
                if last {
                    outcomes.push(Outcome::Whole(address, sum));
                } else {
                    open = Some((address, sum));
                }
            }
            Event::Abandoned { address, passed_on, .. } => {
                let (of, sum) = open.take().unzip();
                assert!(of.is_none() || of == address);
                let sum = sum.unwrap_or_default();
                assert_eq!(sum.len(), passed_on);
                outcomes.push(Outcome::Broken(sum));
            }
        }
    }
    outcomes
}

/// A reference decoder, a byte at a time, from all the input at once. The data of a broken frame
/// before its fault is an upper bound of what may have been passed on.
fn by_the_book(input: &[u8]) -> Vec<Outcome> {
    let complete = input.iter().rposition(|byte| *byte == 0xC0).map_or(0, |at| at + 1);
    let mut outcomes = Vec::new();
    for frame in input[..complete].split_inclusive(|byte| *byte == 0xC0) {
        let mut payload = Vec::new();
        let mut bytes = frame[..frame.len() - 1].iter();
        let intact = loop {
            match bytes.next() {
                None => break payload.len() != 1,
                Some(0xDB) => match bytes.next() {
                    Some(0xDC) => payload.push(0xC0),
                    Some(0xDD) => payload.push(0xDB),
                    _ => break false,
                },
                Some(other) => payload.push(*other),
            }
        };
        match payload.split_first_chunk() {
            Some((address, data)) if intact => {
                outcomes.push(Outcome::Whole(u16::from_be_bytes(*address), data.to_vec()));
            }
            None if intact => {}
            Some((_, data)) => outcomes.push(Outcome::Broken(data.to_vec())),
            None => outcomes.push(Outcome::Broken(Vec::new())),
        }
    }
    outcomes
}

#[test]
fn frames_are_these_bytes() {
    assert_eq!(encoded(1, b"hi")[..], *b"\x00\x01hi\xC0");
    assert_eq!(encoded(0xC0DB, b"\xC0\xDB")[..], *b"\xDB\xDC\xDB\xDD\xDB\xDC\xDB\xDD\xC0");
    assert_eq!(encoded(0, b"")[..], *b"\x00\x00\xC0");
    let mut out = BytesMut::from(&b"before"[..]);
    start_frame(2, &mut out);
    push_data(b"a\xC0", &mut out);
    push_data(b"b", &mut out);
    end_frame(&mut out);
    assert_eq!(out[..], *b"before\x00\x02a\xDB\xDCb\xC0");
}

#[test]
fn frames_come_out_whole() {
    let input = b"\x00\x01hi\xC0\x00\x02\xC0\xDB\xDC\xDB\xDDx\xDB\xDC\xC0";
    let expected = [data(1, b"hi", true), data(2, b"", true), data(0xC0DB, b"x\xC0", true)];
    assert_eq!(decode(64, [&input[..]]), expected);
    assert_eq!(decode(64, input.chunks(1)), expected);
}

#[test]
fn a_frame_is_not_seen_before_its_end() {
    assert_eq!(decode(64, [&b"\x00\x01almost"[..]]), []);
}

#[test]
fn empty_frames_are_skipped_and_a_single_byte_is_dropped() {
    let event = Event::Abandoned { address: None, passed_on: 0, fault: Fault::NoAddress };
    assert_eq!(
        decode(64, [&b"\xC0\xC0\x00\xC0\xC0\x00\x01a\xC0"[..]]),
        [event, data(1, b"a", true)]
    );
}

#[test]
fn a_bad_escape_drops_that_frame_only() {
    let input = b"\x00\x01a\xC0\x00\x02b\xDBb\xDB\xDBb\xC0\x00\x03c\xC0";
    let expected = [data(1, b"a", true), broken(Some(2), 0), data(3, b"c", true)];
    assert_eq!(decode(64, [&input[..]]), expected);
    assert_eq!(decode(64, input.chunks(1)), expected);
}

#[test]
fn an_end_behind_an_escape_is_a_bad_escape_and_an_end() {
    let input = b"\x00\x01a\xDB\xC0\x00\x02b\xC0\xDB\xC0\x00\x03\xC0";
    let expected = [broken(Some(1), 0), data(2, b"b", true), broken(None, 0), data(3, b"", true)];
    assert_eq!(decode(64, [&input[..]]), expected);
    assert_eq!(decode(64, input.chunks(1)), expected);
}

#[test]
fn a_frame_up_to_the_limit_is_whole_and_one_byte_more_is_not() {
    assert_eq!(decode(4, [&b"\x00\x01abcd\xC0"[..]]), [data(1, b"abcd", true)]);
    assert_eq!(decode(4, [&b"\x00\x01abcd"[..]]), []);
    assert_eq!(
        decode(4, [&b"\x00\x01abcdefghij"[..], b"k", b"\xC0"]),
        [
            data(1, b"abcd", false),
            data(1, b"efgh", false),
            data(1, b"ij", false),
            data(1, b"k", false),
            data(1, b"", true),
        ]
    );
}

#[test]
fn a_large_frame_that_breaks_is_abandoned() {
    assert_eq!(decode(4, [&b"\x00\x01abcd\xDBx\xC0"[..]]), [broken(Some(1), 0)]);
    assert_eq!(
        decode(4, [&b"\x00\x01abcdef\xDBx\xDB\xC0\x00\x02a\xC0"[..]]),
        [data(1, b"abcd", false), broken(Some(1), 4), data(2, b"a", true),]
    );
}

#[test]
fn what_is_behind_an_event_stays_in_the_input() {
    let mut input = Bytes::from_static(b"\x00\x01a\xC0\x00\x02b\xC0");
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next_event(&mut input), Some(data(1, b"a", true)));
    assert_eq!(input, &b"\x00\x02b\xC0"[..]);
}

#[test]
fn a_huge_frame_needs_little_memory() {
    let piece = vec![b'x'; 1 << 20];
    let mut decoder = Decoder::default();
    let mut total = 0;
    for input in std::iter::once(&b"\x00\x01"[..]).chain([&piece[..]; 32]).chain([&b"\xC0"[..]]) {
        let mut input = input;
        while let Some(Event::Data { data, .. }) = decoder.next_event(&mut input) {
            assert!(data.len() <= WHOLE_FRAME && decoder.held.capacity() <= 2 * WHOLE_FRAME);
            total += data.len();
        }
    }
    assert_eq!(total, 32 << 20);
    assert_eq!(decoder.held.capacity(), 0, "an idle decoder must hold nothing");
}

/// Bytes of which many mean something.
fn noise(size: usize) -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(&[0xC0, 0xDB, 0xDC, 0xDD, 0x00, b'x'][..]);
    prop::collection::vec(prop_oneof![4 => special, 1 => any::<u8>()], 0..size)
}

fn pieces<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|at| at % (input.len() + 1)).collect();
    cuts.extend([0, input.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn frames_of_several_addresses_survive_any_split(
        frames in prop::collection::vec((any::<u16>(), noise(300)), 0..20),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
        whole in 1_usize..400,
    ) {
        let mut stream = BytesMut::new();
        for (address, data) in &frames {
            encode(*address, data, &mut stream);
        }
        let expected: Vec<_> =
            frames.into_iter().map(|(address, data)| Outcome::Whole(address, data)).collect();
        let events = decode(whole, pieces(&stream, &cuts));
        prop_assert_eq!(outcomes(whole, events), expected);
    }

    #[test]
    fn garbage_costs_no_more_than_its_own_frames(
        input in noise(400),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
        whole in 1_usize..12,
    ) {
        // The END makes an end of a frame that is still open.
        let input = [&input[..], b"\xC0"].concat();
        let found = outcomes(whole, decode(whole, pieces(&input, &cuts)));
        let expected = by_the_book(&input);
        prop_assert_eq!(found.len(), expected.len());
        for (found, expected) in found.into_iter().zip(expected) {
            match (found, expected) {
                (Outcome::Broken(found), Outcome::Broken(good)) => {
                    prop_assert!(good.starts_with(&found));
                    prop_assert!(good.len() > whole || found.is_empty());
                }
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }

    #[test]
    fn all_byte_values_pass(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        let all: Vec<u8> = (0..=255).chain(data).collect();
        let stream = encoded(7, &all);
        prop_assert_eq!(memchr(END, &stream), Some(stream.len() - 1));
        let event = Event::Data { address: 7, data: all.into(), last: true };
        prop_assert_eq!(decode(WHOLE_FRAME, [&stream[..]]), vec![event]);
    }
}
