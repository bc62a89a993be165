//! Apps that attach to a gateway, exchange data with it, and attach again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nymea_remoteproxy::client::{App, Connector};
use nymea_remoteproxy::protocol::Token;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::exchange::{self, Outcome};
use super::gateway::{self, GatewayState};
use super::meeting::Meeting;
use super::{Backoff, gateway_uuid};
use crate::content::Checker;
use crate::statistics;
use crate::wire::{Closing, Reader, Refused, Way, Writer, connect, of_library};
use crate::world::World;

/// How long an answer to a registration may take.
const ANSWER: Duration = Duration::from_secs(15);

/// How late a try may reach a gateway.
const LATE: Duration = Duration::from_secs(20);

/// An app of a gateway.
pub(crate) struct AppState {
    gateway: usize,
    number: usize,
    /// How often it has tried to attach.
    tries: Arc<AtomicU64>,
    /// When and on which node a try failed last.
    failed: Mutex<Option<(Instant, usize)>>,
    pub(crate) meeting: Meeting,
}

impl AppState {
    pub(super) fn new(gateway: usize, number: usize) -> Self {
        let meeting =
            Meeting::new(format!("app {number} of gateway {gateway}"), statistics::Meeting::App);
        Self {
            gateway,
            number,
            tries: Arc::default(),
            failed: Mutex::default(),
            meeting: meeting.slower(gateway::slack(gateway)),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("app {} of gateway {}", self.number, self.gateway)
    }

    /// Whether a try of before may have reached the gateway after this one, over a link that was
    /// blocked. The gateway's node still believes the one that arrives last.
    fn is_behind_a_late_try(&self, world: &World, attached: Instant, gateway: usize) -> bool {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|(at, node)| {
            at + LATE > attached
                && !world
                    .is_quiet(LATE, |fault| fault.kind.harm(fault.target).reaches(node, gateway))
        })
    }

    fn uuid(&self) -> Uuid {
        let number = (self.gateway * 1000 + self.number) as u128;
        Uuid::from_u128(0x50AC_0002_0000_4000_8000_0000_0000_0000 + number)
    }
}

/// How an app connects this time.
struct Try {
    node: usize,
    way: Way,
    library: bool,
    token: bool,
}

impl std::fmt::Display for Try {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = if self.library { "library" } else { "raw" };
        write!(f, "node {} by {:?} ({by})", self.node + 1, self.way)
    }
}

/// One app, until the run is over.
pub(super) async fn run(world: Arc<World>, app: Arc<AppState>) {
    let mut random = world.random();
    let mut backoff = Backoff::default();
    while !world.leaving.is_cancelled() {
        app.meeting.trying(0, "between two tries");
        let Some(node) = world.some_node(&mut random) else {
            backoff.pause(&world, &mut random).await;
            continue;
        };
        let way = Way::any(&mut random);
        let library = way.scheme().is_some() && random.random_bool(0.5);
        let token = world.cluster.tokens.of_apps() || random.random_bool(0.3);
        let one_try = Try { node, way, library, token };
        app.meeting.trying(0, one_try.to_string());
        app.tries.fetch_add(1, Ordering::AcqRel);
        let attached = tokio::select! {
            attached = Box::pin(attach(&world, &app, &one_try)) => attached,
            () = world.leaving.cancelled() => break,
        };
        match attached {
            Ok(halves) => {
                backoff = Backoff::default();
                app.meeting.established(0);
                Box::pin(converse(&world, &app, &one_try, halves, &mut random)).await;
                app.meeting.away(0);
                let pause = Duration::from_millis(random.random_range(0..500));
                tokio::select! {
                    () = sleep(pause) => {}
                    () = world.leaving.cancelled() => {}
                }
            }
            Err(reason) => {
                *app.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), node));
                world.statistics.count(format!("apps: not attached: {reason}"));
                world.journal.detail(format_args!("{} on {one_try}: {reason}", app.name()));
                backoff.pause(&world, &mut random).await;
            }
        }
    }
    app.meeting.away(0);
}

