//! The task of a node that does its errands at Redis: releases, and tunnels that Redis must not
//! forget.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Core;
use super::local::Errand;
use crate::protocol::PairingKey;

/// Keys with errands that are run concurrently.
const BATCH: usize = 128;
/// Errands that cannot be done are tried again after this, or when there are new ones.
const REST: Duration = Duration::from_secs(1);

/// Does errands until the node ends.
pub(super) async fn run(core: Arc<Core>) {
    let work = async {
        loop {
            core.link.is_up().await;
            while !core.has_errands() {
                core.errands.notified().await;
            }
            if !run_errands(&core, BATCH).await && core.link.is_connected() {
                // One key that Redis refuses does not keep the others waiting.
                let _new_or_rested = timeout(REST, core.errands.notified()).await;
            }
        }
    };
    core.closing.run_until_cancelled(work).await;
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
            // It has ended since: its release is an errand of its own.
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
pub(super) async fn farewell(core: &Core) {
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
        debug!("all entries of this node are removed from Redis");
    } else {
        info!("some entries of this node remain in Redis until they expire");
    }
    core.link.close();
}
