//! What the system knows of a TCP connection whose data is not taken: whether the other end says
//! so (it is slow), or says nothing (its link is dead). Linux tells it in `/proc`.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

/// The timer of a connection that sends data again, as nobody acknowledges it.
const RESENDING: &str = "01";
/// The timer of a connection that asks whether there is room for data at the other end.
const ASKING: &str = "04";
/// So often in a row: for 1.4 s at least, as each time takes twice as long as the one before.
const IN_VAIN: u32 = 3;

/// Whether data of this connection is sent again and again, and nothing comes back. False where
/// the system does not say. Reads a list of all connections: not to be asked often.
pub(super) fn is_unanswered(tcp: &TcpStream) -> bool {
    let (Ok(here), Ok(there)) = (tcp.local_addr(), tcp.peer_addr()) else { return false };
    let list = if here.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let Ok(list) = File::open(list) else { return false };
    let (here, there) = (written(here), written(there));
    let lines = BufReader::new(list).lines().map_while(Result::ok);
    let mut found = lines.filter_map(|line| tried(&line, &here, &there));
    found.next().is_some_and(|times| times >= IN_VAIN)
}

/// How often in a row the other end of this connection has not answered, if the line is about it.
fn tried(line: &str, here: &str, there: &str) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    if fields.next()? != here || fields.next()? != there {
        return None;
    }
    let timer = fields.nth(2)?.split(':').next()?;
    let resent = u32::from_str_radix(fields.next()?, 16).ok()?;
    let asked = fields.nth(1)?.parse().ok()?;
    Some(match timer {
        RESENDING => resent,
        ASKING => asked,
        _ => 0,
    })
}

/// An address as it is written there: words of 32 bits as they are in memory, and the port.
fn written(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // Writing to a text cannot fail.
    let mut text = String::new();
    for word in octets.chunks_exact(4) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        let _written = write!(text, "{word:08X}");
    }
    let _written = write!(text, ":{:04X}", address.port());
    text
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A line of the list, with its numbers in the place of words.
    fn line(timer: &str, resent: &str, asked: u32) -> String {
        let state = "01 00000100:00000000";
        format!(
            "   7: 0100007F:04BC 0200007F:9D2A {state} {timer}:0000004A {resent} 0 {asked} 4711 2"
        )
    }

    #[test]
    fn only_what_is_sent_again_in_vain_is_unanswered() {
        let here = written("127.0.0.1:1212".parse().expect("an address"));
        let there = written("127.0.0.2:40234".parse().expect("an address"));
        if cfg!(target_endian = "little") {
            assert_eq!((&*here, &*there), ("0100007F:04BC", "0200007F:9D2A"));
            assert_eq!(tried(&line("01", "0000000B", 0), &here, &there), Some(11));
            assert_eq!(tried(&line("04", "00000000", 5), &here, &there), Some(5));
            // Silent, and asked for a sign of life: the system sees to that.
            assert_eq!(tried(&line("02", "00000000", 2), &here, &there), Some(0));
            assert_eq!(tried(&line("01", "00000003", 0), &there, &here), None);
        }
        assert_eq!(tried("  sl  local_address rem_address   st tx_queue", &here, &there), None);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_not_unanswered() {
        let listener = TcpListener::bind("[::1]:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tcp, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (tcp, _accepted) = (tcp.expect("a connection"), accepted.expect("a connection"));
        while tcp.try_write(&[0; 4096]).is_ok() {}
        let list = std::fs::read_to_string("/proc/self/net/tcp6").expect("Linux");
        assert!(list.contains(&written(tcp.local_addr().expect("an address"))), "{list}");
        assert!(!is_unanswered(&tcp));
    }
}
