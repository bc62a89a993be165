//! The bridge connections to another node: a few, opened when they are needed and shared by all
//! tunnels to that node.
//!
//! A connection that cannot be opened harms no tunnel as long as another one is open: it is tried
//! again on its own, and all calls use the others.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::uri::Authority;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::budget::Budget;
use super::connection::{self, Opened, Requests};
use super::dial;
use super::failure::Watched;
use super::tls::{BridgeStream, BridgeTls};
use super::watch::Health;
use super::wire;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lock::lock;
use crate::observability::Metrics;
use crate::rendezvous::RemoteNode;

/// Connections to one node. One would do for the windows, but is one core for all its TLS.
const CONNECTIONS: usize = 4;
/// A node that no tunnel leads to is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// The time to open a connection.
const DIAL: Duration = Duration::from_millis(2500);
/// How long a call waits for a new connection although others are open.
const SPREAD: Duration = Duration::from_millis(100);
/// The pause after the first failure to open a connection, doubled by each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// The most times that it is doubled: half a minute.
const DOUBLINGS: u32 = 5;

/// Why there is no connection to a node. All calls that wait for one get the same.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// TCP or TLS.
    #[error("cannot connect")]
    Stream(#[source] Arc<io::Error>),
    /// HTTP/2.
    #[error("the HTTP/2 handshake failed")]
    Http(#[source] Arc<h2::Error>),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Stream(Arc::new(error))
    }
}

impl From<h2::Error> for ConnectError {
    fn from(error: h2::Error) -> Self {
        Self::Http(Arc::new(error))
    }
}

/// Another node.
pub(super) struct Peer {
    authority: Authority,
    tls: Option<BridgeTls>,
    /// The name of the node, once it is known.
    name: Arc<OnceLock<String>>,
    slots: Mutex<Slots>,
    /// Rings when a dial has ended.
    dialed: Notify,
    /// Connections that are there.
    connected: Arc<AtomicUsize>,
    last_used: Mutex<Instant>,
    /// Which node was meant by the last call.
    meant: Mutex<Option<NodeId>>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
}

/// The connections to a node.
#[derive(Default)]
struct Slots {
    places: [Slot; CONNECTIONS],
    /// Dials that have failed, and why the last one did.
    failures: u64,
    failure: Option<ConnectError>,
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    open: Option<Opened>,
    is_dialing: bool,
    /// Dials that have failed in a row, and until when no more is tried while others are open.
    failures: u32,
    not_before: Option<Instant>,
}

/// The connection chosen for a call.
pub(super) struct Chosen {
    pub(super) requests: Requests,
    pub(super) health: Arc<Health>,
    /// Counts one more tunnel on it.
    pub(super) guard: CountGuard,
}

/// The connections available to a call.
struct Offered {
    best: Option<Opened>,
    /// A dial is under way that is worth waiting for.
    is_dialing: bool,
    failures: u64,
    failure: Option<ConnectError>,
}

/// Counts something as long as it lives.
pub(super) struct CountGuard(Arc<AtomicUsize>);

