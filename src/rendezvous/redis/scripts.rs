//! The operations in Redis, each in one atomic step. The scripts are in `lua/`.

use std::time::Duration;

use redis::{Script, ScriptInvocation};
use uuid::Uuid;

use super::decide::Ghost;
use super::keys::{Keys, read_secret, write_secret};
use super::local::{Role as Place, Tunnel};
use crate::ids::{NodeId, OfferId};
use crate::protocol::PairingKey;
use crate::rendezvous::{Offer, Registration, Role, Secret};
use crate::trace_parent::TraceParent;

/// Builds the calls of one node.
pub(super) struct Scripts {
    keys: Keys,
    node: NodeId,
    address: String,
    lives: Lives,
    offer: Script,
    release: Script,
    stand: Script,
    lease: Script,
    left: Script,
    list: Script,
    register: Script,
    find: Script,
}

/// How long things stay in Redis unless they are refreshed.
#[derive(Clone, Copy)]
pub(super) struct Lives {
    pub(super) waiting: Duration,
    pub(super) standing: Duration,
    pub(super) lease: Duration,
}

/// Stale entries, which must not block an offer.
#[derive(Default)]
pub(super) struct Gone {
    /// An offer on a node without a lease, as it was in this epoch.
    pub(super) owner: Option<(OfferId, String)>,
    /// Claimers that will not join after all.
    pub(super) claimers: Vec<String>,
    /// Offers that their nodes have released, but perhaps not in Redis yet.
    pub(super) released: Vec<OfferId>,
}

/// The answer of Redis to an offer.
#[derive(Debug)]
pub(super) enum Told {
    Wait,
    Claimed { owner: Owner, address: String, secret: Secret, trace: Option<TraceParent> },
    Taken { owner: Owner, address: String, claimer: String, claimer_node: String },
}

/// The answer of Redis about a UUID.
#[derive(Debug)]
pub(super) enum Possession {
    /// The UUID is free, or registered for the querying endpoint.
    Free,
    Held(Held),
}

/// The holder of a UUID.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) owner: Owner,
    pub(super) address: String,
    pub(super) secret: Secret,
    pub(super) role: Role,
}

/// The owner of an entry.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) offer: OfferId,
    pub(super) node: String,
    pub(super) epoch: String,
}

impl Scripts {
    pub(super) fn new(keys: Keys, node: NodeId, address: String, lives: Lives) -> Self {
        Self {
            keys,
            node,
            address,
            lives,
            offer: Script::new(include_str!("lua/offer.lua")),
            release: Script::new(include_str!("lua/release.lua")),
            stand: Script::new(include_str!("lua/stand.lua")),
            lease: Script::new(include_str!("lua/lease.lua")),
            left: Script::new(include_str!("lua/left.lua")),
            list: Script::new(include_str!("lua/list.lua")),
            register: Script::new(include_str!("lua/register.lua")),
            find: Script::new(include_str!("lua/find.lua")),
        }
    }

