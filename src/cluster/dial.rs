//! A TCP connection to a host with several addresses: as in RFC 8305, the next address is tried
//! while the one before has not answered yet, as the first is often the one that is dead.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::sleep;

/// How long an address is tried alone.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried; others are ignored.
const ADDRESSES: usize = 8;

/// Connects to the first address of `authority` (`host:port`) that answers; the error is that of
/// the address that failed last.
pub(super) async fn connect(authority: &str) -> io::Result<TcpStream> {
    connect_to_any(lookup_host(authority).await?).await
}

async fn connect_to_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.take(ADDRESSES);
    let mut trying = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        trying.extend(next.map(TcpStream::connect));
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failed = error,
            },
            () = sleep(HEAD_START), if !is_last => {}
            else => return Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address that takes no more connections and refuses none: its queue is full.
    async fn dead() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let mut waiting = Vec::new();
        while let Ok(tcp) =
            tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
        {
            waiting.push(tcp.expect("a connection"));
        }
        (address, listener, waiting)
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let (dead, _listener, _waiting) = dead().await;
        let live = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = live.local_addr().expect("an address");
        let since = Instant::now();
        let tcp = connect_to_any([dead, address].into_iter()).await.expect("a connection");
        assert_eq!(tcp.peer_addr().expect("an address"), address);
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn a_host_that_refuses_is_an_error_at_once() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = gone.local_addr().expect("an address");
        drop(gone);
        let error = connect_to_any([address; 2].into_iter()).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let none = connect_to_any([].into_iter()).await.expect_err("no address");
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
