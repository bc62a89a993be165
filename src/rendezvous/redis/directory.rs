//! The directory in Redis: an entry for each registered UUID, alive as long as its node is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::decide::{DOUBT_PAUSE, ROUNDS, ghost_of};
use super::fate::Fate;
use super::listing::Errand;
use super::scripts::{Gone, Held, Possession};
use super::{Core, MAX_PAUSE, RedisRendezvous, Unanswered, backoff};
use crate::ids::OfferId;
use crate::observability::Occurrence;
use crate::rendezvous::{
    Directory, Holder, Home, Registered, Registration, RemoteNode, Role, Unavailable,
};

/// How long a query is repeated while Redis is away. No longer, as an endpoint that registers must
/// get an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of a query.
enum Asked {
    Told(Possession),
    /// It is not known yet whether a node is alive.
    Unsure,
}

impl Directory for RedisRendezvous {
    fn register(
        self: Arc<Self>,
        registration: Registration,
    ) -> BoxFuture<'static, Result<Registered, Unavailable>> {
        // Known from now on, even if the future is dropped before it is polled.
        let lost = self.core.listing().enter(&registration);
        let core = Arc::clone(&self.core);
        async move { core.register(&registration, lost).await }.boxed()
    }

    fn find_gateway(
        self: Arc<Self>,
        uuid: Uuid,
    ) -> BoxFuture<'static, Result<Option<Holder>, Unavailable>> {
        let core = Arc::clone(&self.core);
        async move { core.find_gateway(uuid).await }.boxed()
    }

    fn unregister(&self, uuid: Uuid, id: OfferId) {
        self.core.listing().unregister(uuid, id);
        self.core.errands.notify_one();
    }

    fn has(&self, id: OfferId) -> bool {
        self.core.listing().has(id)
    }
}

impl Core {
    async fn register(
        &self,
        registration: &Registration,
        lost: CancellationToken,
    ) -> Result<Registered, Unavailable> {
        let answer = bounded(|| self.claim_uuid(registration)).await;
        match answer {
            Ok(Possession::Free) => {
                self.listing().confirm(registration);
                self.errands.notify_one();
                Ok(Registered::Yes { lost })
            }
            Ok(Possession::Held(held)) => {
                self.listing().lose(registration.id);
                Ok(Registered::Conflict(self.holder(held)))
            }
            Err(unavailable) => {
                self.listing().unregister(registration.uuid, registration.id);
                self.errands.notify_one();
                Err(unavailable)
            }
        }
    }

    async fn find_gateway(&self, uuid: Uuid) -> Result<Option<Holder>, Unavailable> {
        if let Some(here) = self.listing().gateway(&uuid) {
            return Ok(Some(here));
        }
        Ok(match bounded(|| self.look_up(&uuid)).await? {
            Possession::Held(held) if held.role == Role::Gateway => Some(self.holder(held)),
            Possession::Held(_) | Possession::Free => None,
        })
    }

    /// Asks Redis for a UUID. Whatever belongs to a node without a lease does not count.
    async fn claim_uuid(&self, registration: &Registration) -> Result<Asked, Unanswered> {
        let mut gone = Gone::default();
        for _ in 0..ROUNDS {
            gone.released.extend(self.listing().released(&registration.uuid));
            let call = self.scripts.register(registration, *self.epoch.borrow(), &gone);
            let asked = self.link.ask("register", async |connection| {
                call.invoke_async::<Vec<String>>(connection).await
            });
            let Some(told) = Possession::read(&asked.await?) else { return Ok(Asked::Unsure) };
            match told {
                Possession::Held(held) if self.is_forgotten(&held) => {
                    gone.released.push(held.owner.offer);
                }
                Possession::Held(held) if held.owner.node != self.node.as_str() => {
                    match self.fate(&held.owner, &held.address).await? {
                        Fate::Dead => gone.add(ghost_of(&held.owner)),
                        Fate::Gone => gone.released.push(held.owner.offer),
                        Fate::Unknown => return Ok(Asked::Unsure),
                        Fate::Waiting | Fate::Paired | Fate::Alive | Fate::Unable => {
                            return Ok(Asked::Told(Possession::Held(held)));
                        }
                    }
                }
                told @ (Possession::Held(_) | Possession::Free) => return Ok(Asked::Told(told)),
            }
        }
        Ok(Asked::Unsure)
    }

