//! Ways through proxies, honest and not.

use proptest::prelude::*;

use super::ForwardingHeader::{Forwarded, XForwardedFor};
use super::*;

const PROXIES: &str = "10.0.0.0/8, fd00::/8";

/// The client that a trusted peer forwards.
fn client(header: ForwardingHeader, values: &[&str]) -> String {
    seen("10.0.0.1:1000", header, values)
}

fn seen(peer: &str, header: ForwardingHeader, values: &[&str]) -> String {
    let peer = peer.parse().expect("peer");
    let trusted = PROXIES.parse().expect("networks");
    let values = values.iter().map(|value| value.as_bytes());
    let address = client_address(peer, header, values, &trusted);
    match address.port() {
        0 => address.ip().to_string(),
        _ => address.to_string(),
    }
}

#[test]
fn the_last_that_is_no_proxy_is_the_client() {
    for (values, expected) in [
        (&["192.0.2.1"][..], "192.0.2.1"),
        (&["203.0.113.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (&["203.0.113.9", "192.0.2.1", "10.0.0.2,10.9.9.9"], "192.0.2.1"),
        (&["192.0.2.1, fd00::1,10.0.0.2"], "192.0.2.1"),
        (&["2001:db8::1"], "2001:db8::1"),
        (&["2001:db8::1, ::ffff:10.0.0.2"], "2001:db8::1"),
        (&["192.0.2.1:4711"], "192.0.2.1:4711"),
        (&["[2001:db8::1]:4711, 10.0.0.3:80"], "[2001:db8::1]:4711"),
        (&[" 192.0.2.1 ,, "], "192.0.2.1"),
        // All are trusted: the request is from inside the trusted networks.
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (&[], "10.0.0.1:1000"),
        (&[""], "10.0.0.1:1000"),
    ] {
        assert_eq!(client(XForwardedFor, values), expected, "{values:?}");
    }
}

#[test]
fn a_peer_that_is_not_trusted_is_the_client() {
    assert_eq!(seen("192.0.2.9:5", XForwardedFor, &["203.0.113.9"]), "192.0.2.9:5");
    assert_eq!(seen("192.0.2.9:5", Forwarded, &["for=203.0.113.9"]), "192.0.2.9:5");
    assert_eq!(seen("[::ffff:192.0.2.9]:5", Forwarded, &[]), "192.0.2.9:5");
    assert_eq!(seen("[::ffff:10.0.0.1]:5", XForwardedFor, &["203.0.113.9"]), "203.0.113.9");
}

#[test]
fn where_it_makes_no_sense_the_last_proxy_is_the_answer() {
    for junk in ["unknown", "_hidden", "localhost", "1.2.3", "1.2.3.4:", "1.2.3.4:x", "[::1", "a b"]
    {
        let value = format!("203.0.113.9, {junk}, 10.0.0.2");
        assert_eq!(client(XForwardedFor, &[&value]), "10.0.0.2", "{junk}");
    }
}

#[test]
fn forwarded_says_it_in_for() {
    for (values, expected) in [
        (&["for=192.0.2.43"][..], "192.0.2.43"),
        (&["For=\"192.0.2.43:4711\""], "192.0.2.43:4711"),
        (&["for=\"[2001:db8:cafe::17]:4711\""], "[2001:db8:cafe::17]:4711"),
        (&["for=\"[2001:db8:cafe::17]\""], "2001:db8:cafe::17"),
        (&["for=192.0.2.60;proto=http;by=203.0.113.43"], "192.0.2.60"),
        (&["proto=http; by=203.0.113.43 ; FOR=192.0.2.60"], "192.0.2.60"),
        (&["for=192.0.2.43, for=198.51.100.17, for=10.0.0.9"], "198.51.100.17"),
        (&["for=192.0.2.43", "for=198.51.100.17;by=10.0.0.9,for=10.0.0.9"], "198.51.100.17"),
        (&["for=\"192.0.2.43:_port\""], "192.0.2.43"),
        (&[r#"x="a\",;=b";for=192.0.2.43"#], "192.0.2.43"),
        (&["for=\"\\1\\9\\2.0.2.43\""], "192.0.2.43"),
        (&[", ,for=192.0.2.43 ,\t,"], "192.0.2.43"),
        // Without quotation marks, as some write it.
        (&["for=192.0.2.43:4711"], "192.0.2.43:4711"),
        (&["for=2001:db8::1;proto=https"], "2001:db8::1"),
        // The proxy does not say.
        (&["for=192.0.2.43, for=unknown"], "10.0.0.1:1000"),
        (&["for=192.0.2.43, for=_hidden, for=10.0.0.9"], "10.0.0.9"),
        (&["for=192.0.2.43, proto=https"], "10.0.0.1:1000"),
    ] {
        assert_eq!(client(Forwarded, values), expected, "{values:?}");
    }
}

#[test]
fn a_line_that_makes_no_sense_tells_nothing() {
    for line in [
        "192.0.2.43",
        "for 192.0.2.43",
        "for=",
        "=192.0.2.43",
        "for =192.0.2.43",
        "for=192.0.2.43;for=192.0.2.44",
        "for=\"192.0.2.43",
        "for=\"192.0.2.43\\",
        "for=\"192.0.2.43\"x",
        "for=192.0.2.43 x=y",
        "for=192\"0.2.43",
        "f\u{fc}r=192.0.2.43",
    ] {
        assert_eq!(client(Forwarded, &[line]), "10.0.0.1:1000", "{line}");
        // Addresses in later lines remain known.
        assert_eq!(client(Forwarded, &[line, "for=10.0.0.9"]), "10.0.0.9", "{line}");
        assert_eq!(client(Forwarded, &[line, "for=192.0.2.1"]), "192.0.2.1", "{line}");
    }
    assert_eq!(client(Forwarded, &["for=192.0.2.43,"]), "192.0.2.43");
    let peer = "10.0.0.1:1000".parse().expect("peer");
    let trusted = PROXIES.parse().expect("networks");
    let not_utf8 = [&b"for=192.0.2.43;x=\"\xFF\""[..]];
    assert_eq!(client_address(peer, Forwarded, not_utf8, &trusted), peer);
}

#[test]
fn each_header_has_its_name() {
    assert_eq!(Forwarded.name(), "forwarded");
    assert_eq!(XForwardedFor.name(), "x-forwarded-for");
}

proptest! {
    /// Whatever a client wrote in front of what a trusted proxy appended: it does not get to be
    /// anyone else's address.
    #[test]
    fn nobody_forges_an_address(
        forged in r#"(for=|"|\\|,|;|=| |6\.6\.6\.6|\[::6\]|:|x|_|\n|ü){0,16}"#,
        own in prop::sample::select(&["192.0.2.43", "\"192.0.2.43:4711\"", "\"[2001:db8::1]:5\""][..]),
        behind in prop::sample::select(&["", ";proto=https", ", for=10.0.0.7"][..]),
    ) {
        let line = format!("{forged}, for={own}{behind}");
        let found = client(Forwarded, &[&line]);
        let honest = ["192.0.2.43", "192.0.2.43:4711", "[2001:db8::1]:5"];
        let known = honest.contains(&&*found) || found.starts_with("10.0.0.");
        prop_assert!(known, "{} gives {}", line, found);
        // In a line of its own it never has an effect.
        let found = client(Forwarded, &[&forged, &format!("for={own}{behind}")]);
        prop_assert_eq!(&*found, own.trim_matches('"'));

        let own = own.trim_matches('"');
        let line = format!("{forged}, {own}");
        prop_assert_eq!(&*client(XForwardedFor, &[&line]), own);
    }
}
