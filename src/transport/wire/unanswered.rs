//! Whether the other end of a TCP connection that takes no data answers at all (it is slow), or
//! does not (its link is dead). Linux knows: it is asked for this one connection by a message of
//! `sock_diag`, which costs the same however many connections there are.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// Attempts in a row: for 1.4 s at least, as each waits twice as long as the one before.
const UNANSWERED_ATTEMPTS: u8 = 3;

// From `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`.
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The timer of a connection that sends unacknowledged data again.
const TIMER_RETRANSMIT: u8 = 1;
/// The timer of a connection that asks whether the other end has room again.
const TIMER_WINDOW_PROBE: u8 = 4;

const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// A reply has this size at least; what follows is not needed.
const REPLY: usize = HEADER + 72;

/// Whether data of this connection, or the question for room at its other end, is sent again and
/// again without any answer. False if the system cannot tell. Does not block.
pub(super) fn is_unanswered(tcp: &TcpStream) -> bool {
    let (Ok(here), Ok(there)) = (tcp.local_addr(), tcp.peer_addr()) else { return false };
    attempts(here, there).is_ok_and(|attempts| attempts >= UNANSWERED_ATTEMPTS)
}

/// Returns how often in a row the other end has not answered.
fn attempts(here: SocketAddr, there: SocketAddr) -> io::Result<u8> {
    let netlink = Socket::new(
        Domain::from(AF_NETLINK),
        Type::DGRAM.nonblocking(),
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    netlink.send(&request(here, there))?;
    // The kernel has replied before it returns from sending.
    let mut reply = [0; 4096];
    let length = (&netlink).read(&mut reply)?;
    unanswered_attempts(&reply[..length])
}

/// The request for one connection: `nlmsghdr` and `inet_diag_req_v2`.
fn request(here: SocketAddr, there: SocketAddr) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        request[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&72_u32.to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    // The sequence number and the port, which the kernel fills in.
    put(&[0; 8]);
    let family = if here.is_ipv4() { AF_INET } else { AF_INET6 };
    // No extensions, and a connection in any state.
    put(&[family, IPPROTO_TCP, 0, 0]);
    put(&u32::MAX.to_ne_bytes());
    put(&here.port().to_be_bytes());
    put(&there.port().to_be_bytes());
    put(&octets(here.ip()));
    put(&octets(there.ip()));
    // The interface matters for link-local addresses only, which exist once for each of them.
    let interface = if let SocketAddr::V6(there) = there { there.scope_id() } else { 0 };
    put(&interface.to_ne_bytes());
    // No cookie: the addresses are enough.
    put(&[0xff; 8]);
    request
}

/// An address in the place of the longest one.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Reads `idiag_timer` and `idiag_retrans` from a reply: `nlmsghdr` and `inet_diag_msg`.
fn unanswered_attempts(reply: &[u8]) -> io::Result<u8> {
    let kind = reply.get(4..6).and_then(|kind| kind.try_into().ok());
    if reply.len() < REPLY || kind.map(u16::from_ne_bytes) != Some(SOCK_DIAG_BY_FAMILY) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let (timer, attempts) = (reply[HEADER + 2], reply[HEADER + 3]);
    Ok(match timer {
        TIMER_RETRANSMIT | TIMER_WINDOW_PROBE => attempts,
        // Silent, and asked for a sign of life: the system sees to that by itself.
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::net::TcpListener;

    use super::*;

    /// A reply about a connection.
    fn reply(kind: u16, timer: u8, attempts: u8) -> Vec<u8> {
        let mut reply = vec![0; REPLY];
        reply[4..6].copy_from_slice(&kind.to_ne_bytes());
        reply[HEADER..HEADER + 4].copy_from_slice(&[AF_INET, 1, timer, attempts]);
        reply
    }

    #[test]
    fn only_what_is_sent_again_in_vain_is_unanswered() {
        let attempts = |timer| unanswered_attempts(&reply(SOCK_DIAG_BY_FAMILY, timer, 5)).ok();
        assert_eq!(attempts(TIMER_RETRANSMIT), Some(5));
        assert_eq!(attempts(TIMER_WINDOW_PROBE), Some(5));
        // Asked by the system for a sign of life, and without any timer.
        assert_eq!((attempts(2), attempts(0)), (Some(0), Some(0)));
        let error = unanswered_attempts(&reply(2, 1, 5));
        assert!(error.is_err() && unanswered_attempts(&[]).is_err());
    }

    async fn connection(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tcp, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (tcp.expect("a connection"), accepted.expect("a connection").0)
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_not_unanswered() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (tcp, _reader) = connection(address).await;
            while tcp.try_write(&[0; 4096]).is_ok() {}
            let (here, there) = (tcp.local_addr().expect("one"), tcp.peer_addr().expect("one"));
            let known = attempts(here, there).expect("Linux tells");
            assert!(known < UNANSWERED_ATTEMPTS && !is_unanswered(&tcp), "{known}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_does_not_exist_is_not_unanswered() {
        let (tcp, _there) = connection("127.0.0.1:0").await;
        let here = tcp.local_addr().expect("an address");
        assert!(attempts(here, here).is_err());
    }

    #[tokio::test]
    async fn it_costs_the_same_beside_many_other_connections() {
        let (tcp, _reader) = connection("127.0.0.1:0").await;
        let mut others = Vec::new();
        for _ in 0..400 {
            others.push(connection("127.0.0.1:0").await);
        }
        let fastest = (0..20).map(|_| {
            let start = Instant::now();
            is_unanswered(&tcp);
            start.elapsed()
        });
        // A list of them all takes several milliseconds.
        let fastest = fastest.min().expect("one");
        assert!(fastest < Duration::from_millis(1), "{fastest:?} beside {} others", others.len());
    }
}
