//! PROXY protocol headers: every beginning of one is incomplete, any other answer is final, and no
//! answer is out of bounds.

use nymea_remoteproxy::transport::proxy_protocol::{Header, parse};

/// Input that begins with a digit gets the beginning of a header, which is hard to find by chance:
/// `1` the one of a line, `2` that of a binary header.
pub(crate) fn run(input: &[u8]) {
    match input.split_first() {
        Some((b'1', rest)) => check(&[b"PROXY ", rest].concat()),
        Some((b'2', rest)) => check(&[b"\r\n\r\n\0\r\nQUIT\n", rest].concat()),
        Some(_) | None => check(input),
    }
}

fn check(input: &[u8]) {
    let answer = parse(input);
    match answer {
        Ok(Header::Incomplete) => {
            let most = if input.starts_with(b"P") { 107 } else { 4096 };
            assert!(input.len() < most);
        }
        Ok(Header::Complete { length, .. }) => {
            assert!(length <= input.len());
            assert_eq!(parse(&input[..length]), answer);
            assert_eq!(parse(&input[..length - 1]), Ok(Header::Incomplete));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // Two thirds of a header are one of its beginnings like any other.
    for cut in [input.len() / 3, input.len() * 2 / 3, input.len().saturating_sub(1)] {
        let earlier = parse(&input[..cut]);
        assert!(earlier == Ok(Header::Incomplete) || earlier == answer);
    }
}
