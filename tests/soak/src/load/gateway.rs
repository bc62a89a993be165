//! Gateways of the client library, which many apps attach to, and what is known about all gateways.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nymea_remoteproxy::client::{AppStream, Apps, Connector, Gateway};
use nymea_remoteproxy::protocol::Token;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::exchange::{self, Outcome};
use super::{Backoff, door, gateway_uuid, raw_gateway};
use crate::content::{Answer, Ending, Stream};
use crate::wire::{Closing, Way, of_library};
use crate::world::World;

/// The pauses of the client library between two tries to register again grow to 30 s.
const LIBRARY_SLACK: Duration = Duration::from_secs(35);
/// How long after a theft apps may still get to the thief.
const BEHIND_THIEF: Duration = Duration::from_secs(5);
/// How long after a loss of data in Redis another endpoint may obtain a registered UUID.
const ROBBED: Duration = Duration::from_secs(20);

/// How long a gateway that leaves may still be registered.
const LEAVING: Duration = Duration::from_secs(1);

/// What kind of client a gateway is, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavor {
    /// The library registers it again by itself.
    Kept,
    /// A program that is started again when its connection is lost.
    Library { way: Way, flow_control: bool },
    /// Without the library.
    Raw,
}

impl Flavor {
    fn of(number: usize) -> Self {
        match number % 5 {
            0 => Self::Kept,
            1 => Self::Library { way: Way::Tls, flow_control: true },
            3 => Self::Library { way: Way::Tcp, flow_control: false },
            _ => Self::Raw,
        }
    }
}

/// How much longer than others the apps of a gateway may need.
pub(super) fn slack(number: usize) -> Duration {
    match Flavor::of(number) {
        Flavor::Kept => LIBRARY_SLACK,
        Flavor::Library { .. } | Flavor::Raw => Duration::ZERO,
    }
}

/// What a gateway calls itself.
pub(super) fn name(number: usize) -> String {
    format!("gateway {number}")
}

/// Where a gateway is.
#[derive(Debug, Default)]
pub(crate) struct GatewayState {
    node: AtomicUsize,
    /// Counts its connections.
    epoch: AtomicU64,
    lost: Notify,
    /// On which node a stranger has got its UUID, and when.
    theft: Mutex<Option<(usize, Instant)>>,
    /// The epoch in which it is known to be registered.
    registered: AtomicU64,
    /// When it began to leave.
    left: Mutex<Option<Instant>>,
}

impl GatewayState {
    pub(super) fn node(&self) -> usize {
        self.node.load(Ordering::Acquire)
    }

    /// Another one after each end of its connection.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// It is registered on its connection.
    pub(super) fn registered(&self) {
        self.registered.store(self.epoch(), Ordering::Release);
    }

