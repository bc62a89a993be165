//! Headers written down as bytes, the specification's own examples among them.

use proptest::prelude::*;

use super::*;

fn complete(source: Option<&str>, length: usize) -> Header {
    let source = source.map(|source| source.parse().expect("address in a test"));
    Header::Complete { source, length }
}

/// A header of version 2.
fn binary(version_command: u8, family_transport: u8, rest: &[u8]) -> Vec<u8> {
    let size = u16::try_from(rest.len()).expect("small").to_be_bytes();
    [SIGNATURE, &[version_command, family_transport], &size, rest].concat()
}

const IPV4: &[u8] = &[192, 168, 0, 1, 192, 168, 0, 11, 0xDC, 0x04, 0x01, 0xBB];

fn ipv6() -> Vec<u8> {
    let (source, destination) = ("2001:db8::1", "2001:db8::2");
    let octets = |text: &str| text.parse::<Ipv6Addr>().expect("IPv6").octets();
    [&octets(source)[..], &octets(destination), &[0xDC, 0x04, 0x01, 0xBB]].concat()
}

#[test]
fn lines() {
    for (line, source) in [
        ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Some("192.168.0.1:56324")),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            Some("255.255.255.255:65535"),
        ),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", Some("1.2.3.4:0")),
        ("PROXY TCP6 2001:db8::1 ::1 56324 443\r\n", Some("[2001:db8::1]:56324")),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::1 56324 443\r\n", Some("192.0.2.7:56324")),
        (
            "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
             ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ),
        ("PROXY UNKNOWN\r\n", None),
        (
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
             ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            None,
        ),
        ("PROXY UNKNOWN \u{fc} whatever\r\n", None),
    ] {
        let stream = [line.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&stream), Ok(complete(source, line.len())), "{line}");
        for cut in 0..line.len() {
            assert_eq!(parse(&stream[..cut]), Ok(Header::Incomplete), "{line} cut at {cut}");
        }
    }
}

#[test]
fn lines_that_are_wrong() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 1.2.3.4\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        "PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4\t5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
        "PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP6 [::1] ::1 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 -2\r\n",
        "PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY unknown\r\n",
        "PROXY TCP4 1.2.3.\u{fc} 5.6.7.8 1 2\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(HeaderError::Line), "{line}");
    }
    for line in ["PROXY UNKNOWN\n", "PROXY UNKNOWN\rX", "PROXY UNKNOWN\r\r\n"] {
        assert_eq!(parse(line.as_bytes()), Err(HeaderError::LineEnd), "{line}");
    }
}

#[test]
fn a_line_has_107_bytes_at_most() {
    let line = |size: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(size - 16)).into_bytes();
    assert_eq!(parse(&line(107)), Ok(complete(None, 107)));
    assert_eq!(parse(&line(107)[..106]), Ok(Header::Incomplete));
    assert_eq!(parse(&line(108)), Err(HeaderError::LineEnd));
    assert_eq!(parse(&line(500)[..107]), Err(HeaderError::LineEnd));
}

#[test]
fn what_is_no_header_is_refused_at_once() {
    for start in ["G", "\x16\x03\x01", "{", "PX", "PROXYT", "proxy ", "\r\n\r\n\0\r\nQUIX", "\n"] {
        assert_eq!(parse(start.as_bytes()), Err(HeaderError::Missing), "{start:?}");
    }
    assert_eq!(parse(b""), Ok(Header::Incomplete));
}

#[test]
fn binary_headers() {
    let unix = [b'/'; UNIX_BLOCK];
    let ipv6 = ipv6();
    for (header, source) in [
        (binary(0x21, 0x11, IPV4), Some("192.168.0.1:56324")),
        (binary(0x21, 0x21, &ipv6), Some("[2001:db8::1]:56324")),
        // UDP, a unix socket, and what the load balancer does not know.
        (binary(0x21, 0x12, IPV4), None),
        (binary(0x21, 0x10, IPV4), None),
        (binary(0x21, 0x22, &ipv6), None),
        (binary(0x21, 0x31, &unix), None),
        (binary(0x21, 0x32, &unix), None),
        (binary(0x21, 0x00, b""), None),
        (binary(0x21, 0x00, b"anything"), None),
        (binary(0x21, 0x01, b"anything"), None),
        // LOCAL, with any address.
        (binary(0x20, 0x00, b""), None),
        (binary(0x20, 0x11, IPV4), None),
        (binary(0x20, 0xFF, b"anything"), None),
    ] {
        let stream = [&header[..], b"\x16\x03\x01"].concat();
        assert_eq!(parse(&stream), Ok(complete(source, header.len())), "{header:x?}");
        for cut in 0..header.len() {
            assert_eq!(parse(&stream[..cut]), Ok(Header::Incomplete), "{header:x?} cut at {cut}");
        }
    }
}

