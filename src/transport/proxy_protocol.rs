//! The PROXY protocol of HAProxy, version 1 (text) and 2 (binary): the header in which a load balancer
//! names the client, at the beginning of a TCP connection.
//!
//! The caller passes all data received so far to [`parse`], before TLS. It must accept headers of
//! trusted load balancers only, must demand one from these, and must not guess by the first bytes
//! whether there is a header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// The longest line of version 1, with its CRLF (section 2.1 of the specification).
const MAX_LINE: usize = 107;
/// The longest header of version 2. The specification promises no more than 536 bytes, but what
/// load balancers add of a client's certificate may be longer; no header has a reason to be longer
/// than this.
const MAX_HEADER: usize = 4096;

const LINE_START: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The part of a version 2 header that is always there.
const FIXED: usize = 16;
const IPV4_BLOCK: usize = 2 * 4 + 2 * 2;
const IPV6_BLOCK: usize = 2 * 16 + 2 * 2;
const UNIX_BLOCK: usize = 2 * 108;
const TYPE_CRC32C: u8 = 0x03;

/// The result of parsing a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The header is valid so far, but not complete. It never needs more than 4 KiB.
    Incomplete,
    /// The header is complete.
    Complete {
        /// The client. `None` if the load balancer speaks for itself (a health check) or does not
        /// know: then the connection's own peer is the client.
        source: Option<SocketAddr>,
        /// The size of the header. The data of the client begins after it.
        length: usize,
    },
}

/// Why this is no header; more data will not make it one. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The data begins like neither version.
    #[error(
        "the connection does not begin with a PROXY protocol header; let the load balancer send \
         one (HAProxy: send-proxy-v2) or do not expect one here"
    )]
    Missing,
    /// Version 1: no CRLF where one must be.
    #[error("the line of the PROXY protocol header does not end by CRLF within 107 bytes")]
    LineEnd,
    /// Version 1: the line does not read as it should.
    #[error(
        "the PROXY protocol header is not `PROXY TCP4|TCP6 <source> <destination> <source port> \
         <destination port>` or `PROXY UNKNOWN`"
    )]
    Line,
    /// Version 2: the version after the signature is another one.
    #[error("the PROXY protocol header is of version {0}, known are 1 and 2")]
    Version(u8),
    /// Version 2: neither LOCAL nor PROXY.
    #[error("the PROXY protocol header has the unknown command {0}")]
    Command(u8),
    /// Version 2: an address family or transport that is not assigned.
    #[error("the PROXY protocol header has the unknown address family and transport {0:#04x}")]
    Family(u8),
    /// Version 2: its length does not match its content.
    #[error("the addresses or values of the PROXY protocol header are longer than the header")]
    Truncated,
    /// Version 2: it is larger than any header has a reason to be.
    #[error("the PROXY protocol header has {0} bytes, more than 4096")]
    TooLong(usize),
    /// Version 2: it is not what was sent.
    #[error("the PROXY protocol header has a wrong checksum")]
    Checksum,
}

/// Reads the header at the beginning of `input`, which is all that has come so far.
pub fn parse(input: &[u8]) -> Result<Header, HeaderError> {
    if begins_alike(input, SIGNATURE) {
        parse_binary(input)
    } else if begins_alike(input, LINE_START) {
        parse_line(input)
    } else {
        Err(HeaderError::Missing)
    }
}

/// Whether `input` begins with `start`, or may do so once there is more of it.
fn begins_alike(input: &[u8], start: &[u8]) -> bool {
    let common = input.len().min(start.len());
    input[..common] == start[..common]
}

fn parse_line(input: &[u8]) -> Result<Header, HeaderError> {
    let line = &input[..input.len().min(MAX_LINE)];
    let Some(end) = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if line.len() < MAX_LINE {
            Ok(Header::Incomplete)
        } else {
            Err(HeaderError::LineEnd)
        };
    };
    match &line[end..] {
        b"\r" if line.len() < MAX_LINE => return Ok(Header::Incomplete),
        [b'\r', b'\n', ..] => {}
        _ => return Err(HeaderError::LineEnd),
    }
    // After UNKNOWN may be anything.
    let source = match &line[LINE_START.len().min(end)..end] {
        b"UNKNOWN" => None,
        rest if rest.starts_with(b"UNKNOWN ") => None,
        rest => {
            let rest = str::from_utf8(rest).map_err(|_| HeaderError::Line)?;
            Some(endpoints(rest).ok_or(HeaderError::Line)?)
        }
    };
    Ok(Header::Complete { source, length: end + 2 })
}