impl CountGuard {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// Creates it without connections.
    pub(super) fn new(
        authority: Authority,
        tls: Option<BridgeTls>,
        lifecycle: Lifecycle,
        metrics: Arc<Metrics>,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            authority,
            tls,
            name: Arc::default(),
            slots: Mutex::default(),
            dialed: Notify::new(),
            connected: Arc::default(),
            last_used: Mutex::new(Instant::now()),
            meant: Mutex::default(),
            lifecycle,
            metrics,
            budget,
        }
    }

    /// The authority for URIs.
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn name(&self) -> &str {
        self.known_name().unwrap_or("unknown")
    }

    /// The name of the node, once it is known.
    pub(super) fn known_name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    /// Notes that the node with this id is called.
    pub(super) fn is_meant_as(&self, id: &NodeId) {
        let mut meant = lock(&self.meant);
        if meant.as_ref() != Some(id) {
            *meant = Some(id.clone());
        }
    }

    /// Which node was meant by the last call.
    pub(super) fn meant(&self) -> Option<RemoteNode> {
        let id = lock(&self.meant).clone()?;
        Some(RemoteNode { id, address: self.authority.to_string() })
    }

    /// Notes what it calls itself; gives what it called itself first.
    pub(super) fn named(&self, said: &str) -> &str {
        self.name.get_or_init(|| wire::name_of(said).to_owned())
    }

    /// Tunnels to it.
    pub(super) fn streams(&self) -> usize {
        self.slots().places.iter().filter_map(|slot| slot.open.as_ref()).map(Opened::tunnels).sum()
    }

    /// Connections to it.
    pub(super) fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Returns the open connection with the fewest tunnels that gives signs of life, and opens one
    /// more if there should be one. Fails only if none is open and a dial fails.
    pub(super) async fn choose(self: &Arc<Self>) -> Result<Chosen, ConnectError> {
        *lock(&self.last_used) = Instant::now();
        let failures = self.slots().failures;
        let mut spread = std::pin::pin!(sleep(SPREAD));
        loop {
            let mut dialed = std::pin::pin!(self.dialed.notified());
            // From now on: a dial may end before it is waited for.
            dialed.as_mut().enable();
            let offered = self.offer(failures);
            match offered.best {
                Some(best) if !offered.is_dialing => return Ok(best.into()),
                Some(best) => tokio::select! {
                    () = dialed => {}
                    () = &mut spread => return Ok(best.into()),
                },
                None => match offered.failure {
                    Some(failure) if offered.failures > failures => return Err(failure),
                    Some(_) | None => dialed.await,
                },
            }
        }
    }

    /// Returns another connection than one that is suspected to be dead.
    pub(super) fn sound(&self) -> Option<Chosen> {
        let best = self.slots().best();
        best.filter(|best| !best.health.is_suspect()).map(Chosen::from)
    }

    /// A connection that is open, if there is one.
    pub(super) fn any_open(&self) -> Option<Chosen> {
        self.slots().best().map(Chosen::from)
    }

    /// Whether no tunnel has led to it for a while.
    pub(super) fn is_forgotten(&self) -> bool {
        let last_used = *lock(&self.last_used);
        self.streams() == 0 && last_used.elapsed() > FORGET_AFTER
    }

    /// The connections for a call that began after so many failures. Begins to dial if another
    /// connection is needed.
    fn offer(self: &Arc<Self>, failures: u64) -> Offered {
        let mut all = self.slots();
        let best = all.best();
        // The failure is that call's, too: no second dial for it.
        let has_failed = best.is_none() && all.failures > failures;
        let has_room = best.as_ref().is_some_and(|best| best.tunnels() == 0 && best.is_sound());
        if !has_failed
            && !has_room
            && let Some(number) = all.to_dial(best.is_some())
        {
            all.places[number].is_dialing = true;
            self.dial(number);
        }
        // One that has failed before is not waited for if there is another one.
        let is_dialing = !has_room && all.places.iter().any(|it| it.is_dialing && it.failures == 0);
        let (failures, failure) = (all.failures, all.failure.clone());
        Offered { best, is_dialing, failures, failure }
    }

    /// Opens a connection that no call waits for.
    fn dial(self: &Arc<Self>, number: usize) {
        let peer = Arc::clone(self);
        self.lifecycle.spawn(async move {
            let opened = timeout(DIAL, peer.open()).await;
            let opened = opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut));
            peer.slots().has_dialed(number, opened.map_err(ConnectError::from).flatten());
            peer.dialed.notify_waiters();
        });
    }

    async fn open(&self) -> Result<Opened, ConnectError> {
        let tcp = dial::connect(self.authority.as_str()).await?;
        tcp.set_nodelay(true)?;
        let stream = match &self.tls {
            Some(tls) => tls.connect(host_of(&self.authority), tcp).await?,
            None => BridgeStream::plain(tcp),
        };
        let watched = Watched {
            name: Arc::clone(&self.name),
            address: self.authority.to_string(),
            tunnels: Arc::default(),
            metrics: Arc::clone(&self.metrics),
        };
        let counted = stream.counted(CountGuard::new(&self.connected));
        let opened = connection::open(counted, watched, &self.budget).await?;
        if opened.health.answered().await {
            Ok(opened)
        } else {
            Err(io::Error::from(io::ErrorKind::ConnectionAborted).into())
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }
}

impl Slots {
    /// The open connection to use. Forgets those that have ended.
    fn best(&mut self) -> Option<Opened> {
        for slot in &mut self.places {
            slot.open = slot.open.take().filter(Opened::is_open);
        }
        let open = self.places.iter().filter_map(|slot| slot.open.as_ref());
        open.min_by_key(|open| (!open.is_sound(), open.tunnels())).cloned()
    }

    /// The number of a place to dial for. If another connection is open, one after the other and
    /// not too often; if none is, at once, but still one after the other.
    fn to_dial(&self, is_open: bool) -> Option<usize> {
        if self.places.iter().any(|slot| slot.is_dialing) {
            return None;
        }
        let now = Instant::now();
        let may = |slot: &Slot| !is_open || slot.not_before.is_none_or(|time| time <= now);
        self.places.iter().position(|slot| slot.open.is_none() && may(slot))
    }

    /// Notes what came of a dial.
    fn has_dialed(&mut self, number: usize, opened: Result<Opened, ConnectError>) {
        let slot = &mut self.places[number];
        slot.is_dialing = false;
        match opened {
            Ok(opened) => {
                (slot.open, slot.failures, slot.not_before) = (Some(opened), 0, None);
            }
            Err(failure) => {
                let pause = PAUSE * 2u32.pow(slot.failures.min(DOUBLINGS));
                slot.failures = slot.failures.saturating_add(1);
                slot.not_before = Some(Instant::now() + pause);
                self.failures += 1;
                self.failure = Some(failure);
            }
        }
    }
}

impl Opened {
    fn tunnels(&self) -> usize {
        self.watched.tunnels()
    }

    fn is_sound(&self) -> bool {
        !self.health.is_suspect()
    }

    fn is_open(&self) -> bool {
        // Never pending for a handle that has sent nothing.
        matches!(self.requests.clone().ready().now_or_never(), Some(Ok(_)))
    }
}

impl From<Opened> for Chosen {
    fn from(opened: Opened) -> Self {
        let guard = CountGuard::new(&opened.watched.tunnels);
        Self { requests: opened.requests, health: opened.health, guard }
    }
}

/// The host, without the brackets of an address of IPv6.
fn host_of(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_authorities() {
        let cases = [("node1:1213", "node1"), ("[::1]:1213", "::1"), ("127.0.0.1:1", "127.0.0.1")];
        for (authority, host) in cases {
            assert_eq!(host_of(&authority.parse().expect("an authority")), host);
        }
    }
}
