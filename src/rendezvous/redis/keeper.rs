//! The task of a node that keeps its connection to Redis and its lease. Nothing else is done here,
//! so that the lease is refreshed in time however long anything else takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tracing::info;

use super::fence::Trail;
use super::link::{Reason, Unanswered};
use super::server::Server;
use super::target::{ConnectError, Connection, Target};
use super::{Core, backoff, errands, lookout};

/// Between two attempts to refresh the lease when one has failed or there is doubt.
const HURRY: Duration = Duration::from_millis(500);
/// The most attempts in succession without an answer while other commands are answered.
const MISSES: u32 = 2;

/// See the module.
struct Keeper {
    core: Arc<Core>,
    target: Arc<Target>,
}

/// A connection to a server that takes writes, as far as it reports.
pub(super) struct Reached {
    connection: Connection,
    pub(super) server: Server,
}

/// A new connection, over which the lease has been written.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) server: Server,
    /// Whether there was a lease before.
    pub(super) lease_was_there: bool,
}

/// Keeps in touch with Redis until the node ends, and cleans up.
pub(super) async fn run(core: Arc<Core>, target: Target, tasks: TaskTracker) {
    let target = Arc::new(target);
    let others = [
        tasks.spawn(errands::run(Arc::clone(&core))),
        tasks.spawn(lookout::run(Arc::clone(&core), Arc::clone(&target))),
    ];
    let keeper = Keeper { core: Arc::clone(&core), target };
    core.closing.run_until_cancelled(keeper.run()).await;
    for other in others {
        // They end with the node, too; if one has panicked, that has been logged.
        let _ended = other.await;
    }
    errands::farewell(&core).await;
}

impl Keeper {
    async fn run(self) {
        loop {
            self.connect().await;
            tokio::select! {
                () = self.core.link.is_down() => {}
                () = self.keep_lease() => {}
            }
        }
    }

    /// Tries until there is a connection over which the lease could be written.
    async fn connect(&self) {
        let mut attempts = 0;
        loop {
            match self.try_connect().await {
                Ok(Opened { connection, server, lease_was_there }) => {
                    note(&self.core, server, lease_was_there);
                    return self.core.link.up(connection);
                }
                Err(reason) => self.core.link.cannot_connect(&reason),
            }
            sleep(backoff(attempts, self.core.pace.backoff)).await;
            attempts += 1;
        }
    }

    async fn try_connect(&self) -> Result<Opened, Reason> {
        let reached = reach(&self.core, &self.target).await?;
        enter(&self.core, reached).await
    }

    /// Refreshes the lease until that fails.
    async fn keep_lease(&self) {
        let core = &self.core;
        let (mut begun, mut misses) = (Instant::now(), 0);
        while misses < MISSES {
            let pause = if misses == 0 { core.pace.refresh } else { HURRY };
            tokio::select! {
                () = sleep_until(begun + pause) => {}
                () = core.link.doubted() => sleep_until(begun + HURRY.min(pause)).await,
            }
            begun = Instant::now();
            match self.refresh().await {
                Ok(()) => misses = 0,
                Err(Unanswered::Redis(error)) => return core.link.give_up(&Reason::from(&error)),
                Err(Unanswered::Timeout) => misses += 1,
                // The connection has been replaced, or is being.
                Err(Unanswered::Away) => {}
            }
        }
        core.link.give_up(&Reason::from("the lease could not be refreshed in time"));
    }

    async fn refresh(&self) -> Result<(), Unanswered> {
        let core = &self.core;
        let facts = core.facts();
        let lease = core.scripts.lease(&facts);
        let asked =
            core.link.ask("lease", async |connection| lease.invoke_async::<bool>(connection).await);
        if !asked.await? {
            info!("the lease had expired, writing all entries again");
            core.lapsed();
        }
        Ok(())
    }
}

/// Connects, and looks at the server. Each step takes at most [`Core::patience`].
pub(super) async fn reach(core: &Core, target: &Target) -> Result<Reached, Reason> {
    let reaching = async {
        let mut connection = target.connect(core.patience).await?;
        let server = Server::ask(&mut connection, core.patience).await?;
        Ok(Reached { connection, server })
    };
    reaching.await.map_err(|error: ConnectError| Reason::of(&error, error.redis()))
}

/// Ends the connection that was opened before, and writes the lease: an offer of a node without one
/// does not count. Each step takes at most [`Core::patience`].
pub(super) async fn enter(core: &Core, reached: Reached) -> Result<Opened, Reason> {
    let (Reached { mut connection, server }, patience) = (reached, core.patience);
    core.link.trail().end(&mut connection, &server.identity, patience).await;
    core.link.set_trail(Trail::of(&mut connection, &server.identity, patience).await);
    let facts = core.facts();
    let lease = core.scripts.lease(&facts);
    let written = timeout(patience, lease.invoke_async(&mut connection)).await;
    let lease_was_there = written
        .map_err(|_| Reason::no_answer())?
        .map_err(|error: redis::RedisError| Reason::from(&error))?;
    Ok(Opened { connection, server, lease_was_there })
}

/// Entries may be lost when the lease is, or when another server answers.
pub(super) fn note(core: &Core, server: Server, lease_was_there: bool) {
    let first = !core.link.knows_a_server();
    let server_lost = core.link.server_is(server.identity);
    if !first && (server_lost || !lease_was_there) {
        info!(lease_was_there, "Redis may have lost entries, writing them again");
        core.lapsed();
    }
}
