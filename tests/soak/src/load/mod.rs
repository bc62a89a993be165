//! The clients of the run: honest pairs, gateways with their apps, strangers and intruders.

mod app;
mod door;
mod exchange;
mod gateway;
mod intruder;
mod meeting;
mod pair;
mod raw_gateway;
mod session;
mod stranger;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::app::AppState;
use self::gateway::GatewayState;
use self::pair::Pair;
use crate::options::Options;
use crate::world::World;

/// The time between two checks for endpoints that wait too long.
const LOOK: Duration = Duration::from_millis(500);
/// Between two tries of an honest endpoint, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// All honest clients.
pub(crate) struct Load {
    pairs: Vec<Arc<Pair>>,
    apps: Vec<Arc<AppState>>,
    gateways: Vec<Arc<GatewayState>>,
    /// The names of the clients that have not left.
    clients: Mutex<BTreeSet<String>>,
}

impl Load {
    pub(crate) fn new(options: &Options) -> Self {
        let pairs = (0..options.pairs).map(|number| Arc::new(Pair::new(number))).collect();
        let apps = (0..options.gateways)
            .flat_map(|gateway| (0..options.apps).map(move |app| (gateway, app)))
            .map(|(gateway, app)| Arc::new(AppState::new(gateway, app)))
            .collect();
        let gateways = (0..options.gateways).map(|_| Arc::default()).collect();
        Self { pairs, apps, gateways, clients: Mutex::default() }
    }

    /// Starts all clients; they leave when the world says so.
    pub(crate) fn start(&self, world: &Arc<World>) {
        for pair in &self.pairs {
            for end in 0..2 {
                let client = pair::run(Arc::clone(world), Arc::clone(pair), end);
                self.add(world, pair.end_name(end), client);
            }
        }
        for number in 0..self.gateways.len() {
            self.add(world, gateway::name(number), gateway::run(Arc::clone(world), number));
        }
        for app in &self.apps {
            self.add(world, app.name(), app::run(Arc::clone(world), Arc::clone(app)));
        }
        for number in 0..world.options.strangers {
            self.add(world, format!("stranger {number}"), stranger::run(Arc::clone(world)));
        }
        for number in 0..world.options.intruders {
            self.add(world, format!("intruder {number}"), intruder::run(Arc::clone(world)));
        }
        self.add(world, "watch".into(), watch(Arc::clone(world)));
    }

    fn add(
        &self,
        world: &Arc<World>,
        name: String,
        client: impl Future<Output = ()> + Send + 'static,
    ) {
        self.clients().insert(name.clone());
        let world_of_it = Arc::clone(world);
        world.tasks.spawn(async move {
            client.await;
            world_of_it.load.clients().remove(&name);
        });
    }

    /// The names of the clients that have not left.
    pub(crate) fn clients(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has not met the other end since this time, in words.
    pub(crate) fn unwell(&self, since: Instant) -> Vec<String> {
        let pairs = self.pairs.iter().filter_map(|pair| pair.meeting.unwell(since));
        pairs.chain(self.apps.iter().filter_map(|app| app.meeting.unwell(since))).collect()
    }

    fn some_pair(&self, random: &mut StdRng) -> Option<&Arc<Pair>> {
        (!self.pairs.is_empty()).then(|| &self.pairs[random.random_range(0..self.pairs.len())])
    }
}

/// The UUID of a gateway by its number.
fn gateway_uuid(number: usize) -> Uuid {
    Uuid::from_u128(0x50AC_0000_0000_4000_8000_0000_0000_0000 + number as u128)
}

/// Records who waits for too long.
async fn watch(world: Arc<World>) {
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = world.leaving.cancelled() => return,
        }
        let Some(last) = world.history.last_over(world.start) else { continue };
        if last.elapsed() < world.options.bound() {
            continue;
        }
        let meetings = world.load.pairs.iter().map(|pair| &pair.meeting);
        for meeting in meetings.chain(world.load.apps.iter().map(|app| &app.meeting)) {
            if let Some(what) = meeting.overdue(world.options.bound()) {
                world.journal.violation("not met", what);
            }
        }
    }
}

/// Pauses that grow, and are left to chance for up to a half.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Backoff {
    async fn pause(&mut self, world: &World, random: &mut StdRng) {
        let pause = self.0.mul_f64(random.random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = sleep(pause) => {}
            () = world.leaving.cancelled() => {}
        }
    }
}
