//! The rendezvous of a cluster: entries in Redis, changed in one atomic step, so that all nodes agree.
//!
//! An entry is alive as long as its node has a lease; a node has one lease, not one per entry. A
//! tunnel costs four commands: two offers, a read of the lease of the first offer's node if that is
//! another one, and a release. While the tunnel or a waiting endpoint lasts, its entry is read once
//! per [`Pace::verify`]. While Redis is away, endpoints of this node are paired here.

mod decide;
mod directory;
mod errands;
mod fate;
mod fence;
mod keeper;
mod keys;
mod link;
mod listing;
mod local;
mod lookout;
mod scripts;
mod sentinels;
mod server;
mod target;
mod verify;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::fate::Neighbourhood;
use self::keys::Keys;
use self::link::Link;
use self::listing::Listing;
use self::local::Local;
use self::scripts::{Lives, Scripts};
use self::target::Target;
use super::{Answer, Load, Neighbours, NodeInfo, Offer, Rendezvous};
use crate::config;
use crate::ids::{NodeId, OfferId};
use crate::lock::lock;
use crate::observability::{Metrics, Telemetry};
use crate::protocol::PairingKey;

pub use self::link::{Health, Unanswered};
pub use self::target::SetupError;

/// The longest pause between two questions.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The data about this node that other nodes read.
#[derive(Clone)]
pub struct NodeFacts {
    /// The id of the node; new for each start.
    pub id: NodeId,
    /// The name of the node.
    pub name: String,
    /// The bridge address for other nodes, `host:port`.
    pub bridge_address: String,
    /// The longest time that its endpoints wait.
    pub waiting: Duration,
    /// The source of its load.
    pub load: Option<LoadOf>,
    /// Its telemetry.
    pub telemetry: Option<Telemetry>,
}

/// Says what a node is doing.
pub type LoadOf = Arc<dyn Fn() -> Load + Send + Sync>;

/// The rhythm in which things are done. The defaults are right; tests are in a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a node counts as alive without refreshing its lease.
    pub lease: Duration,
    /// How often it does.
    pub refresh: Duration,
    /// How long the entry of a tunnel stays in Redis; it is renewed in half of that.
    pub standing: Duration,
    /// How much longer a waiting entry stays in Redis than its endpoint waits.
    pub slack: Duration,
    /// How often each entry of this node is compared with what Redis has.
    pub verify: Duration,
    /// When all offers are put up again, they are spread over this time.
    pub spread: Duration,
    /// The longest pause between two attempts to connect.
    pub backoff: Duration,
    /// How long cleaning up may take at the end.
    pub farewell: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            refresh: Duration::from_secs(3),
            standing: Duration::from_hours(24),
            slack: Duration::from_secs(30),
            verify: Duration::from_secs(10),
            spread: Duration::from_millis(500),
            backoff: MAX_PAUSE,
            farewell: Duration::from_secs(3),
        }
    }
}

/// Entries in Redis.
pub struct RedisRendezvous {
    core: Arc<Core>,
    tasks: TaskTracker,
}

/// The state shared by the offers and the keeper.
struct Core {
    node: NodeId,
    info: NodeInfo,
    load: Option<LoadOf>,
    patience: Duration,
    pace: Pace,
    link: Link,
    scripts: Scripts,
    local: Mutex<Local>,
    listing: Mutex<Listing>,
    neighbourhood: Neighbourhood,
    /// There may be new errands.
    errands: Notify,
    epoch: watch::Sender<u64>,
    closing: CancellationToken,
}

