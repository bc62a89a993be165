//! The one loop that accepts connections, for every listener of a node.
//!
//! A connection that has sent nothing is a socket in a [`Room`] and no more: it has a short time for
//! its first byte, and gives way to others when there are many. After its first byte it is handed to
//! its listener as a [`Guest`].
//!
//! Errors of `accept` never end the loop: those of a single connection are skipped, and when the
//! system lacks something, the oldest silent connection is closed and accepting goes on after a
//! pause.

mod crowd;
pub mod descriptors;
mod network;
mod room;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::crowd::{Candidate, Crowd, Member, MemberId, Standing};
pub use self::network::{Network, Networks};
pub use self::room::{Room, Visit};
use crate::ids::ClientAddr;
use crate::lifecycle::Lifecycle;
use crate::observability::Metrics;
use crate::transport::Socket;
use crate::unix_socket::UnixSocket;

/// Pause after an accept that failed for want of something, usually file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// That connections cannot be accepted is logged no more often than this.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The socket that accepts connections.
pub enum Listening {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixSocket),
}

/// The rules of a listener for connections that have sent nothing.
pub struct Manners {
    /// The kind of clients, for the log.
    pub who: &'static str,
    /// The room for silent connections.
    pub room: Arc<Room>,
    /// The time for the first byte.
    pub first_byte: Duration,
    /// The use of the last file descriptors.
    pub last_descriptors: LastDescriptors,
}

/// Whether a listener may use the last file descriptors of the process.
pub enum LastDescriptors {
    /// The listener uses them.
    Taken,
    /// They are left to others: a connection that would need one is dropped, and counted here.
    Left(Arc<Metrics>),
}

/// The owner of the tasks of connections.
pub enum Owner {
    /// The node, which waits for them when it ends.
    Node(Lifecycle),
    /// The loop: they end with it.
    Loop(JoinSet<()>),
}

/// A connection that has sent its first byte, or ended.
pub struct Guest {
    /// The connection.
    pub socket: Socket,
    /// At its other end.
    pub peer: ClientAddr,
    /// When it was accepted.
    pub since: Instant,
    /// Its place in the room, to be kept until it has authenticated.
    pub visit: Visit,
    has_sent: bool,
}

/// Accepts connections until the future is dropped or the owning node ends.
pub async fn serve<T>(
    listening: Listening,
    manners: Manners,
    mut owner: Owner,
    handle: impl Fn(Guest) -> T + Clone + Send + 'static,
) where
    T: Future<Output = ()> + Send + 'static,
{
    let mut loop_ = Loop { listening, manners, warned: None };
    loop {
        let guest = tokio::select! {
            guest = loop_.next() => guest,
            () = owner.ending() => break,
        };
        let (handle, first_byte) = (handle.clone(), loop_.manners.first_byte);
        let metrics = match &loop_.manners.last_descriptors {
            LastDescriptors::Left(metrics) => Some(Arc::clone(metrics)),
            LastDescriptors::Taken => None,
        };
        owner.spawn(async move {
            match guest.first_byte(first_byte).await {
                Ok(guest) => handle(guest).await,
                Err(why) => {
                    if let Some(metrics) = metrics {
                        metrics.handshake_failed(why);
                    }
                }
            }
        });
    }
    // Those that have sent nothing do not hold up the end.
    loop_.manners.room.displace_all();
}

struct Loop {
    listening: Listening,
    manners: Manners,
    warned: Option<Instant>,
}

impl Loop {
    /// The next connection.
    async fn next(&mut self) -> Guest {
        loop {
            match self.listening.accept().await {
                Ok((socket, peer)) => match &self.manners.last_descriptors {
                    LastDescriptors::Left(metrics)
                        if descriptors::is_of_the_last(descriptor_of(&socket)) =>
                    {
                        metrics.connection_refused("descriptors");
                        drop(socket);
                        self.lacks(&"no file descriptors are left for clients");
                    }
                    LastDescriptors::Left(_) | LastDescriptors::Taken => {
                        let networks = Networks::of(peer);
                        // What has come already is known before others can displace it.
                        let has_sent = socket.has_input();
                        let standing = if has_sent { Standing::Unheard } else { Standing::Silent };
                        let room = &self.manners.room;
                        let visit = room.enter(networks, standing, CancellationToken::new());
                        return Guest { socket, peer, since: Instant::now(), visit, has_sent };
                    }
                },
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    self.lacks(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Makes room for what the system lacks.
    fn lacks(&mut self, error: &dyn std::fmt::Display) {
        self.manners.room.displace_one();
        if self.warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            self.warned = Some(Instant::now());
            let (who, files) = (self.manners.who, descriptors::allowed());
            warn!(
                %error,
                files,
                "cannot accept connections of {who}; raise the limit of open files (ulimit -n, \
                 LimitNOFILE) or lower limits.connections"
            );
        }
    }
}

impl Guest {
    /// Waits for the first byte. The error is the reason for closing the connection, in one word.
    async fn first_byte(self, within: Duration) -> Result<Self, &'static str> {
        if self.has_sent {
            return Ok(self);
        }
        let came = tokio::select! {
            came = timeout(within, self.socket.readable()) => came,
            () = self.visit.displaced().cancelled() => {
                debug!(peer = %self.peer, "a silent connection is closed for a newer one");
                return Err("displaced");
            }
        };
        match came {
            Ok(Ok(())) => {
                self.visit.has_come(Standing::Unheard);
                Ok(self)
            }
            Ok(Err(_)) => Err("io"),
            Err(_) => {
                debug!(peer = %self.peer, after = ?within, "a connection has sent nothing");
                Err("silent")
            }
        }
    }
}

impl Owner {
    /// Tasks that end with the loop.
    pub fn of_loop() -> Self {
        Self::Loop(JoinSet::new())
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Node(lifecycle) => lifecycle.spawn(task),
            Self::Loop(tasks) => {
                tasks.spawn(task);
            }
        }
    }

    /// Done when nothing more is to be accepted.
    async fn ending(&mut self) {
        match self {
            Self::Node(lifecycle) => lifecycle.ending().await,
            Self::Loop(tasks) => loop {
                // What has ended is taken out, so that nothing is left of it.
                if tasks.join_next().await.is_none() {
                    std::future::pending::<()>().await;
                }
            },
        }
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<(Socket, ClientAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (tcp, peer) = listener.accept().await?;
                Ok((Socket::Tcp(tcp), peer.into()))
            }
            Self::Unix(socket) => {
                let unix = socket.accept().await?;
                let process = unix.peer_cred().ok().and_then(|peer| peer.pid());
                let process = process.and_then(|process| process.try_into().ok());
                Ok((Socket::Unix(unix), ClientAddr::Unix { process }))
            }
        }
    }
}

fn descriptor_of(socket: &Socket) -> RawFd {
    match socket {
        Socket::Tcp(tcp) => tcp.as_raw_fd(),
        Socket::Unix(unix) => unix.as_raw_fd(),
    }
}

/// Whether only this one connection is concerned, which was gone before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
    )
}