    pub(super) fn offer(&self, offer: &Offer, epoch: u64, gone: &Gone) -> ScriptInvocation<'_> {
        let mut call = self.entry(&self.offer, offer, epoch);
        call.arg(millis(self.lives.waiting)).arg(millis(self.lives.standing));
        let (dead, its_epoch) = gone.owner();
        call.arg(offer.trace.map(|trace| trace.to_string()).unwrap_or_default());
        call.arg(dead).arg(its_epoch).arg(&gone.claimers);
        for released in &gone.released {
            call.arg(released.to_string());
        }
        call
    }

    pub(super) fn release(
        &self,
        key: &PairingKey,
        offer: OfferId,
        place: Place,
    ) -> ScriptInvocation<'_> {
        let mut call = self.release.key(self.keys.pair(key));
        let place = match place {
            Place::Owner => "owner",
            Place::Claimer => "claimer",
            Place::Either => "either",
        };
        call.arg(offer.to_string()).arg(place).arg(millis(self.lives.waiting));
        call
    }

    pub(super) fn stand(&self, tunnel: &Tunnel, epoch: u64) -> ScriptInvocation<'_> {
        let claimer = tunnel.claimer.map(|claimer| claimer.to_string()).unwrap_or_default();
        let mut call = self.entry(&self.stand, &tunnel.offer, epoch);
        call.arg(claimer).arg(millis(self.lives.standing));
        call
    }

    pub(super) fn register(
        &self,
        registration: &Registration,
        epoch: u64,
        gone: &Gone,
    ) -> ScriptInvocation<'_> {
        let mut call = self.register.key(self.keys.uuid(&registration.uuid));
        call.arg(registration.id.to_string())
            .arg(self.node.as_str())
            .arg(epoch)
            .arg(&self.address)
            .arg(write_secret(registration.secret))
            .arg(registration.role.label())
            .arg(millis(self.lives.standing));
        let (dead, its_epoch) = gone.owner();
        call.arg(dead).arg(its_epoch);
        for released in &gone.released {
            call.arg(released.to_string());
        }
        call
    }

    pub(super) fn unregister(&self, uuid: &Uuid, id: OfferId) -> ScriptInvocation<'_> {
        let mut call = self.release.key(self.keys.uuid(uuid));
        call.arg(id.to_string()).arg("owner").arg(0);
        call
    }

    pub(super) fn find(&self, uuid: &Uuid) -> ScriptInvocation<'_> {
        self.find.key(self.keys.uuid(uuid))
    }

    /// This node is alive; `facts` say who it is.
    pub(super) fn lease(&self, facts: &str) -> ScriptInvocation<'_> {
        let mut call = self.lease.key(self.keys.node(&self.node));
        call.arg(facts).arg(millis(self.lives.lease));
        call
    }

    /// The same for those who want to know all nodes. Who has no lease does not count there.
    pub(super) fn list(&self, facts: &str) -> ScriptInvocation<'_> {
        let mut call = self.list.key(self.keys.nodes());
        call.arg(self.node.as_str()).arg(facts).arg(millis(self.lives.lease));
        call
    }

    /// All nodes by their ids, with their facts.
    pub(super) fn listed(&self) -> redis::Cmd {
        redis::Cmd::hgetall(self.keys.nodes())
    }

    /// Some of them, from a cursor on.
    pub(super) fn scan_listed(&self, cursor: u64, count: usize) -> redis::Cmd {
        let mut command = redis::cmd("HSCAN");
        command.arg(self.keys.nodes()).arg(cursor).arg("COUNT").arg(count);
        command
    }

    /// A node is not to be listed any more.
    pub(super) fn unlist(&self, node: &str) -> redis::Cmd {
        redis::Cmd::hdel(self.keys.nodes(), node)
    }

    /// How long the lease of a node still lasts, in ms.
    pub(super) fn left(&self, node: &str) -> ScriptInvocation<'_> {
        let mut call = self.left.key(self.keys.node(&node.into()));
        call.arg(millis(self.lives.lease));
        call
    }

    /// The offer that made the entry of this key.
    pub(super) fn owner_of_pair(&self, key: &PairingKey) -> redis::Cmd {
        owner_of(self.keys.pair(key))
    }

    /// The registration that made the entry of this UUID.
    pub(super) fn owner_of_uuid(&self, uuid: &Uuid) -> redis::Cmd {
        owner_of(self.keys.uuid(uuid))
    }

    /// Whether a node has a lease.
    pub(super) fn is_alive(&self, node: &str) -> redis::Cmd {
        let mut command = redis::cmd("EXISTS");
        command.arg(self.keys.node(&node.into()));
        command
    }

    /// This node ends.
    pub(super) fn farewell(&self) -> redis::Cmd {
        let mut command = redis::cmd("DEL");
        command.arg(self.keys.node(&self.node));
        command
    }

    /// A call with the arguments that make an entry.
    fn entry<'a>(&'a self, script: &'a Script, offer: &Offer, epoch: u64) -> ScriptInvocation<'a> {
        let mut call = script.key(self.keys.pair(&offer.key));
        call.arg(offer.id.to_string())
            .arg(self.node.as_str())
            .arg(epoch)
            .arg(&self.address)
            .arg(write_secret(offer.secret));
        call
    }
}

impl Gone {
    /// Has one more ghost left out of account.
    pub(super) fn add(&mut self, ghost: Ghost) {
        match ghost {
            Ghost::OfDeadNode(offer, epoch) => self.owner = Some((offer, epoch)),
            Ghost::Released(offer) => self.released.push(offer),
            Ghost::Claim(claimer) => self.claimers.push(claimer),
        }
    }

    /// The dead owner and its epoch, as the scripts take them.
    fn owner(&self) -> (String, &str) {
        match &self.owner {
            Some((dead, epoch)) => (dead.to_string(), epoch.as_str()),
            None => (String::new(), ""),
        }
    }
}

impl Possession {
    /// Reads what the scripts answered; `None` if that is nothing they answer.
    pub(super) fn read(answer: &[String]) -> Option<Self> {
        let texts: Vec<_> = answer.iter().map(String::as_str).collect();
        Some(match texts[..] {
            ["registered" | "free"] => Self::Free,
            ["held", offer, node, epoch, address, secret, role] => Self::Held(Held {
                owner: Owner::read(offer, node, epoch)?,
                address: address.into(),
                secret: read_secret(secret)?,
                role: if role == Role::Gateway.label() { Role::Gateway } else { Role::App },
            }),
            _ => return None,
        })
    }
}

impl Told {
    /// Reads what the script answered; `None` if that is nothing it answers.
    pub(super) fn read(answer: &[String]) -> Option<Self> {
        let texts: Vec<_> = answer.iter().map(String::as_str).collect();
        Some(match texts[..] {
            ["wait"] => Self::Wait,
            ["claimed", offer, node, epoch, address, secret, trace] => Self::Claimed {
                owner: Owner::read(offer, node, epoch)?,
                address: address.into(),
                secret: read_secret(secret)?,
                trace: trace.parse().ok(),
            },
            ["taken", offer, node, epoch, address, claimer, claimer_node] => Self::Taken {
                owner: Owner::read(offer, node, epoch)?,
                address: address.into(),
                claimer: claimer.into(),
                claimer_node: claimer_node.into(),
            },
            _ => return None,
        })
    }
}

impl Owner {
    fn read(offer: &str, node: &str, epoch: &str) -> Option<Self> {
        Some(Self { offer: offer.parse().ok()?, node: node.into(), epoch: epoch.into() })
    }
}

fn owner_of(entry: String) -> redis::Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(entry).arg("offer");
    command
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
