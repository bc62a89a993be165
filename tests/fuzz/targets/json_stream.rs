//! JSON messages that follow one another: however a stream is cut, the same objects come out of it,
//! as a JSON parser sees them, none larger than it may be; each byte is accounted for; and reading
//! them as requests ends in a request or an answer.

use nymea_remoteproxy::protocol::{FramingError, JsonStream, MAX_REQUEST, parse_request};
use serde_json::Value;

/// The first byte says how the others are cut.
pub(crate) fn run(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    let (objects, end) = cut_up([stream]);
    assert_eq!(cut_up(stream.chunks(usize::from(*cut).max(1))), (objects.clone(), end));

    let mut rest = stream;
    for object in &objects {
        assert!(object.len() <= MAX_REQUEST);
        rest = behind_white_space(rest);
        if let Some(size) = json_object(rest) {
            assert_eq!(object.len(), size, "a parser finds another end");
        }
        rest = rest.strip_prefix(&object[..]).expect("what comes next");
        match parse_request(object) {
            Ok(request) => assert!(!request.namespace.is_empty() && !request.method.is_empty()),
            Err(refusal) => assert!(refusal.to_message().ends_with("}\n")),
        }
    }
    let rest = behind_white_space(rest);
    if end.is_ok() {
        assert_eq!(rest, b"");
    }
    assert!(json_object(rest).is_none_or(|size| size > MAX_REQUEST), "an object was not found");
}

/// White space as JSON has it; ASCII has more.
fn behind_white_space(stream: &[u8]) -> &[u8] {
    let spaces = stream.iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
    &stream[spaces..]
}

/// The size of the JSON object at the beginning, if a parser sees one.
fn json_object(stream: &[u8]) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(stream).into_iter::<Value>();
    let is_object = values.next()?.ok()?.is_object();
    is_object.then_some(values.byte_offset())
}

fn cut_up<'a>(
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