async fn attach(world: &World, app: &AppState, one_try: &Try) -> Result<(Reader, Writer), String> {
    let token = format!("soak-app-{}", app.number);
    let gateway = gateway_uuid(app.gateway);
    if one_try.library {
        let url = world.url(one_try.node, one_try.way).ok_or("no URL")?;
        let connector = Connector::new(&url).and_then(|it| it.ca(&world.cluster.ca));
        let connector = connector.map_err(|error| error.to_string())?;
        let connector = connector
            .name(app.name())
            .uuid(app.uuid())
            .connect_timeout(Duration::from_secs(5))
            .authentication_timeout(ANSWER);
        let library_app = App::new(connector, gateway);
        let library_app =
            if one_try.token { library_app.token(Token::new(&token)) } else { library_app };
        let attached = library_app.attach().await.map_err(|error| error.to_string())?;
        let tells_ends = one_try.way != Way::Tcp;
        return Ok(of_library(attached, tells_ends));
    }
    let place = world.place(one_try.node, one_try.way);
    let connected = connect(one_try.way, &place, None, &world.tls).await;
    let mut dialogue = connected.map_err(|error| format!("{error:#}"))?;
    let mut params = json!({
        "clientName": app.name(),
        "clientUuid": format!("{{{}}}", app.uuid()),
        "serverUuid": format!("{{{gateway}}}"),
    });
    if one_try.token {
        params["token"] = token.into();
    }
    let registering = dialogue.register("TunnelProxy.RegisterClient", &params);
    let answered = timeout(ANSWER, registering).await;
    let answered = answered.map_err(|_| "no answer to the registration".to_owned())?;
    answered.map_err(|refused| judge_refusal(world, &app.name(), &refused))?;
    Ok(dialogue.into_halves(one_try.way))
}

/// Records refusals that no honest client must get.
pub(super) fn judge_refusal(world: &World, name: &str, refused: &Refused) -> String {
    const TEMPORARY: [&str; 3] = ["ServerNotFound", "AlreadyRegistered", "InternalServerError"];
    let wrong = match refused {
        Refused::Answer(error) => !TEMPORARY.iter().any(|known| error.ends_with(known)),
        Refused::Closed(Closing::Reason { code, .. }) => !matches!(code, 1001 | 1008 | 1013),
        Refused::Closed(Closing::Complete | Closing::Unknown | Closing::Broken(_)) => false,
    };
    if wrong {
        world.journal.violation("refused", format_args!("{name}: {refused}"));
    }
    refused.to_string()
}

/// Exchanges data with the gateway, and judges the end.
async fn converse(
    world: &Arc<World>,
    app: &Arc<AppState>,
    one_try: &Try,
    halves: (Reader, Writer),
    random: &mut StdRng,
) {
    let gateway: &Arc<GatewayState> = &world.load.gateways[app.gateway];
    let (before, epoch) = (gateway.node(), gateway.epoch());
    let attached = Instant::now();
    let plan = exchange::Plan::any(random);
    let streams = exchange::Question {
        name: app.name(),
        node: one_try.node,
        gateway: gateway::name(app.gateway),
        gateway_node: before,
        tries: Arc::clone(&app.tries),
    };
    let mut checker = Checker::default();
    let met = |stream: &Arc<_>| app.meeting.received(0, stream, world);
    let outcome = exchange::question(world, &streams, plan, halves, &mut checker, met).await;
    match outcome {
        Outcome::Done => world.statistics.count("apps: exchanges completed"),
        Outcome::Left => {}
        Outcome::Wrong(what) => {
            world.journal.violation("content", format_args!("{} on {one_try}: {what}", app.name()));
        }
        Outcome::Ended(closing) => {
            world.statistics.count("apps: exchanges cut short");
            let after = gateway.node();
            let excused = world.is_excused(one_try.node, before)
                || world.is_excused(one_try.node, after)
                || gateway.epoch() != epoch
                || gateway.may_be_robbed(attached)
                || gateway.may_have_been_leaving(attached)
                || world.leaving.is_cancelled();
            let seen = format!(
                "{} on {one_try}, the gateway on node {}: {closing} after {} bytes",
                app.name(),
                before + 1,
                checker.received()
            );
            world.journal.detail(&seen);
            if !excused && app.is_behind_a_late_try(world, attached, before) {
                world.statistics.count("apps: ended by an earlier try of theirs that was late");
            } else if !excused {
                world.journal.violation("app", seen);
            }
        }
    }
}
