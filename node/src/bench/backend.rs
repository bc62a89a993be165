//! The backend of a relay that is no node: it takes the relay's connections and gives each to the
//! tunnel that it belongs to. The first endpoint sends a greeting, by which it is recognized here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::either::Either;

use crate::endpoint::{Endpoint, Stream};
use crate::tls;

/// Bytes of a greeting.
pub(crate) const GREETING: usize = 16;
const BACKLOG: u32 = 4096;

/// Tunnels that wait for the relay's connection, by their greeting.
type Expected = Arc<Mutex<HashMap<Vec<u8>, oneshot::Sender<Endpoint>>>>;

pub(crate) struct Backend {
    expected: Expected,
    _tasks: JoinSet<()>,
}

impl Backend {
    /// Its ends of tunnels read up to `buffer` bytes at once.
    pub(crate) fn start(address: SocketAddr, is_tls: bool, buffer: usize) -> anyhow::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let listener = socket.listen(BACKLOG)?;
        let acceptor = if is_tls { Some(tls::acceptor()?) } else { None };
        let (expected, mut tasks) = (Expected::default(), JoinSet::new());
        tasks.spawn(take(listener, acceptor, expected.clone(), buffer));
        Ok(Self { expected, _tasks: tasks })
    }

    /// What to send first on the tunnel with this number, and its other end to come.
    pub(crate) fn expect(&self, number: u64) -> (Vec<u8>, oneshot::Receiver<Endpoint>) {
        let greeting = format!("{number:0GREETING$}").into_bytes();
        let (arrived, arrival) = oneshot::channel();
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.insert(greeting.clone(), arrived);
        (greeting, arrival)
    }
}

async fn take(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    expected: Expected,
    buffer: usize,
) {
    let mut greeted = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        greeted.spawn(greet(tcp, acceptor.clone(), expected.clone(), buffer));
        while greeted.try_join_next().is_some() {}
    }
}

/// Whatever fails here is missed by the tunnel that waits for it.
async fn greet(
    tcp: TcpStream,
    acceptor: Option<TlsAcceptor>,
    expected: Expected,
    buffer: usize,
) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    let stream: Stream = match acceptor {
        Some(acceptor) => {
            let tcp = BufReader::with_capacity(buffer, tcp);
            Either::Right(Box::new(TlsStream::Server(acceptor.accept(tcp).await.ok()?)))
        }
        None => Either::Left(tcp),
    };
    let mut endpoint = Endpoint::new(stream, buffer);
    let greeting = endpoint.bytes(GREETING).await.ok()?;
    let waiting = expected.lock().unwrap_or_else(PoisonError::into_inner).remove(&greeting);
    waiting?.send(endpoint).ok()
}
