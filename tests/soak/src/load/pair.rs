//! Two honest endpoints with the same token, which meet again whenever their tunnel has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nymea_remoteproxy::client::Connector;
use nymea_remoteproxy::protocol::Token;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Backoff;
use super::meeting::Meeting;
use super::session::{Finished, Manner, Session};
use crate::content::{Alphabet, Checker, Ending};
use crate::statistics;
use crate::wire::{Closing, Reader, Refused, Way, Writer, connect, of_library};
use crate::world::World;

/// How long an answer to an authentication may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an endpoint waits for its partner: longer than a node does.
const WAITING: Duration = Duration::from_secs(90);

/// Two endpoints.
pub(crate) struct Pair {
    pub(crate) number: usize,
    pub(crate) token: String,
    pub(crate) nonce: Option<String>,
    pub(crate) meeting: Meeting,
    /// Intruders that have tried this pair's token, ever.
    pub(crate) intruders: AtomicU64,
}

impl Pair {
    pub(super) fn new(number: usize) -> Self {
        Self {
            number,
            token: format!("soak-pair-{}", number / 2 * 2),
            // Two pairs with one token, of which one has a nonce.
            nonce: (number % 2 == 1).then(|| format!("nonce {number}")),
            meeting: Meeting::new(format!("pair {number}"), statistics::Meeting::Pair),
            intruders: AtomicU64::new(0),
        }
    }

    pub(super) fn end_name(&self, end: usize) -> String {
        format!("pair {} end {end}", self.number)
    }

    fn uuid(&self, end: usize) -> Uuid {
        let number = (self.number * 2 + end) as u128;
        Uuid::from_u128(0x50AC_0001_0000_4000_8000_0000_0000_0000 + number)
    }
}

/// How an endpoint connects this time.
struct Try {
    node: usize,
    way: Way,
    generation: u8,
    library: bool,
}

impl std::fmt::Display for Try {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, way, generation, library } = self;
        let by = if *library { "library" } else { "raw" };
        write!(f, "node {} by {way:?} ({by}, generation {generation})", node + 1)
    }
}

/// One end of a pair, until the run is over.
pub(super) async fn run(world: Arc<World>, pair: Arc<Pair>, end: usize) {
    let mut random = world.random();
    let mut backoff = Backoff::default();
    while !world.leaving.is_cancelled() {
        pair.meeting.trying(end, "between two tries");
        let Some(node) = world.some_node(&mut random) else {
            backoff.pause(&world, &mut random).await;
            continue;
        };
        let way = Way::any(&mut random);
        let generation = if pair.nonce.is_some() || random.random_bool(0.5) { 2 } else { 1 };
        let library = way.is_websocket() && random.random_bool(0.5);
        let one_try = Try { node, way, generation, library };
        pair.meeting.trying(end, one_try.to_string());
        let opened = tokio::select! {
            opened = Box::pin(open(&world, &pair, end, &one_try)) => opened,
            () = world.leaving.cancelled() => break,
        };
        match opened {
            Ok((reader, writer)) => {
                backoff = Backoff::default();
                pair.meeting.established(end);
                Box::pin(meet(&world, &pair, end, &one_try, (reader, writer), &mut random)).await;
                pair.meeting.away(end);
                pause(&world, &mut random).await;
            }
            Err(reason) => {
                world.statistics.count(format!("pairs: not met: {reason}"));
                world.journal.detail(format_args!("{} on {one_try}: {reason}", pair.end_name(end)));
                backoff.pause(&world, &mut random).await;
            }
        }
    }
    pair.meeting.away(end);
}

/// Between two tunnels.
async fn pause(world: &World, random: &mut StdRng) {
    let most = if random.random_bool(0.2) { 4000 } else { 300 };
    tokio::select! {
        () = sleep(Duration::from_millis(random.random_range(0..most))) => {}
        () = world.leaving.cancelled() => {}
    }
}

/// Connects and waits for the partner; `Err` says why there is no tunnel.
async fn open(
    world: &World,
    pair: &Pair,
    end: usize,
    one_try: &Try,
) -> Result<(Reader, Writer), String> {
    let opened = if one_try.library {
        timeout(WAITING, by_library(world, pair, end, one_try)).await
    } else {
        timeout(WAITING, by_hand(world, pair, end, one_try)).await
    };
    opened.unwrap_or_else(|_| Err("the node does not end the waiting".into()))
}

async fn by_library(
    world: &World,
    pair: &Pair,
    end: usize,
    one_try: &Try,
) -> Result<(Reader, Writer), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let url = world.url(one_try.node, one_try.way).ok_or("no URL")?;
    let connector = Connector::new(&url).map_err(|error| said(&error))?;
    let connector = connector.ca(&world.cluster.ca).map_err(|error| said(&error))?;
    let connector = connector
        .name(pair.end_name(end))
        .uuid(pair.uuid(end))
        .connect_timeout(Duration::from_secs(5))
        .authentication_timeout(ANSWER)
        .waiting_timeout(WAITING);
    let connector = if one_try.generation == 1 { connector.anonymous() } else { connector };
    let token = Token::new(&pair.token);
    let waiting = connector.connect(&token, pair.nonce.as_deref()).await;
    let tunnel = waiting.map_err(|error| said(&error))?.partner().await;
    let tunnel = tunnel.map_err(|error| said(&error))?;
    check_name(world, pair, end, &tunnel.other().name);
    Ok(of_library(tunnel, true))
}

