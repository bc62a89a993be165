//! Decides an offer: queries Redis, and checks an entry that is in the way before the offer is
//! refused because of it.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::debug;

use super::fate::{Fate, Lease};
use super::local::Alone;
use super::scripts::{Gone, Owner, Told};
use super::{Core, MAX_PAUSE, Unanswered, backoff};
use crate::ids::OfferId;
use crate::rendezvous::{Answer, Offer};

/// How often an entry may change during one query, until the query is repeated.
pub(super) const ROUNDS: usize = 5;
/// The longest pause between two queries about an entry with an offer that may be gone.
pub(super) const DOUBT_PAUSE: Duration = Duration::from_millis(500);
/// How long a claim may take while its owner still waits. Then another offer may claim it: the node
/// of the owner accepts the first partner that arrives, and no other.
const CLAIM_TIME: Duration = Duration::from_millis(1500);
/// How long a query that a node cannot answer is repeated.
const UNABLE_TIME: Duration = Duration::from_secs(2);

/// The result of a query.
enum Asked {
    Told(Told),
    /// It is not known yet whether an offer is alive.
    Unsure,
}

/// A stale entry, which must not block an offer.
pub(super) enum Ghost {
    /// The entry of an offer on a dead node.
    OfDeadNode(OfferId, String),
    /// The entry of an offer that its node does not have.
    Released(OfferId),
    /// A claim that leads to nothing.
    Claim(String),
}

/// The obstacle that blocks an offer.
enum Obstacle {
    /// None any more.
    Ghost(Ghost),
    /// Two living endpoints.
    Pair,
    /// Unknown, yet.
    Unsure,
}

/// An entry that has been in the way without it being known whether its offers are alive.
#[derive(Default)]
struct Doubt(Option<Doubted>);

struct Doubted {
    owner: OfferId,
    since: Instant,
    claimer: String,
    claimed_since: Instant,
}

impl Doubt {
    /// How long this entry has been in the way, and how long with this claimer.
    fn about(&mut self, owner: OfferId, claimer: &str) -> (Duration, Duration) {
        let now = Instant::now();
        let new = || Doubted { owner, since: now, claimer: claimer.into(), claimed_since: now };
        let doubted = self.0.get_or_insert_with(new);
        if doubted.owner != owner {
            *doubted = new();
        }
        if doubted.claimer != claimer {
            doubted.claimer = claimer.into();
            doubted.claimed_since = now;
        }
        (doubted.since.elapsed(), doubted.claimed_since.elapsed())
    }
}

impl Core {
    /// The answer to an offer, once it is certain. `again`: the same offer has been answered before.
    pub(super) async fn decide(&self, offer: &Offer, again: bool) -> Answer {
        if again {
            // All offers of all nodes come again at the same time.
            sleep(self.pace.spread.mul_f64(rand::random())).await;
        }
        let mut attempts = 0_u32;
        let mut doubt = Doubt::default();
        loop {
            if let Some(answer) = self.local().known(offer) {
                return answer;
            }
            match self.ask(offer, &mut doubt).await {
                Ok(Asked::Told(told)) => {
                    let answer = self.local().conclude(offer, told, self.node.as_str());
                    self.errands.notify_one();
                    return answer;
                }
                // What is refused has not been done, and will not be done elsewhere either.
                Err(error) if error.is_refusal() || !self.link.is_connected() => {
                    debug!(%error, "Redis cannot decide an offer");
                    let alone = self.local().alone(offer);
                    self.errands.notify_one();
                    match alone {
                        Alone::Answer(answer) => return answer,
                        Alone::Waiting(claimed) => tokio::select! {
                            () = claimed.notified() => return Answer::Wait,
                            () = self.try_again(attempts) => {}
                        },
                    }
                }
                Ok(Asked::Unsure) => sleep(backoff(attempts, DOUBT_PAUSE)).await,
                // Another offer may have been answered and paired, so nothing is decided here.
                Err(_) => sleep(backoff(attempts, MAX_PAUSE)).await,
            }
            attempts = attempts.saturating_add(1);
        }
    }

    /// When Redis is there, and not all at once.
    async fn try_again(&self, attempts: u32) {
        sleep(backoff(attempts, MAX_PAUSE)).await;
        self.link.is_up().await;
        sleep(self.pace.spread.mul_f64(rand::random())).await;
    }

