//! The client of a connection, as named in the header that HTTP load balancers add to the upgrade
//! request: `Forwarded` (RFC 7239) or `X-Forwarded-For`.
//!
//! The upgrade calls [`client_address`] with the peer's address and the values of that header. Each
//! proxy appends the address that it received the request from, so only the end of the list is
//! written by trusted proxies; the part before it may be invented.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::{ForwardingHeader, Networks};

/// The last address on the way that is not a trusted proxy's: the client's, as far as anyone
/// trusted can tell. The port is 0 where the header does not say it.
///
/// `values` are those of all header lines of that name, in their order. Where they stop making
/// sense, or a trusted proxy does not want to say whom it got the request from, the answer is that
/// proxy. If all are trusted, it is the first one.
pub fn client_address<'a, I>(
    peer: SocketAddr,
    header: ForwardingHeader,
    values: I,
    trusted: &Networks,
) -> SocketAddr
where
    I: IntoIterator<Item = &'a [u8], IntoIter: DoubleEndedIterator>,
{
    let mut client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    for value in values.into_iter().rev() {
        let Some(nodes) = str::from_utf8(value).ok().and_then(|value| nodes(header, value)) else {
            return client;
        };
        for node in nodes.into_iter().rev() {
            if !trusted.contains(client.ip()) {
                return client;
            }
            let Some(address) = node else { return client };
            client = address;
        }
    }
    client
}

/// The address of each node in a header line, `None` for one that is hidden; `None` for all if the
/// line is malformed.
fn nodes(header: ForwardingHeader, value: &str) -> Option<Vec<Option<SocketAddr>>> {
    match header {
        ForwardingHeader::Forwarded => forwarded(value),
        ForwardingHeader::XForwardedFor => {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            Some(parts.map(node).collect())
        }
    }
}

/// The `for` of each element: elements are separated by commas, the `name=value` pairs in them by
/// semicolons. An unclosed quotation mark makes the line worthless, as the parts of different proxies
/// cannot be separated any more.
fn forwarded(value: &str) -> Option<Vec<Option<SocketAddr>>> {
    let mut nodes = Vec::new();
    let mut element = Element::default();
    let mut rest = value.trim_start();
    loop {
        match rest.chars().next() {
            None | Some(',') if element.is_empty => {}
            None | Some(',') => nodes.push(std::mem::take(&mut element).node),
            Some(';') => {}
            Some(_) => {
                let (name, pair) = rest.split_once('=')?;
                let (value, behind) = pair_value(pair)?;
                element.add(name, &value)?;
                rest = behind.trim_start();
                if !rest.is_empty() && !rest.starts_with([',', ';']) {
                    return None;
                }
                continue;
            }
        }
        let Some(behind) = rest.get(1..) else { return Some(nodes) };
        rest = behind.trim_start();
    }
}

/// An element while it is read.
struct Element {
    is_empty: bool,
    has_for: bool,
    node: Option<SocketAddr>,
}

impl Default for Element {
    fn default() -> Self {
        Self { is_empty: true, has_for: false, node: None }
    }
}

impl Element {
    /// Takes a pair, `None` if that is none or the second `for`.
    fn add(&mut self, name: &str, value: &str) -> Option<()> {
        if !is_token(name) {
            return None;
        }
        self.is_empty = false;
        if name.eq_ignore_ascii_case("for") {
            if std::mem::replace(&mut self.has_for, true) {
                return None;
            }
            self.node = node(value);
        }
        Some(())
    }
}

/// A value and the text after it. In quotation marks it may hold any character, with `\` before those
/// that would have a meaning.
fn pair_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ';', ' ', '\t']).unwrap_or(text.len());
        // A token by the book has no `:` or `[`, but addresses without quotation marks are common.
        let value = text[..end].to_owned();
        return (!value.is_empty() && !value.contains('"')).then_some((value, &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

/// A token as HTTP defines it (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}

/// The address in `192.0.2.43`, `192.0.2.43:4711`, `[2001:db8::1]:4711` or `2001:db8::1`; `None`
/// for `unknown`, `_hidden` and whatever else.
fn node(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address.to_canonical(), 0));
    }
    let (address, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, behind) = bracketed.split_once(']')?;
        let address = IpAddr::V6(address.parse::<Ipv6Addr>().ok()?);
        (address, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
    } else {
        let (address, port) = text.split_once(':')?;
        (IpAddr::V4(address.parse().ok()?), Some(port))
    };
    // A port may be hidden, too.
    let port = match port {
        Some(hidden) if hidden.len() > 1 && hidden.starts_with('_') => 0,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
        Some(_) => return None,
        None => 0,
    };
    Some(SocketAddr::new(address.to_canonical(), port))
}

#[cfg(test)]
#[path = "forwarded_tests.rs"]
mod tests;