async fn by_hand(
    world: &World,
    pair: &Pair,
    end: usize,
    one_try: &Try,
) -> Result<(Reader, Writer), String> {
    let place = world.place(one_try.node, one_try.way);
    let mut dialogue = connect(one_try.way, &place, None, &world.tls)
        .await
        .map_err(|error| format!("{error:#}"))?;
    let mut params = json!({ "token": pair.token });
    if one_try.generation == 2 {
        params["name"] = pair.end_name(end).into();
        params["uuid"] = format!("{{{}}}", pair.uuid(end)).into();
    }
    if let Some(nonce) = &pair.nonce {
        params["nonce"] = nonce.as_str().into();
    }
    let answered = timeout(ANSWER, dialogue.authenticate(&params)).await;
    let answered = answered.map_err(|_| "no answer to the authentication".to_owned())?;
    answered.map_err(|refused| judge_refusal(world, pair, end, &refused))?;
    let name = dialogue.established().await;
    let name = name.map_err(|refused| judge_refusal(world, pair, end, &refused))?;
    check_name(world, pair, end, &name);
    Ok(dialogue.into_halves(one_try.way))
}

/// What the node says about the other endpoint must be right.
fn check_name(world: &World, pair: &Pair, end: usize, name: &str) {
    if !name.is_empty() && name != pair.end_name(1 - end) && name != super::intruder::NAME {
        let me = pair.end_name(end);
        world.journal.violation("mispaired", format_args!("{me} was given {name:?}"));
    }
}

/// Records refusals that no honest endpoint must get.
fn judge_refusal(world: &World, pair: &Pair, end: usize, refused: &Refused) -> String {
    let wrong = match refused {
        Refused::Answer(_) => true,
        Refused::Closed(Closing::Reason { code, .. }) => !matches!(code, 1001 | 1008 | 1013),
        Refused::Closed(Closing::Complete | Closing::Unknown | Closing::Broken(_)) => false,
    };
    if wrong {
        let me = pair.end_name(end);
        world.journal.violation("refused", format_args!("{me}: {refused}"));
    }
    refused.to_string()
}

/// Runs the tunnel, and judges its end.
async fn meet(
    world: &Arc<World>,
    pair: &Arc<Pair>,
    end: usize,
    one_try: &Try,
    (reader, writer): (Reader, Writer),
    random: &mut StdRng,
) {
    let name = pair.end_name(end);
    let alphabet = if random.random_bool(0.5) { Alphabet::Text } else { Alphabet::Binary };
    let own = world.streams.create(&name, one_try.node, alphabet);
    let partner = pair.end_name(1 - end);
    let session = Session {
        world,
        manner: Manner::any(random),
        own,
        partner: &partner,
        random: world.random(),
    };
    let intruders = pair.intruders.load(Ordering::Acquire);
    let mut checker = Checker::default();
    let met = |stream: &Arc<_>| pair.meeting.received(end, stream, world);
    let finished = session.run(reader, writer, &mut checker, met).await;
    world.statistics.count("pairs: tunnels ended, seen by one end");
    let since_then = pair.intruders.load(Ordering::Acquire) != intruders;
    match finished {
        Finished::Left => {}
        Finished::Wrong(what) => {
            world.journal.violation("content", format_args!("{name} on {one_try}: {what}"));
        }
        Finished::Ended(closing) => {
            if checker.stream().is_some() || !since_then {
                judge(world, &name, one_try, &checker, &closing);
            }
        }
    }
}

/// Whether a tunnel may have ended like this.
fn judge(world: &World, name: &str, one_try: &Try, checker: &Checker, closing: &Closing) {
    let Some(other) = checker.stream() else {
        if closing.is_blame() {
            let what = format!("{name} on {one_try}, before any data: {closing}");
            world.journal.violation("blamed", what);
        }
        return;
    };
    let excused = world.is_excused(one_try.node, other.node);
    let (received, ending) = (checker.received(), other.ending());
    let between = format!("{name} on {one_try}, the other on node {}", other.node + 1);
    let seen = format!("{between}: {closing}, {received} bytes, the other: {ending:?}");
    world.journal.detail(&seen);
    let wrong = match (ending, closing) {
        (Some(Ending::Orderly(total)), Closing::Complete) => received != total,
        (Some(Ending::Orderly(total)), Closing::Unknown) => received != total && !excused,
        (Some(Ending::Orderly(_)), Closing::Reason { .. } | Closing::Broken(_)) => !excused,
        (Some(Ending::Abrupt), closing) => closing.is_blame(),
        (Some(Ending::Lost) | None, closing) => closing.is_blame() || !excused,
    };
    if wrong {
        world.journal.violation("tunnel", seen);
    }
}