impl RedisRendezvous {
    /// Starts to keep in touch with Redis, which may be away. Must be called within a tokio
    /// runtime.
    pub fn start(
        settings: &config::Redis,
        facts: NodeFacts,
        pace: Pace,
    ) -> Result<Arc<Self>, SetupError> {
        let target = Target::new(settings)?;
        let metrics = facts.telemetry.as_ref().map(|telemetry| Arc::clone(&telemetry.metrics));
        let core = Arc::new(Core::new(settings, facts, pace));
        if let Some(metrics) = metrics {
            observe(&core, &metrics);
        }
        let tasks = TaskTracker::new();
        tasks.spawn(keeper::run(Arc::clone(&core), target, tasks.clone()));
        tasks.spawn(verify::run(Arc::clone(&core)));
        tasks.close();
        Ok(Arc::new(Self { core, tasks }))
    }

    /// Whether these settings can be used; what they name is not asked for.
    pub fn check(settings: &config::Redis) -> Result<(), SetupError> {
        Target::new(settings).map(|_| ())
    }

    /// From now on, the node of an entry that is in the way is queried before an endpoint is
    /// refused. Has no effect the second time.
    pub fn query_neighbours(&self, neighbours: Arc<dyn Neighbours>) {
        self.core.neighbourhood.set(neighbours);
    }

    /// Whether Redis answers.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.core.link.health()
    }

    /// All nodes of the cluster: those that have a lease.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Unanswered> {
        self.core.nodes().await
    }

    /// Takes everything of this node out of Redis. Nothing may be offered any more.
    pub async fn close(&self) {
        self.core.closing.cancel();
        // The task bounds its own end; this is for the case that it does not.
        let _ = timeout(self.core.pace.farewell + self.core.patience, self.tasks.wait()).await;
    }
}

fn observe(core: &Arc<Core>, metrics: &Metrics) {
    let of = |value: fn(&Core) -> f64| {
        let core = Arc::downgrade(core);
        move || core.upgrade().map(|core| value(&core))
    };
    let up = of(|core| f64::from(u8::from(core.link.is_connected())));
    metrics.observe(("remoteproxy.redis.up", ""), "1 if Redis accepts the lease of this node", up);
    #[expect(clippy::cast_precision_loss, reason = "errands are few")]
    let backlog = of(|core| core.backlog().0 as f64);
    metrics.observe(
        ("remoteproxy.redis.backlog", ""),
        "Releases and other deferred commands that wait for Redis",
        backlog,
    );
    #[expect(clippy::cast_precision_loss, reason = "2^53 are enough")]
    let dropped = of(|core| core.backlog().1 as f64);
    metrics.observe_total(
        ("remoteproxy.redis.dropped", ""),
        "Releases and other deferred commands dropped because too many were waiting",
        move || dropped().unwrap_or_default(),
    );
}

impl Drop for RedisRendezvous {
    fn drop(&mut self) {
        self.core.closing.cancel();
    }
}

impl Rendezvous for RedisRendezvous {
    fn offer(self: Arc<Self>, offer: Offer) -> BoxFuture<'static, Answer> {
        // Known from now on, even if the future is dropped before it is polled.
        let again = self.core.local().enter(&offer);
        let core = Arc::clone(&self.core);
        async move { core.decide(&offer, again).await }.boxed()
    }

    fn release(&self, key: PairingKey, offer: OfferId) {
        self.core.local().release(key, offer);
        self.core.errands.notify_one();
    }

    fn give_back(&self, key: PairingKey, owner: OfferId, claimer: OfferId) {
        self.core.local().give_back(key, owner, claimer);
        self.core.errands.notify_one();
    }

    fn stands(&self, offer: Offer) -> bool {
        self.core.local().stands(&offer)
    }

    fn epoch(&self) -> watch::Receiver<u64> {
        self.core.epoch.subscribe()
    }

    fn lost(&self, offer: Offer, mut epoch: watch::Receiver<u64>) -> BoxFuture<'static, ()> {
        let alone = self.core.local().lost(&offer);
        async move {
            let alone = async {
                match alone {
                    Some(alone) => alone.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Fails only at the end of the node.
                Ok(()) = epoch.changed() => {}
                () = alone => {}
            }
        }
        .boxed()
    }

    fn has(&self, offer: OfferId) -> bool {
        self.core.local().has(offer)
    }
}

