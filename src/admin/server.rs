//! Takes connections on the admin listener, with TLS or without, and hands requests on. Everything
//! is bounded: connections, streams among them, and how long each may take.
//!
//! Health is answered whatever else goes on: no connection keeps its place when a newer one needs
//! it, and those that have requested more than health have fewer places than there are.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::history::History;
use super::{Admin, api};
use crate::accept::{
    self, Guest, LastDescriptors, Listening, Manners, Networks, Owner, Room, Standing, Visit,
};
use crate::ids::ClientAddr;
use crate::lock::lock;
use crate::transport::Socket;

/// Connections at once, streams besides: with more, the oldest are closed.
const CONNECTIONS: usize = 512;
/// The same of one address.
const CONNECTIONS_PER_NETWORK: usize = 256;
/// Of them, those that have requested anything but health.
pub(super) const BUSY: usize = 128;
/// The same of one address.
pub(super) const BUSY_PER_NETWORK: usize = 64;
/// How long the first byte, TLS, and the head of a request may take, each.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be open that does not stream.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);
/// How long one that does may be.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_mins(15);

/// The connection of a request.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// An answer goes on and on.
    streams: Arc<AtomicBool>,
    places: Arc<Mutex<Places>>,
}

/// The places of a connection in the rooms of the listener.
#[derive(Default)]
struct Places {
    connected: Option<Visit>,
    busy: Option<Visit>,
}

impl Connection {
    fn new(peer: SocketAddr, visit: Visit) -> Self {
        let places = Places { connected: Some(visit), busy: None };
        Self { peer, streams: Arc::default(), places: Arc::new(Mutex::new(places)) }
    }

    /// Notes that an operator has requested more than health: there is room for fewer of those.
    pub(super) fn is_busy(&self, room: &Arc<Room>) {
        let mut places = lock(&self.places);
        let Places { connected: Some(visit), busy: busy @ None } = &mut *places else { return };
        visit.has_come(Standing::Heard);
        let networks = Networks::of(self.peer.into());
        *busy = Some(room.enter(networks, Standing::Heard, visit.displaced().clone()));
    }

    /// Notes that the answer is a stream, which is counted among streams from now on.
    pub(super) fn is_stream(&self) {
        self.streams.store(true, Ordering::Relaxed);
        *lock(&self.places) = Places::default();
    }
}

/// Serves until the task is aborted.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let admin = Arc::new(admin);
    let history = Arc::new(History::default());
    let router = api::router(Arc::clone(&admin), Arc::clone(&history));
    let manners = Manners {
        who: "operators",
        room: Room::new(CONNECTIONS, CONNECTIONS_PER_NETWORK),
        first_byte: HEAD_TIMEOUT,
        last_descriptors: LastDescriptors::Taken,
    };
    let handle = {
        let admin = Arc::clone(&admin);
        move |guest| connection(guest, Arc::clone(&admin), router.clone())
    };
    let accepting = accept::serve(Listening::Tcp(listener), manners, Owner::of_loop(), handle);
    tokio::join!(accepting, history.keep(&admin));
}

async fn connection(guest: Guest, admin: Arc<Admin>, router: axum::Router) {
    let Guest { socket, peer, visit, .. } = guest;
    let (Socket::Tcp(tcp), ClientAddr::Ip(peer)) = (socket, peer) else { return };
    let displaced = visit.displaced().clone();
    let connection = Connection::new(peer, visit);
    let ended = tokio::select! {
        ended = secured(tcp, &admin, connection, router) => ended,
        () = displaced.cancelled() => Err(io::Error::other("it was closed for a newer one")),
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended");
    }
}

async fn secured(
    tcp: TcpStream,
    admin: &Admin,
    connection: Connection,
    router: axum::Router,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    match &admin.access.tls {
        Some(tls) => {
            let stream = timeout(HEAD_TIMEOUT, tls.acceptor().accept(tcp)).await??;
            requests(stream, connection, router).await
        }
        None => requests(tcp, connection, router).await,
    }
}

async fn requests<S>(stream: S, connection: Connection, router: axum::Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let streams = Arc::clone(&connection.streams);
    let service = TowerToHyperService::new(router.layer(axum::Extension(connection)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    let too_long = async {
        sleep(CONNECTION_TIMEOUT).await;
        if streams.load(Ordering::Relaxed) {
            sleep(STREAM_TIMEOUT).await;
        }
    };
    tokio::select! {
        served = serving => served.map_err(io::Error::other),
        () = too_long => Err(io::ErrorKind::TimedOut.into()),
    }
}
