//! Links that can be cut, blocked and delayed: relays on loopback, through which nodes reach each
//! other and Redis. Places are numbered: nodes from 0, then Redis.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

/// How long a relay waits for the connection to where it leads.
const DIAL: Duration = Duration::from_secs(3);
/// What is read at once.
const BLOCK: usize = 16 * 1024;
/// Blocks under way in one direction.
const UNDER_WAY: usize = 64;

/// What happens to what goes from one place to another.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    blocked: bool,
    refused: bool,
    delay: Duration,
    /// How often connections were reset.
    cuts: u64,
}

/// Which place opens a connection.
pub(crate) trait Dialer: Send + Sync + 'static {
    /// The place that has the other end of a connection, by its address there.
    fn place(&self, peer: SocketAddr) -> Option<usize>;
}

/// A dialer that is always the same place.
pub(crate) struct Always(pub(crate) usize);

impl Dialer for Always {
    fn place(&self, _peer: SocketAddr) -> Option<usize> {
        Some(self.0)
    }
}

/// Relays and what is done to what they carry.
pub(crate) struct Links {
    ways: Mutex<HashMap<(usize, usize), watch::Sender<Way>>>,
    /// Places with relays that do not listen.
    refusing: Mutex<HashMap<usize, watch::Sender<bool>>>,
    tasks: TaskTracker,
}

impl Links {
    pub(crate) fn new(tasks: &TaskTracker) -> Arc<Self> {
        Arc::new(Self { ways: Mutex::default(), refusing: Mutex::default(), tasks: tasks.clone() })
    }

    /// Listens on a port for connections to a place. `key` names the relay for [`Links::refuse`].
    pub(crate) fn listen(
        self: &Arc<Self>,
        port: u16,
        key: usize,
        to: Destination,
        dialer: impl Dialer,
    ) {
        let (sender, refusing) = watch::channel(false);
        lock(&self.refusing).insert(key, sender);
        self.tasks.spawn(Arc::clone(self).accept(port, refusing, to, Arc::new(dialer)));
    }

    /// Whether a relay refuses connections.
    pub(crate) fn refuse(&self, key: usize, refused: bool) {
        if let Some(sender) = lock(&self.refusing).get(&key) {
            sender.send_replace(refused);
        }
    }

    /// The same for all relays.
    pub(crate) fn refuse_all(&self, refused: bool) {
        for sender in lock(&self.refusing).values() {
            sender.send_replace(refused);
        }
    }

    /// Nothing passes from one place to another.
    pub(crate) fn block(&self, from: usize, to: usize) {
        self.way(from, to).send_modify(|way| way.blocked = true);
    }

    /// All that goes from one place to another takes longer.
    pub(crate) fn delay(&self, from: usize, to: usize, delay: Duration) {
        self.way(from, to).send_modify(|way| way.delay = delay);
    }

    /// Resets all connections between two places, and those that are tried until it is restored.
    pub(crate) fn cut(&self, one: usize, other: usize) {
        for way in [self.way(one, other), self.way(other, one)] {
            way.send_modify(|way| {
                way.cuts += 1;
                way.refused = true;
            });
        }
    }

    /// Ends what was done to what goes from one place to another.
    pub(crate) fn restore(&self, from: usize, to: usize) {
        self.way(from, to).send_modify(|way| *way = Way { cuts: way.cuts, ..Way::default() });
    }

    fn way(&self, from: usize, to: usize) -> watch::Sender<Way> {
        lock(&self.ways).entry((from, to)).or_default().clone()
    }

    async fn accept(
        self: Arc<Self>,
        port: u16,
        mut refusing: watch::Receiver<bool>,
        to: Destination,
        dialer: Arc<dyn Dialer>,
    ) {
        loop {
            if refusing.wait_for(|refused| !refused).await.is_err() {
                return;
            }
            let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((tcp, peer)) = accepted {
                            let relay = Arc::clone(&self).relay(tcp, peer, to, Arc::clone(&dialer));
                            self.tasks.spawn(relay);
                        }
                    }
                    _ = refusing.wait_for(|refused| *refused) => break,
                }
            }
        }
    }

    async fn relay(
        self: Arc<Self>,
        near: TcpStream,
        peer: SocketAddr,
        to: Destination,
        dialer: Arc<dyn Dialer>,
    ) {
        // Whatever ends without order is reset.
        let _closed_anyway = near.set_zero_linger();
        let Some(from) = dialer.place(peer) else { return };
        let forth = self.way(from, to.place).subscribe();
        let back = self.way(to.place, from).subscribe();
        let cuts = forth.borrow().cuts;
        let mut watched = forth.clone();
        let cut = watched.wait_for(|way| way.refused || way.cuts != cuts);
        tokio::select! {
            _ = cut => {}
            () = carry(near, to.address, forth, back) => {}
        }
    }
}

/// Where a relay leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination {
    pub(crate) place: usize,
    pub(crate) address: SocketAddr,
}

async fn carry(
    near: TcpStream,
    address: SocketAddr,
    mut forth: watch::Receiver<Way>,
    mut back: watch::Receiver<Way>,
) {
    // A handshake needs both directions.
    let open = async {
        forth.wait_for(|way| !way.blocked).await.ok()?;
        back.wait_for(|way| !way.blocked).await.ok()?;
        timeout(DIAL, TcpStream::connect(address)).await.ok()?.ok()
    };
    let Some(far) = open.await else { return };
    let _slower = (near.set_nodelay(true), far.set_nodelay(true));
    let _closed_anyway = far.set_zero_linger();
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let moved = tokio::try_join!(pump(from_near, to_far, forth), pump(from_far, to_near, back));
    if let Ok((to_far, to_near)) = moved {
        // Both directions have ended in order: what the system still has to send is sent.
        for half in [to_far, to_near] {
            let _closed_anyway = SockRef::from(half.as_ref()).set_linger(None);
        }
    }
}

/// Moves what is read, at its time, until the end.
async fn pump(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    way: watch::Receiver<Way>,
) -> io::Result<OwnedWriteHalf> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut open = way.clone();
    let reading = async move {
        loop {
            let mut block = vec![0; BLOCK];
            let length = read.read(&mut block).await?;
            block.truncate(length);
            let due = Instant::now() + way.borrow().delay;
            if sender.send((due, block)).await.is_err() || length == 0 {
                // Kept: a half that is dropped would not say that the other end is gone.
                return Ok::<_, io::Error>(read);
            }
        }
    };
    let writing = async move {
        while let Some((due, block)) = receiver.recv().await {
            sleep_until(due).await;
            drop(open.wait_for(|way| !way.blocked).await);
            if block.is_empty() {
                write.shutdown().await?;
            } else {
                write.write_all(&block).await?;
            }
        }
        Ok::<_, io::Error>(write)
    };
    tokio::try_join!(reading, writing).map(|(_read, write)| write)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
