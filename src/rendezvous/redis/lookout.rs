//! The task of a node that looks at Redis as often as the lease is refreshed: whether its servers
//! are still the same and may evict keys, whether the sentinels name another master, and which
//! nodes are listed although they are dead.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::sleep;
use tracing::debug;

use super::Core;
use super::fence::Trail;
use super::keeper::{self, Opened};
use super::server::Server;
use super::target::{Connection, Target};

/// Some of the listed nodes are checked at every so many looks.
const CHECK_EVERY: u32 = 10;
/// The number of nodes checked at a time.
const CHECKED: usize = 32;

/// Looks until the node ends.
pub(super) async fn run(core: Arc<Core>, target: Arc<Target>) {
    let mut lookout = Lookout {
        core: Arc::clone(&core),
        target,
        looks: 0,
        cursor: 0,
        evicts_by: None,
        dropped: 0,
    };
    let work = async {
        loop {
            core.link.is_up().await;
            lookout.look().await;
            sleep(core.pace.refresh).await;
        }
    };
    core.closing.run_until_cancelled(work).await;
}

/// See the module.
struct Lookout {
    core: Arc<Core>,
    target: Arc<Target>,
    looks: u32,
    /// The cursor among the listed nodes.
    cursor: u64,
    /// The policy that has been warned of.
    evicts_by: Option<String>,
    /// The errands that have been warned of.
    dropped: u64,
}

impl Lookout {
    async fn look(&mut self) {
        self.list().await;
        let Some(mut connection) = self.core.link.connection() else { return };
        self.look_at(&mut connection).await;
        if self.target.names_another(&connection, self.core.patience).await {
            self.move_on().await;
        }
        if self.looks.is_multiple_of(CHECK_EVERY) {
            self.forget_the_dead().await;
        }
        self.looks = self.looks.wrapping_add(1);
        let core = &self.core;
        core.local().assert_older_than(core.pace.standing / 2);
        core.listing().assert_older_than(core.pace.standing / 2);
        core.errands.notify_one();
        self.warn_of_dropped();
    }

    /// Lists the node for operators. Nothing else depends on it, and it is repeated soon.
    async fn list(&self) {
        let core = &self.core;
        let facts = core.facts();
        let list = core.scripts.list(&facts);
        let listed = core.link.ask("list", async |connection| list.invoke_async(connection).await);
        let _or_soon: Result<u8, _> = listed.await;
    }

    /// Servers change below a connection that stays.
    async fn look_at(&mut self, connection: &mut Connection) {
        let core = &self.core;
        let server = match Server::ask(connection, core.patience).await {
            Ok(server) => server,
            // What that means for this node shows when the lease is refreshed.
            Err(error) => return debug!(%error, "Redis does not report about itself"),
        };
        if matches!(connection, Connection::Cluster(_)) {
            let trail = Trail::of(connection, &server.identity, core.patience).await;
            core.link.set_trail(trail);
        }
        self.warn_of_eviction(server.evicts_by.as_deref());
        keeper::note(&self.core, server, true);
    }

    fn warn_of_eviction(&mut self, policy: Option<&str>) {
        if let Some(policy) = policy
            && self.evicts_by.as_deref() != Some(policy)
        {
            self.core.link.trouble(&format!(
                "Redis may evict entries of waiting endpoints and tunnels: its maxmemory-policy \
                 is {policy}; set it to noeviction"
            ));
        }
        self.evicts_by = policy.map(str::to_owned);
    }

    fn warn_of_dropped(&mut self) {
        let (_, dropped) = self.core.backlog();
        let more = dropped.saturating_sub(self.dropped);
        if more > 0 {
            self.core.link.trouble(&format!(
                "{more} changes could not be kept for Redis while it was away; stale entries are \
                 found when their keys are used again"
            ));
        }
        self.dropped = dropped;
    }

    /// Goes to the master that the sentinels name, if it takes the lease. Until then, the old one
    /// is kept.
    async fn move_on(&self) {
        let core = &self.core;
        match keeper::reach(core, &self.target).await {
            // Entering there would end the connection of now.
            Ok(reached) if core.link.is_server(&reached.server.identity) => {
                debug!("the sentinels know the master by another address");
            }
            Ok(reached) => match keeper::enter(core, reached).await {
                Ok(Opened { connection, server, lease_was_there }) => {
                    core.link.up(connection);
                    keeper::note(core, server, lease_was_there);
                }
                Err(reason) => debug!(?reason, "the new master cannot be used yet"),
            },
            Err(reason) => debug!(?reason, "the new master cannot be reached yet"),
        }
    }

    /// Takes nodes without a lease off the list, a few at a time.
    async fn forget_the_dead(&mut self) {
        let core = &self.core;
        if !core.is_sure() {
            return;
        }
        let scan = core.scripts.scan_listed(self.cursor, CHECKED);
        let scanned =
            core.link.ask("nodes", async |connection| scan.query_async(connection).await).await;
        let Ok((cursor, listed)): Result<(u64, HashMap<String, String>), _> = scanned else {
            return;
        };
        self.cursor = cursor;
        // Redis may return more than was asked for.
        for node in listed.keys().take(CHECKED * 2) {
            if core.unlist_if_dead(node).await.is_err() {
                return;
            }
        }
    }
}