    /// Asks Redis about an offer. Whatever is found to be a ghost does not count.
    async fn ask(&self, offer: &Offer, doubt: &mut Doubt) -> Result<Asked, Unanswered> {
        let mut gone = Gone::default();
        for _ in 0..ROUNDS {
            gone.released.extend(self.local().released(&offer.key));
            let call = self.scripts.offer(offer, *self.epoch.borrow(), &gone);
            let asked = self.link.ask("offer", async |connection| {
                self.local().ask(offer);
                call.invoke_async::<Vec<String>>(connection).await
            });
            let answer = asked.await?;
            let Some(told) = Told::read(&answer) else { return Ok(Asked::Unsure) };
            let obstacle = match &told {
                Told::Wait => None,
                Told::Claimed { owner, address, .. } => {
                    self.behind_an_entry(owner, address).await?.map(Obstacle::Ghost)
                }
                Told::Taken { .. } => Some(self.in_the_way(offer, &told, doubt).await?),
            };
            match obstacle {
                Some(Obstacle::Ghost(ghost)) => {
                    debug!(tunnel = %offer.id, "a stale entry is in the way of an offer");
                    gone.add(ghost);
                }
                Some(Obstacle::Unsure) => return Ok(Asked::Unsure),
                Some(Obstacle::Pair) | None => return Ok(Asked::Told(told)),
            }
        }
        Ok(Asked::Unsure)
    }

    /// The ghost that has made an entry, if it is known to be one. If not, dialing its node shows
    /// whether it is there.
    pub(super) async fn behind_an_entry(
        &self,
        owner: &Owner,
        address: &str,
    ) -> Result<Option<Ghost>, Unanswered> {
        if owner.node == self.node.as_str() {
            // Its release was forgotten.
            let is_there = self.local().has(owner.offer);
            return Ok((!is_there).then_some(Ghost::Released(owner.offer)));
        }
        Ok(match self.lease_of(&owner.node).await? {
            Lease::Gone if self.is_sure() => Some(ghost_of(owner)),
            Lease::Fresh | Lease::Gone => None,
            Lease::Overdue => match self.fate(owner, address).await? {
                Fate::Dead => Some(ghost_of(owner)),
                Fate::Gone => Some(Ghost::Released(owner.offer)),
                Fate::Waiting | Fate::Paired | Fate::Alive | Fate::Unable | Fate::Unknown => None,
            },
        })
    }

    /// Determines the state of an entry that two other offers have.
    async fn in_the_way(
        &self,
        offer: &Offer,
        taken: &Told,
        doubt: &mut Doubt,
    ) -> Result<Obstacle, Unanswered> {
        let Told::Taken { owner, address, claimer, claimer_node } = taken else {
            return Ok(Obstacle::Pair);
        };
        let fate = if owner.node == self.node.as_str() {
            self.fate_here(offer, owner.offer)
        } else {
            self.fate(owner, address).await?
        };
        let (in_the_way, claimed) = doubt.about(owner.offer, claimer);
        let may_be = |bound| if in_the_way < bound { Obstacle::Unsure } else { Obstacle::Pair };
        Ok(match fate {
            Fate::Dead => Obstacle::Ghost(ghost_of(owner)),
            Fate::Gone => Obstacle::Ghost(Ghost::Released(owner.offer)),
            Fate::Waiting | Fate::Alive if self.is_dead(claimer_node).await? => {
                Obstacle::Ghost(Ghost::Claim(claimer.clone()))
            }
            Fate::Paired | Fate::Alive => Obstacle::Pair,
            Fate::Waiting if claimed >= CLAIM_TIME => {
                Obstacle::Ghost(Ghost::Claim(claimer.clone()))
            }
            Fate::Waiting => Obstacle::Unsure,
            Fate::Unable => may_be(UNABLE_TIME),
            // Its lease has been refreshed in this time: it runs, and keeps what it has.
            Fate::Unknown => may_be(self.pace.lease + self.pace.refresh),
        })
    }

    /// The fate of an offer of this node, as far as it matters here.
    fn fate_here(&self, offer: &Offer, owner: OfferId) -> Fate {
        let local = self.local();
        if !local.has(owner) {
            Fate::Gone
        } else if local.has_tunnel(&offer.key, owner) {
            Fate::Paired
        } else if self.neighbourhood.is_set() {
            Fate::Waiting
        } else {
            Fate::Alive
        }
    }

    /// Whether it is certain that a node has no lease.
    async fn is_dead(&self, node: &str) -> Result<bool, Unanswered> {
        let sure = self.is_sure();
        Ok(sure && node != self.node.as_str() && self.lease_of(node).await? == Lease::Gone)
    }
}

pub(super) fn ghost_of(owner: &Owner) -> Ghost {
    Ghost::OfDeadNode(owner.offer, owner.epoch.clone())
}
