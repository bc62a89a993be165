//! Determines the client of a connection that a load balancer forwards. Only trusted peers are
//! believed.
//!
//! A peer that is not trusted is itself the client: it need not send a PROXY protocol header, and one
//! that it sends is malformed input like any other.

use http::HeaderMap;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::proxy_protocol::{Header, parse};
use super::websocket::forwarded::client_address;
use super::{AcceptError, ClientAddr};
use crate::config::Proxies;

/// The bytes peeked at once; no more than the header is taken out of the connection.
const PIECE: usize = 512;

/// Whether this peer must name the client of each connection by the PROXY protocol.
pub(super) fn speaks_for_others(peer: ClientAddr, proxies: &Proxies) -> bool {
    proxies.protocol && is_trusted(peer, proxies)
}

/// Whether this peer is trusted to name the client in the upgrade request.
pub(super) fn forwards(peer: ClientAddr, proxies: &Proxies) -> bool {
    proxies.header.is_some() && is_trusted(peer, proxies)
}

fn is_trusted(peer: ClientAddr, proxies: &Proxies) -> bool {
    peer.ip().is_some_and(|ip| proxies.trusted.contains(ip))
}

/// Takes the PROXY protocol header off a connection of a peer that must send one.
pub(super) async fn client_in_front(
    tcp: &mut TcpStream,
    peer: ClientAddr,
    proxies: &Proxies,
) -> Result<ClientAddr, AcceptError> {
    if !speaks_for_others(peer, proxies) {
        return Ok(peer);
    }
    let mut header = Vec::new();
    let mut piece = [0; PIECE];
    loop {
        let taken = header.len();
        let peeked = tcp.peek(&mut piece).await.map_err(AcceptError::Io)?;
        if peeked == 0 {
            return Err(AcceptError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        header.extend_from_slice(&piece[..peeked]);
        let (source, length) = match parse(&header).map_err(AcceptError::ProxyProtocol)? {
            Header::Incomplete => (None, header.len()),
            Header::Complete { source, length } => (Some(source), length),
        };
        tcp.read_exact(&mut piece[..length - taken]).await.map_err(AcceptError::Io)?;
        if let Some(source) = source {
            return Ok(source.map_or(peer, ClientAddr::Ip));
        }
    }
}

/// The client according to an upgrade request that came from `peer`.
pub(super) fn client_in_request(
    peer: ClientAddr,
    headers: &HeaderMap,
    proxies: &Proxies,
) -> ClientAddr {
    match (proxies.header, peer) {
        (Some(header), ClientAddr::Ip(address)) if forwards(peer, proxies) => {
            // Collected, as they must be read from the end.
            let values: Vec<_> = headers.get_all(header.name()).iter().collect();
            let values = values.iter().map(|value| value.as_bytes());
            client_address(address, header, values, &proxies.trusted).into()
        }
        _ => peer,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::ForwardingHeader;

    fn proxies(trusted: &str) -> Proxies {
        let trusted = trusted.parse().expect("networks");
        Proxies { trusted, protocol: true, header: Some(ForwardingHeader::XForwardedFor) }
    }

    /// What is found out of a connection that begins with these pieces, and what is left of them.
    async fn begins_with(
        pieces: &[&[u8]],
        trusted: &str,
    ) -> Result<(String, Vec<u8>), AcceptError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut there = TcpStream::connect(address).await.expect("a connection");
        there.set_nodelay(true).expect("TCP");
        let (mut here, peer) = listener.accept().await.expect("a connection");
        let sending = async {
            for piece in pieces {
                there.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
            there.shutdown().await.expect("an end");
        };
        let proxies = proxies(trusted);
        let (client, ()) = tokio::join!(client_in_front(&mut here, peer.into(), &proxies), sending);
        let client = client?;
        let mut rest = Vec::new();
        here.read_to_end(&mut rest).await.expect("an end");
        let client = if client == peer.into() { "peer".into() } else { client.to_string() };
        Ok((client, rest))
    }

    #[tokio::test]
    async fn the_header_is_taken_and_no_byte_behind_it() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 1212\r\n";
        let expected = ("192.0.2.1:4711".to_owned(), b"{\"id\"".to_vec());
        let all = [&line[..], b"{\"id\""].concat();
        for at in [1, 6, 20, line.len() - 1, line.len(), line.len() + 2] {
            let (one, other) = all.split_at(at);
            assert_eq!(begins_with(&[one, other], "127.0.0.0/8").await.expect("good"), expected);
        }
        let bytes: Vec<_> = all.chunks(1).collect();
        assert_eq!(begins_with(&bytes, "127.0.0.1").await.expect("good"), expected);
        let check = begins_with(&[b"PROXY UNKNOWN\r\nx"], "127.0.0.1").await.expect("good");
        assert_eq!(check, ("peer".into(), b"x".to_vec()));
    }

    #[tokio::test]
    async fn who_is_trusted_must_send_one_and_nobody_else_can() {
        let missing = begins_with(&[b"{\"id\":0}"], "127.0.0.1").await.expect_err("none");
        assert!(matches!(missing, AcceptError::ProxyProtocol(_)));
        let cut = begins_with(&[b"PROXY TCP4 1"], "127.0.0.1").await.expect_err("not all");
        assert!(matches!(cut, AcceptError::Io(_)));
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 1212\r\n";
        let spoofed = begins_with(&[line], "10.0.0.0/8").await.expect("not looked at");
        assert_eq!(spoofed, ("peer".into(), line.to_vec()));
    }

    #[test]
    fn the_request_says_it_if_the_peer_is_trusted() {
        let mut headers = HeaderMap::new();
        for value in ["198.51.100.9", "192.0.2.1, 127.0.0.1"] {
            headers.append("x-forwarded-for", value.parse().expect("a value"));
        }
        let peer = ClientAddr::Ip(SocketAddr::from(([127, 0, 0, 1], 5)));
        let client = client_in_request(peer, &headers, &proxies("127.0.0.1"));
        assert_eq!(client.to_string(), "192.0.2.1:0");
        assert_eq!(client_in_request(peer, &headers, &proxies("10.0.0.1")), peer);
        let local = ClientAddr::Unix { process: None };
        assert_eq!(client_in_request(local, &headers, &proxies("0.0.0.0/0")), local);
    }
}
