//! Compares the entries of this node with what Redis has, one after the other: Redis may lose a
//! single one while the lease of the node is still there (eviction, a write that a failover lost).
//!
//! An entry is read once per [`Pace::verify`](super::Pace::verify), 10 s by default, as long as a node
//! has no more than 1,000 pairs and 1,000 registrations. With more, each is read less often: a node
//! reads at most 200 entries per second, however many tunnels it has. What is missing is put up
//! again: a waiting endpoint by its session, a tunnel and a registration by an errand.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::Core;
use crate::ids::OfferId;
use crate::protocol::PairingKey;

/// The groups into which the entries are divided, which are read one after the other.
const GROUPS: u32 = 20;
/// Entries that are read at once.
const AT_ONCE: usize = 128;
/// The largest group. If a node has more entries, each is read less often.
const MAX_GROUP: usize = 50;

/// An entry that this node has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// For a waiting endpoint or a tunnel.
    Pair(PairingKey, OfferId),
    /// For a registration.
    Uuid(Uuid, OfferId),
}

/// Verifies until the node ends.
pub(super) async fn run(core: Arc<Core>) {
    let mut ticks = interval((core.pace.verify / GROUPS).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_pair = None;
    let mut last_uuid = None;
    let work = async {
        loop {
            ticks.tick().await;
            let mut group = core.local().made_after(&mut last_pair, group_of);
            group.extend(core.listing().made_after(&mut last_uuid, group_of));
            for entries in group.chunks(AT_ONCE) {
                join_all(entries.iter().map(|made| verify(&core, *made))).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = core.closing.cancelled() => {}
    }
}

/// How many of so many entries are read with one tick.
fn group_of(entries: usize) -> usize {
    entries.div_ceil(GROUPS as usize).min(MAX_GROUP)
}

async fn verify(core: &Core, made: Made) {
    // The rest of a group is left out while Redis is away: then all is put up again anyway.
    if !core.link.is_connected() {
        return;
    }
    let call = match made {
        Made::Pair(key, _) => core.scripts.owner_of_pair(&key),
        Made::Uuid(uuid, _) => core.scripts.owner_of_uuid(&uuid),
    };
    let asked = core
        .link
        .ask("verify", async |connection| call.query_async::<(Option<String>,)>(connection).await);
    // What cannot be read now is read again in the next round.
    let Ok((owner,)) = asked.await else { return };
    let owner = owner.and_then(|owner| owner.parse::<OfferId>().ok());
    match made {
        Made::Pair(key, offer) if owner != Some(offer) => core.local().is_lost(key, offer),
        Made::Uuid(_, id) if owner != Some(id) => core.listing().is_lost(id),
        Made::Pair(..) | Made::Uuid(..) => return,
    }
    core.errands.notify_one();
}
