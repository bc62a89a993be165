//! The gateways that are registered on a node, and the apps that are attached to them, with what
//! went to and from each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ids::{ClientAddr, ConnectionId, OfferId};
use crate::lock::lock;

/// A gateway that is registered here.
#[derive(Debug)]
pub struct GatewayRecord {
    /// The id of its registration.
    pub id: OfferId,
    /// Its connection.
    pub connection: ConnectionId,
    /// The address of the gateway.
    pub client_addr: ClientAddr,
    /// What it has registered under.
    pub uuid: Uuid,
    /// As it wrote it.
    pub name: String,
    /// Since when it is registered.
    pub since: SystemTime,
    /// What came from it and went to it, with the framing.
    pub bytes: Bytes,
    began: Instant,
    /// When it sent something last, in milliseconds since it began.
    heard: AtomicU64,
    apps: Mutex<BTreeMap<u16, Arc<AppRecord>>>,
    close: CancellationToken,
}

/// An app that is attached to a gateway, on whichever node.
#[derive(Debug)]
pub struct AppRecord {
    /// The id of its tunnel.
    pub id: OfferId,
    /// What it has registered under.
    pub uuid: Uuid,
    /// As it wrote it.
    pub name: String,
    /// The IP address of the app, as its own node saw it.
    pub peer_address: String,
    /// The name of its node if that is another one.
    pub node: Option<String>,
    /// By which the gateway knows it.
    pub socket_address: u16,
    /// Since when it is attached.
    pub since: SystemTime,
    /// What came from it and went to it: payload.
    pub bytes: Bytes,
}

impl AppRecord {
    /// It has just been attached, under this socket address.
    pub fn new(
        id: OfferId,
        (uuid, name): (Uuid, String),
        (peer_address, node): (String, Option<String>),
        socket_address: u16,
    ) -> Self {
        let since = SystemTime::now();
        let bytes = Bytes::default();
        Self { id, uuid, name, peer_address, node, socket_address, since, bytes }
    }
}

/// The bytes of one endpoint, counted by the one task that moves them.
#[derive(Debug, Default)]
pub struct Bytes {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Bytes {
    /// So many more came from it.
    pub fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many more are on their way to it.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What came from it.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// What went to it.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl GatewayRecord {
    /// It has just registered.
    pub fn new(
        id: OfferId,
        (connection, client_addr): (ConnectionId, ClientAddr),
        (uuid, name): (Uuid, String),
    ) -> Self {
        Self {
            id,
            connection,
            client_addr,
            uuid,
            name,
            since: SystemTime::now(),
            bytes: Bytes::default(),
            began: Instant::now(),
            heard: AtomicU64::new(0),
            apps: Mutex::default(),
            close: CancellationToken::new(),
        }
    }

    /// Notes that it has sent something.
    pub fn heard(&self, now: Instant) {
        let since = now.saturating_duration_since(self.began).as_millis();
        self.heard.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long it has sent nothing.
    pub fn silent_for(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(heard)
    }

    /// Its apps, by their socket addresses.
    pub fn apps(&self) -> Vec<Arc<AppRecord>> {
        self.lock().values().cloned().collect()
    }

    /// How many apps it has.
    pub fn app_count(&self) -> usize {
        self.lock().len()
    }

    /// An app is attached.
    pub fn attached(&self, app: Arc<AppRecord>) {
        self.lock().insert(app.socket_address, app);
    }

    /// An app is gone.
    pub fn detached(&self, socket_address: u16) {
        self.lock().remove(&socket_address);
    }

    /// Done when an operator wants it to end.
    pub fn is_unwanted(&self) -> impl Future<Output = ()> + use<> {
        self.close.clone().cancelled_owned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<AppRecord>>> {
        lock(&self.apps)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Gateways {
    registered: Mutex<BTreeMap<OfferId, Arc<GatewayRecord>>>,
}

impl Gateways {
    /// A gateway is registered, until the guard is dropped.
    pub fn begin(self: &Arc<Self>, record: Arc<GatewayRecord>) -> GatewayGuard {
        self.lock().insert(record.id, Arc::clone(&record));
        GatewayGuard { record, gateways: Arc::clone(self) }
    }

    /// All of them, in the order of their ids.
    pub fn list(&self) -> Vec<Arc<GatewayRecord>> {
        self.lock().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many apps are attached to them.
    pub fn app_count(&self) -> usize {
        self.lock().values().map(|gateway| gateway.app_count()).sum()
    }

    /// Ends a gateway's connection. False if there is none with this id.
    pub fn close(&self, id: OfferId) -> bool {
        self.lock().get(&id).map(|record| record.close.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OfferId, Arc<GatewayRecord>>> {
        lock(&self.registered)
    }
}

/// Keeps a gateway in the list.
#[derive(Debug)]
pub struct GatewayGuard {
    record: Arc<GatewayRecord>,
    gateways: Arc<Gateways>,
}

impl GatewayGuard {
    /// What is known of it.
    pub fn record(&self) -> &Arc<GatewayRecord> {
        &self.record
    }
}

impl Drop for GatewayGuard {
    fn drop(&mut self) {
        self.gateways.lock().remove(&self.record.id);
    }
}