/// The source in `TCP4 <source> <destination> <source port> <destination port>`, if all is right.
fn endpoints(text: &str) -> Option<SocketAddr> {
    let mut words = text.split(' ');
    let family = words.next()?;
    let (source, destination) = (words.next()?, words.next()?);
    let (source_port, _) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    let source = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            IpAddr::V4(source.parse().ok()?)
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            source.parse::<Ipv6Addr>().ok()?.to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(source, source_port))
}

/// Decimal digits, without leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || (!text.starts_with(['0', '+']));
    if plain { text.parse().ok() } else { None }
}

fn parse_binary(input: &[u8]) -> Result<Header, HeaderError> {
    // An error is returned as soon as it can be seen.
    let Some(&version_command) = input.get(SIGNATURE.len()) else { return Ok(Header::Incomplete) };
    let (version, command) = (version_command >> 4, version_command & 0xF);
    if version != 2 {
        return Err(HeaderError::Version(version));
    }
    if command > 1 {
        return Err(HeaderError::Command(command));
    }
    let Some(fixed) = input.first_chunk::<FIXED>() else { return Ok(Header::Incomplete) };
    let family_transport = fixed[13];
    let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_HEADER {
        return Err(HeaderError::TooLong(length));
    }
    let Some(header) = input.get(..length) else { return Ok(Header::Incomplete) };
    let is_local = command == 0;
    // For LOCAL the family says nothing, and what follows is only skipped.
    let source = if is_local { None } else { relayed(header, family_transport)? };
    Ok(Header::Complete { source, length })
}

/// The source of a connection that a load balancer passes on.
fn relayed(header: &[u8], family_transport: u8) -> Result<Option<SocketAddr>, HeaderError> {
    const UNSPEC: u8 = 0;
    const STREAM: u8 = 1;
    const DGRAM: u8 = 2;

    let (family, transport) = (family_transport >> 4, family_transport & 0xF);
    if transport > DGRAM {
        return Err(HeaderError::Family(family_transport));
    }
    let block_size = match family {
        // The address has no known form.
        UNSPEC => return Ok(None),
        1 => IPV4_BLOCK,
        2 => IPV6_BLOCK,
        3 => UNIX_BLOCK,
        _ => return Err(HeaderError::Family(family_transport)),
    };
    let (block, values) =
        header[FIXED..].split_at_checked(block_size).ok_or(HeaderError::Truncated)?;
    check_values(header, values)?;
    // An address that is no TCP client's is not the one of this connection.
    Ok(match family {
        1 if transport == STREAM => Some(ipv4_source(block)),
        2 if transport == STREAM => Some(ipv6_source(block)),
        _ => None,
    })
}

/// Source and destination address, then source and destination port.
fn ipv4_source(block: &[u8]) -> SocketAddr {
    let address: [u8; 4] = std::array::from_fn(|at| block[at]);
    SocketAddr::from((address, u16::from_be_bytes([block[8], block[9]])))
}

fn ipv6_source(block: &[u8]) -> SocketAddr {
    let address: [u8; 16] = std::array::from_fn(|at| block[at]);
    let port = u16::from_be_bytes([block[32], block[33]]);
    SocketAddr::new(Ipv6Addr::from(address).to_canonical(), port)
}

/// Skips the values after the addresses, each a type, a length and as many bytes. Of all of them,
/// only the checksum matters here.
fn check_values(header: &[u8], mut values: &[u8]) -> Result<(), HeaderError> {
    while let [kind, high, low, rest @ ..] = values {
        let size = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, next) = rest.split_at_checked(size).ok_or(HeaderError::Truncated)?;
        if *kind == TYPE_CRC32C {
            let said: [u8; 4] = value.try_into().map_err(|_| HeaderError::Truncated)?;
            let at = header.len() - rest.len();
            // The checksum was computed with zeros in its own place.
            let parts = [&header[..at], &[0; 4], next];
            if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(said) {
                return Err(HeaderError::Checksum);
            }
        }
        values = next;
    }
    if values.is_empty() { Ok(()) } else { Err(HeaderError::Truncated) }
}

/// CRC-32C (RFC 4960, appendix B), bit by bit: once for a connection, over some hundred bytes.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const POLYNOMIAL_REVERSED: u32 = 0x82F6_3B78;
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (if crc & 1 == 1 { POLYNOMIAL_REVERSED } else { 0 })
        })
    })
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;
