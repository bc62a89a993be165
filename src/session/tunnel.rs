//! A tunnel from its first notification to its last goodbye, on one node.
//!
//! The endpoint that waited is called the first, the one that came to it the second. When they are
//! on different nodes, each node runs the tunnel of its own endpoint, with a bridge as the other
//! leg.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use tracing::info;

use super::registry::Partner;
use super::{Entry, Party, Shared, send};
use crate::cluster::{Bridged, Refusal};
use crate::ids::OfferId;
use crate::protocol::{Action, Close, PairingKey, Profile};
use crate::relay::{self, Side, close_leg};
use crate::transport::Leg;

/// Runs the tunnel of an endpoint that has waited and the partner that was handed to it.
pub(super) async fn of_the_waiting(
    mut first: Box<Party>,
    partner: Partner,
    entry: Entry,
    shared: &Arc<Shared>,
) {
    let tunnel = entry.offer.id;
    let Some(profile) = profile_of(&first) else { return };
    match partner {
        Partner::Here(mut second) => {
            let Some(profile_of_second) = profile_of(&second) else { return };
            let told = match introduce(&mut first, &profile_of_second, shared).await {
                Ok(()) => introduce(&mut second, &profile, shared).await,
                refused => refused,
            };
            match told {
                Ok(()) => {
                    info!(%tunnel, kind = "local", second = %second.id, "tunnel established");
                    run(tunnel, &mut *first.leg, &mut *second.leg, Held::ByUs(entry), shared).await;
                }
                Err(close) => {
                    drop(entry);
                    refuse(tunnel, close, &mut *first.leg, Some(&mut *second.leg), shared).await;
                }
            }
        }
        Partner::There(bridge) => match introduce(&mut first, &bridge.profile, shared).await {
            Ok(()) => {
                info!(%tunnel, kind = "bridged", "tunnel established");
                let mut second = bridge.answer.accept(&profile);
                run(tunnel, &mut *first.leg, &mut *second, Held::ByUs(entry), shared).await;
            }
            Err(close) => {
                drop(entry);
                bridge.answer.refuse(Refusal::Loop);
                refuse(tunnel, close, &mut *first.leg, None, shared).await;
            }
        },
    }
}

/// Runs the tunnel of an endpoint whose partner was fetched from another node.
pub(super) async fn of_the_claiming(
    mut second: Box<Party>,
    mut first: Bridged,
    (key, tunnel): (PairingKey, OfferId),
    shared: &Arc<Shared>,
) {
    match introduce(&mut second, &first.profile, shared).await {
        Ok(()) => {
            info!(%tunnel, kind = "bridged", "tunnel established");
            let held = Held::ByOther(key);
            run(tunnel, &mut *first.leg, &mut *second.leg, held, shared).await;
        }
        Err(close) => {
            refuse(tunnel, close, &mut *second.leg, Some(&mut *first.leg), shared).await;
        }
    }
}

/// What the other endpoint has to know of a waiting one.
pub(super) fn profile_of(party: &Party) -> Option<Profile> {
    party.endpoint.offer().map(|(_, profile)| profile.clone())
}

/// Tells an endpoint of its partner, unless the two must not meet.
async fn introduce(party: &mut Party, other: &Profile, shared: &Shared) -> Result<(), Close> {
    party.endpoint.paired(other);
    party.leg.set_message_limit(shared.message_size);
    while let Some(action) = party.endpoint.poll_action() {
        match action {
            Action::Send(message) => send(&mut *party.leg, message).await,
            Action::Close(close) => return Err(close),
            Action::Authenticate(_) | Action::Offer(_) => return Err(Close::Fault),
        }
    }
    Ok(())
}

async fn refuse(
    tunnel: OfferId,
    close: Close,
    one: &mut dyn Leg,
    other: Option<&mut dyn Leg>,
    shared: &Shared,
) {
    info!(%tunnel, reason = %close, "tunnel refused");
    let patience = shared.timeouts.close;
    tokio::join!(close_leg(one, Some(close), patience), async {
        if let Some(other) = other {
            close_leg(other, Some(close), patience).await;
        }
    });
}

/// Whose entry in the rendezvous a tunnel has.
enum Held {
    /// Our endpoint waited for it.
    ByUs(Entry),
    /// The other node's endpoint did.
    ByOther(PairingKey),
}

/// Relays until the tunnel ends, and says what it did.
async fn run(
    tunnel: OfferId,
    first: &mut dyn Leg,
    second: &mut dyn Leg,
    held: Held,
    shared: &Shared,
) {
    let since = Instant::now();
    let stop = shared.lifecycle.over().map(|()| Close::Draining);
    let patience = shared.timeouts.close;
    let ended = relay::flow(first, second, stop, patience).await;
    // The key is free before the goodbyes are said: an endpoint may come back at once.
    match held {
        Held::ByUs(entry) => drop(entry),
        // Its node may be dead, and the key is not to be taken until its lease is over.
        Held::ByOther(key) if ended.has_lost(Side::First) => {
            shared.rendezvous.release(key, tunnel);
        }
        Held::ByOther(_) => {}
    }
    let report = relay::finish(first, second, ended, patience).await;
    info!(
        %tunnel,
        reason = %report.reason,
        ended_by = ?report.ended_by,
        bytes_forth = report.forth.bytes,
        bytes_back = report.back.bytes,
        messages_forth = report.forth.messages,
        messages_back = report.back.messages,
        duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        "tunnel ended"
    );
}