    /// Whether it is known to be registered.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire) == self.epoch()
    }

    /// A stranger has got its UUID on a node.
    pub(super) fn robbed(&self, node: usize) {
        *self.theft.lock().unwrap_or_else(PoisonError::into_inner) = Some((node, Instant::now()));
    }

    /// Whether an app that attached then may have got to the stranger.
    pub(super) fn may_be_robbed(&self, attached: Instant) -> bool {
        let theft = *self.theft.lock().unwrap_or_else(PoisonError::into_inner);
        theft.is_some_and(|(_, at)| at + BEHIND_THIEF > attached)
    }

    /// Whether another node may have obtained the UUID because Redis had just lost the registration.
    fn is_robbed_elsewhere(&self, node: usize, world: &World) -> bool {
        let theft = *self.theft.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((its_node, at)) = theft else { return false };
        its_node != node
            && at.elapsed() < ROBBED
            && !world.is_quiet(ROBBED, |fault| fault.kind.troubles_redis())
    }

    /// It has connected to a node; the number of the connection.
    pub(super) fn connected(&self, node: usize) -> u64 {
        self.node.store(node, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// It leaves by itself.
    fn leave(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether an app that attached then may have been attached to a connection that was ending.
    pub(super) fn may_have_been_leaving(&self, attached: Instant) -> bool {
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.is_some_and(|at| at + LEAVING > attached)
    }

    /// This connection has ended.
    pub(super) fn disconnected(&self, connection: u64) {
        if self.epoch() == connection {
            self.epoch.fetch_add(1, Ordering::AcqRel);
            self.lost.notify_one();
        }
    }
}

/// One gateway, until the run is over.
pub(super) async fn run(world: Arc<World>, number: usize) {
    let (way, flow_control, kept) = match Flavor::of(number) {
        Flavor::Raw => return raw_gateway::run(world, number).await,
        Flavor::Kept => (Way::SecureWebSocket, true, true),
        Flavor::Library { way, flow_control } => (way, flow_control, false),
    };
    let state = Arc::clone(&world.load.gateways[number]);
    let door = match door::open(&world, &state, way).await {
        Ok(door) => door,
        Err(error) => return world.journal.violation("load", format_args!("no door: {error:#}")),
    };
    let url = format!("{}://{door}", way.scheme().unwrap_or_default());
    let connector = Connector::new(&url).and_then(|it| it.ca(&world.cluster.ca));
    let connector = match connector {
        Ok(connector) => connector.name(name(number)).connect_timeout(Duration::from_secs(5)),
        Err(error) => return world.journal.violation("load", error),
    };
    let mut gateway = Gateway::new(connector, gateway_uuid(number)).flow_control(flow_control);
    let mut random = world.random();
    if world.cluster.tokens.of_gateways() || random.random_bool(0.5) {
        gateway = gateway.token(Token::new(format!("soak-gateway-{number}")));
    }
    let mut backoff = Backoff::default();
    while !world.leaving.is_cancelled() {
        let registered = tokio::select! {
            registered = Box::pin(gateway.register()) => registered,
            () = world.leaving.cancelled() => break,
        };
        match registered {
            Ok(apps) => {
                backoff = Backoff::default();
                world.statistics.count("gateways: registered");
                serve(&world, number, &state, apps, kept, &mut random).await;
            }
            Err(error) => {
                world.statistics.count(format!("gateways: not registered: {error}"));
                world.journal.detail(format_args!("{}: {error}", name(number)));
            }
        }
        backoff.pause(&world, &mut random).await;
    }
}

/// Serves apps until the registration is lost, or given up.
async fn serve(
    world: &Arc<World>,
    number: usize,
    state: &GatewayState,
    mut apps: Apps,
    kept: bool,
    random: &mut StdRng,
) {
    let served = TaskTracker::new();
    let leaves = Duration::from_secs(random.random_range(20..120));
    let time_to_leave = sleep(leaves);
    tokio::pin!(time_to_leave);
    state.registered();
    let (mut node, mut epoch) = (state.node(), state.epoch());
    let mut was_used = false;
    loop {
        tokio::select! {
            accepted = apps.accept() => match accepted {
                Ok(app) => {
                    state.registered();
                    (node, epoch, was_used) = (state.node(), state.epoch(), true);
                    served.spawn(answer(Arc::clone(world), number, state.node(), app));
                }
                Err(error) => {
                    world.journal.violation("gateway", format_args!("{}: {error}", name(number)));
                    break;
                }
            },
            () = state.lost.notified() => {
                // Else it was a connection before this one.
                let is_lost = state.epoch() != epoch;
                // Otherwise the library may not have registered again yet.
                if is_lost && (was_used || !kept) {
                    judge_loss(world, number, node, "its connection ended");
                }
                (node, epoch, was_used) = (state.node(), state.epoch(), false);
                if is_lost && !kept {
                    break;
                }
            }
            () = &mut time_to_leave, if !kept => break,
            () = world.leaving.cancelled() => break,
        }
    }
    state.leave();
    drop(apps);
    served.close();
    served.wait().await;
}

/// A gateway must not lose its connection without a fault.
pub(super) fn judge_loss(world: &World, number: usize, node: usize, how: &str) {
    let seen = format!("{} on node {}: {how}", name(number), node + 1);
    world.journal.detail(&seen);
    world.statistics.count("gateways: connections lost");
    if world.load.gateways[number].is_robbed_elsewhere(node, world) {
        return world.statistics.count("gateways: lost a UUID that Redis had lost");
    }
    if !world.is_excused(node, node) && !world.leaving.is_cancelled() {
        world.journal.violation("gateway", seen);
    }
}

/// An app that has left in order must have been received completely.
pub(super) fn judge_end(world: &World, node: usize, stream: &Stream, received: u64) {
    let Some(Ending::Orderly(total)) = stream.ending() else { return };
    if total == received || world.is_excused(stream.node, node) {
        return;
    }
    if stream.answer().is_some_and(Answer::is_superseded) {
        return world.statistics.count("gateways: the rest of an app that had come again is lost");
    }
    let what = format!("{}: {received} of {total} bytes", stream.sender);
    world.journal.violation("gateway", what);
}

/// Answers one app, and judges the end.
async fn answer(world: Arc<World>, number: usize, node: usize, app: AppStream) {
    let app_name = app.info().name.clone();
    if !app_name.ends_with(&name(number)) {
        let what = format!("{}: attached to {}", app_name, name(number));
        return world.journal.violation("mispaired", what);
    }
    let halves = of_library(app, true);
    let (outcome, checker) = exchange::answer(&world, &app_name, halves).await;
    let seen = checker.stream();
    match outcome {
        Outcome::Wrong(what) => {
            world.journal.violation("content", format_args!("{}: {what}", name(number)));
        }
        Outcome::Ended(Closing::Complete) => {
            if let Some(stream) = seen {
                judge_end(&world, node, stream, checker.received());
            }
        }
        Outcome::Done | Outcome::Left | Outcome::Ended(_) => {}
    }
}
