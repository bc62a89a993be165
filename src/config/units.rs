//! Values in a configuration: durations, sizes, numbers and addresses, each with
//! a text that says what was expected. Whether a value is allowed is decided in [`validate`].
//!
//! [`validate`]: super::Config::validate

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

use super::Secret;

/// A duration such as `500ms`, `8s` or `2m`.
pub(super) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    input.deserialize_any(Expected {
        what: "a duration such as 500ms, 8s or 2m",
        from_text: |text| humantime::parse_duration(text).ok(),
        from_number: |_| None,
    })
}

/// The inverse of [`duration`].
pub(super) fn write_duration<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&humantime::format_duration(*value))
}

/// A number of bytes such as `16MiB`, `64KiB` or `1000`.
pub(super) fn size<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    input.deserialize_any(Expected {
        what: "a size such as 16MiB, 64KiB or 1000 (bytes)",
        from_text: parse_size,
        from_number: |number| number.try_into().ok(),
    })
}

/// Reads a count.
pub(super) fn count<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    input.deserialize_any(Expected {
        what: "a whole number",
        from_text: |_| None,
        from_number: |number| number.try_into().ok(),
    })
}

/// A TCP port.
pub(super) fn port<'de, D: Deserializer<'de>>(input: D) -> Result<u16, D::Error> {
    input.deserialize_any(Expected {
        what: "a port number from 0 to 65535",
        from_text: |_| None,
        from_number: |number| number.try_into().ok(),
    })
}

/// An IP address, or a host name, which is looked up.
pub(super) fn address<'de, D: Deserializer<'de>>(input: D) -> Result<IpAddr, D::Error> {
    input.deserialize_any(Expected {
        what: "an IP address or the name of a host that can be resolved",
        from_text: resolve,
        from_number: |_| None,
    })
}

/// On or off, if it is set; a text in an environment variable.
pub(super) fn switch<'de, D: Deserializer<'de>>(input: D) -> Result<Option<bool>, D::Error> {
    struct Switch;

    impl Visitor<'_> for Switch {
        type Value = Option<bool>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
            Ok(Some(on))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let on = text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
            Ok(Some(on))
        }
    }

    input.deserialize_any(Switch)
}

/// `host:port`; a host name is looked up.
pub(super) fn socket_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_name = !host.is_empty() && !host.contains([':', '[', ']']);
    if is_name { Some(SocketAddr::new(resolve(host)?, port.parse().ok()?)) } else { None }
}

/// Texts: an array, or one text with commas between them, as in an environment variable.
pub(super) fn list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Secret>, D::Error> {
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Vec<Secret>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let parts = text.split(',').map(str::trim);
            Ok(parts.filter(|part| !part.is_empty()).map(Secret::new).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(text) = texts.next_element()? {
                list.push(text);
            }
            Ok(list)
        }
    }

    input.deserialize_any(List)
}

fn parse_size(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(factor)
}

/// `localhost` is most often both `127.0.0.1` and `::1`; the first is what people try.
fn resolve(host: &str) -> Option<IpAddr> {
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse() {
        return Some(address);
    }
    let found: Vec<_> = (host, 0).to_socket_addrs().ok()?.map(|found| found.ip()).collect();
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied()
}

/// Reads a value from a text or a number; the error contains what was expected.
struct Expected<T> {
    what: &'static str,
    from_text: fn(&str) -> Option<T>,
    from_number: fn(u64) -> Option<T>,
}

impl<T> Visitor<'_> for Expected<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.from_text)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.from_number)(number)
            .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn why<T: fmt::Debug>(result: Result<T, serde_json::Error>) -> String {
        result.expect_err("must be refused").to_string()
    }

    #[test]
    fn durations() {
        for (text, millis) in [("500ms", 500), ("8s", 8_000), ("2m", 120_000), ("1m 5s", 65_000)] {
            assert_eq!(duration(json!(text)).expect(text), Duration::from_millis(millis), "{text}");
        }
        for wrong in [json!("soon"), json!("8"), json!(""), json!("-8s"), json!(8), json!(true)] {
            let why = why(duration(wrong.clone()));
            assert!(why.ends_with("expected a duration such as 500ms, 8s or 2m"), "{wrong}: {why}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        let value = Duration::from_millis(61_500);
        let text = write_duration(&value, serde_json::value::Serializer).expect("text");
        assert_eq!(duration(text).expect("duration"), value);
    }

    #[test]
    fn sizes() {
        let good: [(Value, usize); 6] = [
            (json!("16MiB"), 16 << 20),
            (json!("64 KiB"), 64 << 10),
            (json!("1GiB"), 1 << 30),
            (json!("1000"), 1000),
            (json!("1000B"), 1000),
            (json!(1000), 1000),
        ];
        for (written, bytes) in good {
            assert_eq!(size(written.clone()).expect("size"), bytes, "{written}");
        }
        for wrong in ["", "MiB", "16MB", "1.5MiB", "-1", "99999999999999GiB"] {
            let why = why(size(json!(wrong)));
            assert!(why.contains("expected a size such as 16MiB"), "{wrong}: {why}");
        }
    }

    #[test]
    fn lists() {
        let both = vec![Secret::new("a"), Secret::new("b")];
        assert_eq!(list(json!(["a", "b"])).expect("list"), both);
        assert_eq!(list(json!("a, b,")).expect("list"), both);
        assert_eq!(list(json!("")).expect("list"), []);
        assert!(why(list(json!(5))).ends_with("expected a list of texts"));
    }

    #[test]
    fn switches() {
        for (written, on) in
            [(json!(true), Some(true)), (json!("false"), Some(false)), (json!(null), None)]
        {
            assert_eq!(switch(written.clone()).expect("switch"), on, "{written}");
        }
        assert!(why(switch(json!("yes"))).ends_with("expected true or false"));
        assert!(why(switch(json!(1))).ends_with("expected true or false"));
    }

    #[test]
    fn socket_addresses() {
        for (text, address) in
            [("[::1]:80", "[::1]:80"), ("localhost:0", "127.0.0.1:0"), ("0.0.0.0:1", "0.0.0.0:1")]
        {
            let read = socket_address(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), Some(address));
        }
        for wrong in ["", "80", ":80", "::1:80", "localhost", "localhost:http", "1.2.3.4:70000"] {
            assert_eq!(socket_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(port(json!(0)).expect("port"), 0);
        assert_eq!(count::<_, u32>(json!(7)).expect("count"), 7);
        for wrong in [json!(65_536), json!(-1), json!("http"), json!(1.5)] {
            let why = why(port(wrong.clone()));
            assert!(why.ends_with("expected a port number from 0 to 65535"), "{wrong}: {why}");
        }
        assert!(why(count::<_, u32>(json!(1_u64 << 32))).ends_with("expected a whole number"));
    }

    #[test]
    fn addresses() {
        for (text, ip) in [("::1", "::1"), ("[::1]", "::1"), ("localhost", "127.0.0.1")] {
            assert_eq!(address(json!(text)).expect(text).to_string(), ip, "{text}");
        }
        for wrong in ["", "127.0.0.1:80", "no such host"] {
            let why = why(address(json!(wrong)));
            assert!(why.contains("expected an IP address or the name of a host"), "{wrong}: {why}");
        }
    }
}