impl Core {
    fn new(settings: &config::Redis, facts: NodeFacts, pace: Pace) -> Self {
        let lives = Lives {
            waiting: facts.waiting + pace.slack,
            standing: pace.standing,
            lease: pace.lease,
        };
        let started = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        let info = NodeInfo {
            node: facts.id.to_string(),
            name: facts.name,
            address: facts.bridge_address.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: started.to_string(),
            load: Load::default(),
        };
        let keys = Keys::new(&settings.prefix);
        let scripts = Scripts::new(keys, facts.id.clone(), facts.bridge_address, lives);
        Self {
            node: facts.id,
            info,
            load: facts.load,
            patience: settings.timeout,
            pace,
            link: Link::new(settings.timeout, facts.telemetry.as_ref()),
            scripts,
            local: Mutex::default(),
            listing: Mutex::default(),
            neighbourhood: Neighbourhood::default(),
            errands: Notify::new(),
            epoch: watch::Sender::new(0),
            closing: CancellationToken::new(),
        }
    }

    /// This node as it is now.
    fn info(&self) -> NodeInfo {
        let load = self.load.as_ref().map(|load| load()).unwrap_or_default();
        NodeInfo { load, ..self.info.clone() }
    }

    fn facts(&self) -> String {
        json!(self.info()).to_string()
    }

    /// All nodes with a lease; this one as it is now.
    async fn nodes(&self) -> Result<Vec<NodeInfo>, Unanswered> {
        let listed = self.scripts.listed();
        let listed: HashMap<String, String> =
            self.link.ask("nodes", async |connection| listed.query_async(connection).await).await?;
        let mut nodes = vec![self.info()];
        for (node, facts) in listed {
            if node == self.node.as_str() {
                continue;
            }
            if !self.unlist_if_dead(&node).await? {
                nodes.extend(serde_json::from_str::<NodeInfo>(&facts));
            }
        }
        nodes.sort_by(|one, other| (&one.name, &one.node).cmp(&(&other.name, &other.node)));
        Ok(nodes)
    }

    /// Takes a node without a lease off the list of all nodes; true if it has none.
    async fn unlist_if_dead(&self, node: &str) -> Result<bool, Unanswered> {
        if self.is_alive(node).await? {
            return Ok(false);
        }
        let unlist = self.scripts.unlist(node);
        let asked =
            self.link.ask("nodes", async |connection| unlist.query_async::<u8>(connection).await);
        asked.await.map(|_| true)
    }

    /// Errands that wait, and those that there was no room for.
    fn backlog(&self) -> (usize, u64) {
        let (local, listing) = (self.local().backlog(), self.listing().backlog());
        (local.0 + listing.0, local.1 + listing.1)
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        // A panic in the middle of a change would be a fault of `local`, not of the data.
        lock(&self.local)
    }

    fn listing(&self) -> MutexGuard<'_, Listing> {
        lock(&self.listing)
    }

    /// Whether there are errands to run.
    fn has_errands(&self) -> bool {
        self.local().has_errands() || self.listing().has_errands()
    }

    /// Redis may have lost what this node has put there.
    fn lapsed(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        self.local().assert_all();
        self.listing().assert_older_than(Duration::ZERO);
        self.errands.notify_one();
    }

    /// Whether this node has a lease. After an outage of Redis that says nothing, until all nodes
    /// had the time to renew theirs.
    async fn is_alive(&self, node: &str) -> Result<bool, Unanswered> {
        if node == self.node.as_str() {
            return Ok(true);
        }
        let command = self.scripts.is_alive(node);
        self.link.ask("alive", async |connection| command.query_async(connection).await).await
    }
}

/// A pause that grows with the attempts and is never the same twice.
fn backoff(attempts: u32, longest: Duration) -> Duration {
    let pause = Duration::from_millis(50).saturating_mul(1 << attempts.min(10)).min(longest);
    pause.mul_f64(rand::random_range(0.5..1.0))
}
