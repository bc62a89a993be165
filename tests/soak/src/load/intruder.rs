//! A third endpoint, which must never get into an established tunnel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::pair::Pair;
use crate::faults::{Injected, Kind};
use crate::wire::{Closing, Refused, Way, connect};
use crate::world::World;

/// The name that it shows.
pub(super) const NAME: &str = "intruder";
/// How long it takes until all nodes know again what is established, in seconds.
const REPAIRED: u64 = 20;
/// How long a refusal may take, in seconds.
const REFUSAL: u64 = 10;

/// What an intruder has met with.
#[derive(Debug)]
enum Outcome {
    Refused,
    Established,
    /// It could not be tried.
    Failed(String),
    /// It was not refused in time.
    Kept,
}

/// Intruders, one after the other.
pub(super) async fn run(world: Arc<World>) {
    let mut random = world.random();
    loop {
        tokio::select! {
            () = sleep(Duration::from_millis(random.random_range(200..1500))) => {}
            () = world.leaving.cancelled() => return,
        }
        let Some(pair) = world.load.some_pair(&mut random) else { return };
        let Some(node) = world.some_node(&mut random) else { continue };
        let way = Way::any(&mut random);
        Box::pin(intrude(&world, pair, node, way)).await;
    }
}

async fn intrude(world: &World, pair: &Pair, node: usize, way: Way) {
    let Some(before) = pair.meeting.together() else { return };
    let begun = Instant::now();
    pair.intruders.fetch_add(1, Ordering::AcqRel);
    let outcome = attempt(world, pair, node, way).await;
    let took = begun.elapsed();
    let [one, other] = before.nodes();
    let what = format!(
        "pair {} on nodes {} and {}, intruder on node {} by {way:?}, {:.1} s",
        pair.number,
        one + 1,
        other + 1,
        node + 1,
        took.as_secs_f64()
    );
    world.journal.detail(format_args!("{what}: {outcome:?}"));
    let how = match outcome {
        Outcome::Refused => return world.statistics.count("intruders: refused"),
        Outcome::Failed(reason) => return world.statistics.count(format!("intruders: {reason}")),
        Outcome::Kept => "not refused",
        Outcome::Established => "established",
    };
    world.statistics.count(format!("intruders: {how}"));
    // A node that cannot ask Redis cannot know, and one without a lease has lost what it had.
    let since = took + world.options.within(REPAIRED);
    let unaffected = world.is_quiet(since, |fault| concerns(fault, &before.nodes(), node));
    // If the tunnel has ended in the same moment, the intruder may have got one of its ends.
    if unaffected && stays(pair, &before).await {
        world.journal.violation("intruder", format_args!("{what}: {how}"));
    }
}

/// Whether the same tunnel goes on.
async fn stays(pair: &Pair, before: &super::meeting::Together) -> bool {
    let Some(now) = pair.meeting.together() else { return false };
    for _ in 0..50 {
        sleep(Duration::from_millis(100)).await;
        let Some(later) = pair.meeting.together() else { return false };
        if now.has_moved_on(&later) {
            return before.has_moved_on(&later);
        }
    }
    false
}

/// Whether a fault may keep a node from knowing that a tunnel is established.
fn concerns(fault: &Injected, ends: &[usize; 2], node: usize) -> bool {
    if fault.kind.troubles_redis() {
        return true;
    }
    let asked = |at: usize| fault.kind.harm(fault.target).reaches(at, at);
    let link = ends.iter().any(|end| fault.kind.harm(fault.target).reaches(*end, node));
    matches!(fault.kind, Kind::Kill | Kind::Drain) || link || asked(node)
}

async fn attempt(world: &World, pair: &Pair, node: usize, way: Way) -> Outcome {
    let connected = connect(way, &world.place(node, way), None, &world.tls).await;
    let Ok(mut dialogue) = connected else { return Outcome::Failed("no connection".into()) };
    let mut params =
        json!({ "token": pair.token, "name": NAME, "uuid": uuid::Uuid::new_v4().to_string() });
    if let Some(nonce) = &pair.nonce {
        params["nonce"] = nonce.as_str().into();
    }
    let asking = async {
        dialogue.authenticate(&params).await?;
        dialogue.established().await
    };
    match timeout(world.options.within(REFUSAL), asking).await {
        Ok(Ok(_name)) => Outcome::Established,
        Ok(Err(Refused::Closed(Closing::Reason { code: 1008, .. }))) => Outcome::Refused,
        // A stream has no codes.
        Ok(Err(Refused::Closed(Closing::Complete | Closing::Unknown | Closing::Broken(_)))) => {
            Outcome::Refused
        }
        Ok(Err(refused)) => Outcome::Failed(refused.to_string()),
        Err(_) => Outcome::Kept,
    }
}
