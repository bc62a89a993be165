//! The one task of a node that keeps things in order with Redis: the connection, the lease of the
//! node, its errands, and the tunnels that Redis must not forget.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::local::Errand;
use super::target::{Connection, Target};
use super::{Core, backoff};
use crate::protocol::PairingKey;

/// Keys whose errands are done at once.
const BATCH: usize = 128;
/// Between two attempts to refresh the lease when one has failed.
const HURRY: Duration = Duration::from_millis(500);
/// Errands that cannot be done are tried again after this.
const REST: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Keeper {
    core: Arc<Core>,
    target: Target,
    /// The server that answered last.
    server: Option<String>,
}

impl Keeper {
    pub(super) fn new(core: Arc<Core>, target: Target) -> Self {
        Self { core, target, server: None }
    }

    /// Runs until the node ends, and cleans up.
    pub(super) async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let work = async {
            loop {
                self.connect().await;
                tokio::select! {
                    () = core.link.is_down() => {}
                    () = self.serve() => {}
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = core.closing.cancelled() => {}
        }
        farewell(&core).await;
    }

    /// Tries until there is a connection over which the lease could be written.
    async fn connect(&mut self) {
        let mut attempts = 0;
        loop {
            match self.try_connect().await {
                Ok(connection) => return self.core.link.up(connection),
                Err(reason) => self.core.link.cannot_connect(&reason),
            }
            sleep(backoff(attempts, self.core.pace.backoff)).await;
            attempts += 1;
        }
    }

    /// The lease comes first: an offer of a node without one is nobody's.
    async fn try_connect(&mut self) -> Result<Connection, String> {
        let patience = self.core.patience;
        let connected = self.target.connect(patience).await;
        let (mut connection, server) = connected.map_err(|error| error.to_string())?;
        let facts = self.core.facts();
        let lease = self.core.scripts.lease(&facts);
        let refreshed = timeout(patience, lease.invoke_async(&mut connection)).await;
        let was_there: bool = refreshed
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| error.to_string())?;
        self.note(server, was_there);
        Ok(connection)
    }

    /// Until the connection is no good, which [`Link::is_down`](super::link::Link::is_down) tells.
    async fn serve(&mut self) {
        let core = Arc::clone(&self.core);
        core.local().start_over();
        core.listing().start_over();
        let mut refresh_at = Instant::now();
        let mut rest_until = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(refresh_at) => {
                    let pause = if self.refresh().await { core.pace.refresh } else { HURRY };
                    refresh_at = Instant::now() + pause;
                    core.local().assert_older_than(core.pace.standing / 2);
                    core.listing().assert_older_than(core.pace.standing / 2);
                }
                () = work_waits(&core, rest_until) => {
                    if !run_errands(&core, BATCH).await {
                        rest_until = Instant::now() + REST;
                    }
                }
            }
        }
    }

    /// Keeps the lease, and notices if data was lost. False if that failed.
    async fn refresh(&mut self) -> bool {
        let core = &self.core;
        let facts = core.facts();
        let lease = core.scripts.lease(&facts);
        let asked =
            core.link.ask("lease", async |connection| lease.invoke_async::<bool>(connection).await);
        let Ok(was_there) = asked.await else { return false };
        let list = core.scripts.list(&facts);
        let listed = core.link.ask("list", async |connection| list.invoke_async(connection).await);
        // For who looks at the cluster; nothing depends on it, and it is said again soon.
        let _or_soon: Result<u8, _> = listed.await;
        let server = match &self.target {
            // Masters change below a connection that stays.
            Target::Cluster(_) => core.link.masters(core.patience).await,
            Target::Server(_) | Target::Sentinels { .. } => None,
        };
        let server = server.or_else(|| self.server.clone()).unwrap_or_default();
        self.note(server, was_there);
        true
    }

    /// Entries may be lost when the lease is, or when another server answers.
    fn note(&mut self, server: String, lease_was_there: bool) {
        let before = self.server.replace(server);
        if let Some(before) = before
            && (!lease_was_there || Some(before) != self.server)
        {
            info!(lease_was_there, "Redis may have lost entries, putting them up again");
            self.core.lapsed();
        }
    }
}

async fn work_waits(core: &Core, rest_until: Instant) {
    sleep_until(rest_until).await;
    while !core.has_errands() {
        core.errands.notified().await;
    }
}

/// Does some errands, those of one key in their order. False if one could not be done.
async fn run_errands(core: &Core, keys: usize) -> bool {
    let listed = core.run_listing(keys).await;
    let errands = core.local().errands(keys);
    let each = errands.into_iter().map(|(key, errands)| async move {
        let mut done = 0;
        for errand in &errands {
            if !run_errand(core, &key, *errand).await {
                break;
            }
            done += 1;
        }
        core.local().done(key, done);
        done == errands.len()
    });
    join_all(each).await.into_iter().all(|done| done) && listed
}

async fn run_errand(core: &Core, key: &PairingKey, errand: Errand) -> bool {
    let call = match errand {
        Errand::Release(offer, role) => core.scripts.release(key, offer, role),
        Errand::Stand => {
            let tunnel = core.local().tell(key);
            // Gone meanwhile: its release comes later.
            let Some(tunnel) = tunnel else { return true };
            core.scripts.stand(&tunnel, *core.epoch.borrow())
        }
    };
    let command = match errand {
        Errand::Release(..) => "release",
        Errand::Stand => "stand",
    };
    let told =
        core.link.ask(command, async |connection| call.invoke_async::<u8>(connection).await).await;
    told.is_ok()
}

/// Nothing of this node stays.
async fn farewell(core: &Core) {
    core.local().start_over();
    core.listing().start_over();
    core.local().release_all();
    core.listing().release_all();
    let all = async {
        while core.has_errands() && run_errands(core, BATCH).await {}
        let (farewell, unlist) = (core.scripts.farewell(), core.scripts.unlist(core.node.as_str()));
        core.link
            .ask("farewell", async |connection| {
                unlist.query_async::<u8>(connection).await?;
                farewell.query_async::<u8>(connection).await
            })
            .await
    };
    if let Ok(Ok(_)) = timeout(core.pace.farewell, all).await {
        debug!("nothing of this node is left in Redis");
    } else {
        info!("Redis keeps what is left of this node until it expires");
    }
    core.link.give_up("this node ends");
}