    async fn look_up(&self, uuid: &Uuid) -> Result<Asked, Unanswered> {
        let call = self.scripts.find(uuid);
        let asked = self
            .link
            .ask("find", async |connection| call.invoke_async::<Vec<String>>(connection).await);
        let Some(told) = Possession::read(&asked.await?) else { return Ok(Asked::Unsure) };
        let Possession::Held(held) = told else { return Ok(Asked::Told(told)) };
        let released = self.listing().released(uuid);
        if self.is_forgotten(&held) || released.contains(&held.owner.offer) {
            return Ok(Asked::Told(Possession::Free));
        }
        if held.owner.node == self.node.as_str() {
            return Ok(Asked::Told(Possession::Held(held)));
        }
        // If it is not known for sure, dialing its node will show.
        let ghost = self.behind_an_entry(&held.owner, &held.address).await?;
        Ok(Asked::Told(if ghost.is_some() { Possession::Free } else { Possession::Held(held) }))
    }

    /// An entry of this node that it has no endpoint for: its end did not get to Redis.
    fn is_forgotten(&self, held: &Held) -> bool {
        held.owner.node == self.node.as_str() && !self.listing().has(held.owner.offer)
    }

    /// Whether a node without a lease is dead: after an outage all get the time to renew theirs.
    pub(super) fn is_sure(&self) -> bool {
        self.link.steady_for() >= self.pace.refresh + self.patience
    }

    fn holder(&self, held: Held) -> Holder {
        let Held { owner, address, secret, role } = held;
        let home = if owner.node == self.node.as_str() {
            Home::Here
        } else {
            let node = RemoteNode { id: owner.node.as_str().into(), address };
            Home::There { node, secret, trace: None }
        };
        Holder { id: owner.offer, role, home }
    }

    /// Does some errands of the directory. False if one could not be done.
    pub(super) async fn run_listing(&self, count: usize) -> bool {
        let errands = self.listing().errands(count);
        let each = errands.into_iter().map(|errand| async move {
            let done = match errand {
                Errand::Unregister(uuid, id) => {
                    let call = self.scripts.unregister(&uuid, id);
                    let asked = self.link.ask("unregister", async |connection| {
                        call.invoke_async::<u8>(connection).await
                    });
                    asked.await.is_ok()
                }
                Errand::Assert(id) => self.assert(id).await,
            };
            (!done).then_some(errand)
        });
        let failed: Vec<_> = join_all(each).await.into_iter().flatten().collect();
        let all_done = failed.is_empty();
        self.listing().done(failed);
        all_done
    }

    async fn assert(&self, id: OfferId) -> bool {
        let registration = self.listing().get(id);
        // Unregistered since the errand was queued: another errand follows for that.
        let Some(registration) = registration else { return true };
        match self.claim_uuid(&registration).await {
            Ok(Asked::Told(Possession::Free)) => {
                // If the registration has ended since, this queues its removal.
                self.listing().confirm(&registration);
                true
            }
            Ok(Asked::Told(Possession::Held(_))) => {
                let what = "a registered UUID has been lost to another endpoint";
                if self.link.recurs(&Occurrence::trouble(what, "registered elsewhere")) {
                    warn!(registration = %id, "{what}");
                }
                self.listing().lose(id);
                true
            }
            Ok(Asked::Unsure) | Err(_) => false,
        }
    }
}

/// Asks until there is an answer, for [`PATIENCE`] at most.
async fn bounded<A>(ask: impl Fn() -> A) -> Result<Possession, Unavailable>
where
    A: Future<Output = Result<Asked, Unanswered>>,
{
    let asking = async {
        let mut attempts = 0_u32;
        loop {
            match ask().await {
                Ok(Asked::Told(told)) => return told,
                Ok(Asked::Unsure) => sleep(backoff(attempts, DOUBT_PAUSE)).await,
                Err(error) => {
                    debug!(%error, "Redis cannot be queried for the holder of a UUID");
                    sleep(backoff(attempts, MAX_PAUSE)).await;
                }
            }
            attempts = attempts.saturating_add(1);
        }
    };
    timeout(PATIENCE, asking).await.map_err(|_| Unavailable)
}