#[test]
fn a_frozen_header_from_the_wire() {
    let header = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C\
                   \xC0\xA8\x00\x01\xC0\xA8\x00\x0B\xDC\x04\x01\xBB";
    assert_eq!(parse(header), Ok(complete(Some("192.168.0.1:56324"), 28)));
}

#[test]
fn a_mapped_address_is_an_ipv4_address() {
    let mut block = ipv6();
    block[..16].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
    assert_eq!(parse(&binary(0x21, 0x21, &block)), Ok(complete(Some("192.0.2.7:56324"), 52)));
}

#[test]
fn values_behind_the_addresses_are_skipped() {
    let values = b"\x02\x00\x0Bexample.com\x05\x00\x00\xEA\x00\x02\x01\x02";
    let header = binary(0x21, 0x11, &[IPV4, values].concat());
    assert_eq!(parse(&header), Ok(complete(Some("192.168.0.1:56324"), header.len())));
    for cut in [1, 2, 10, 15, 16, values.len() - 1] {
        let header = binary(0x21, 0x11, &[IPV4, &values[..cut]].concat());
        assert_eq!(parse(&header), Err(HeaderError::Truncated), "cut at {cut}");
    }
}

#[test]
fn the_checksum_is_checked() {
    assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283);
    // Some padding, then the checksum; another program has calculated it.
    let values = b"\x04\x00\x04pads\x03\x00\x04\x82\xE9\x71\xC9";
    let header = binary(0x21, 0x11, &[IPV4, values].concat());
    assert_eq!(parse(&header), Ok(complete(Some("192.168.0.1:56324"), header.len())));
    let kind = header.len() - 7;
    for at in (FIXED..header.len()).filter(|at| *at != kind) {
        let mut broken = header.clone();
        broken[at] ^= 0x10;
        assert!(parse(&broken).is_err(), "byte {at}");
    }
}

#[test]
fn binary_headers_that_are_wrong() {
    for (header, error) in [
        (binary(0x11, 0x11, IPV4), HeaderError::Version(1)),
        (binary(0x31, 0x11, IPV4), HeaderError::Version(3)),
        (binary(0x22, 0x11, IPV4), HeaderError::Command(2)),
        (binary(0x21, 0x13, IPV4), HeaderError::Family(0x13)),
        (binary(0x21, 0x41, IPV4), HeaderError::Family(0x41)),
        (binary(0x21, 0x11, &IPV4[1..]), HeaderError::Truncated),
        (binary(0x21, 0x21, IPV4), HeaderError::Truncated),
        (binary(0x21, 0x31, IPV4), HeaderError::Truncated),
        (binary(0x21, 0x11, b""), HeaderError::Truncated),
        (binary(0x20, 0x00, &[0; 4081]), HeaderError::TooLong(4097)),
    ] {
        assert_eq!(parse(&header), Err(error), "{error}");
    }
    assert_eq!(parse(&binary(0x20, 0x00, &[0; 4080])), Ok(complete(None, 4096)));
    // The rest of a header that is too long is not waited for.
    assert_eq!(parse(&binary(0x21, 0x11, &[0; 5000])[..16]), Err(HeaderError::TooLong(5016)));
    assert_eq!(parse(&binary(0x51, 0x11, IPV4)[..13]), Err(HeaderError::Version(5)));
}

/// Bytes that often are nearly a header.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let rest = prop::collection::vec(any::<u8>(), 0..300);
    let word = prop::sample::select(
        &["TCP4", "TCP6", "UNKNOWN", " ", "1.2.3.4", "::1", "80", "\r\n", "\r", "x"][..],
    );
    let line = prop::collection::vec(word, 0..12).prop_map(|words| words.concat().into_bytes());
    prop_oneof![
        rest.clone(),
        line.prop_map(|line| [LINE_START, &line].concat()),
        (any::<u8>(), any::<u8>(), rest).prop_map(|(command, family, rest)| {
            binary(0x20 | (command & 3), ((family & 0x50) >> 1) | (family & 3), &rest)
        }),
    ]
}

proptest! {
    #[test]
    fn an_answer_is_final(input in nearly(), more in prop::collection::vec(any::<u8>(), 0..50)) {
        let answer = parse(&input);
        let with_more = parse(&[&input[..], &more].concat());
        match answer {
            Ok(Header::Incomplete) => prop_assert!(input.len() < MAX_HEADER),
            Ok(Header::Complete { length, .. }) => {
                prop_assert!(length <= input.len());
                prop_assert_eq!(with_more, answer);
            }
            Err(_) => prop_assert_eq!(with_more, answer),
        }
        for cut in 0..input.len() {
            let earlier = parse(&input[..cut]);
            prop_assert!(earlier == Ok(Header::Incomplete) || earlier == answer);
        }
    }
}
