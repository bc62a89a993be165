//! Takes connections on the admin listener, with TLS or without, and hands requests on. Everything
//! is bounded: connections, streams among them, and how long each may take.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::history::History;
use super::{Admin, api};

/// Connections at once; more wait to be accepted. Streams take only some of them.
const CONNECTIONS: usize = 128;
/// How long TLS, and the head of a request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be open that does not stream.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);
/// How long one that does may be.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_mins(15);

/// Where a request comes from, and what it may be.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// Set by an answer that goes on and on.
    pub(super) streams: Arc<AtomicBool>,
}

/// Serves until the task is aborted.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let admin = Arc::new(admin);
    let history = Arc::new(History::default());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let router = api::router(Arc::clone(&admin), Arc::clone(&history));
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept connections on the admin listener");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (admin, router) = (Arc::clone(&admin), router.clone());
            tokio::spawn(async move {
                if let Err(error) = connection(tcp, peer, &admin, router).await {
                    debug!(%error, "admin connection ended");
                }
                drop(place);
            });
        }
    };
    tokio::join!(accepting, history.keep(&admin));
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    admin: &Admin,
    router: axum::Router,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    match &admin.access.tls {
        Some(tls) => {
            let stream = timeout(HEAD_TIMEOUT, tls.acceptor().accept(tcp)).await??;
            requests(stream, peer, router).await
        }
        None => requests(tcp, peer, router).await,
    }
}

async fn requests<S>(stream: S, peer: SocketAddr, router: axum::Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Connection { peer, streams: Arc::default() };
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
