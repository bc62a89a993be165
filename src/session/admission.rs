//! How many connections there may be, of each network and user: counted when they arrive, given back
//! when their [`Ticket`] is dropped.
//!
//! A stranger is a connection without a verified token, also one that has registered without a
//! token. Strangers that have not registered give way to newcomers: of the network with
//! the most of them first, and there the oldest that has sent no complete request.
//!
//! A network may have a share of all connections, and so may a user. The last connections are kept
//! for networks that have few, so that no network, however greedy, keeps others out.

mod share;
mod user;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::share::Shares;
use self::user::{User, Users};
use crate::accept::{Candidate, Crowd, MemberId, Network, Networks, Standing};
use crate::auth;
use crate::config::Limits;
use crate::ids::ClientAddr;
use crate::lock::lock;
use crate::observability::Metrics;
use crate::protocol::Token;
use crate::transport::Refusal;

/// A connection that has sent no complete request for this long gives way to others of its own
/// network; until then it may still be on its way through the handshake.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// The counts of one node.
pub(super) struct Admission {
    limits: Limits,
    shares: Shares,
    users: Users,
    counts: Mutex<Counts>,
}

struct Counts {
    /// Counts rights that are returned twice.
    metrics: Arc<Metrics>,
    connections: usize,
    strangers: usize,
    /// Strangers that have registered, and do not give way any more.
    registered: usize,
    networks: BTreeMap<Network, Tally>,
    users: BTreeMap<User, usize>,
    /// Strangers that give way.
    crowd: Crowd,
}

/// What there is of one network.
#[derive(Clone, Copy, Default)]
struct Tally {
    connections: usize,
    strangers: usize,
}

/// The right to be connected.
pub(super) struct Ticket {
    admission: Arc<Admission>,
    networks: Networks,
    state: State,
    /// Of the token that it shows.
    shown: Option<User>,
    /// As long as it may have to give way.
    displaced: Option<CancellationToken>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Stranger {
        id: MemberId,
        heard: bool,
    },
    /// Registered without a token.
    Registered,
    Verified(User),
    /// Not counted: it had to give way, or was refused.
    Out,
}

impl Admission {
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let shares = Shares::of(&limits);
        let counts = Mutex::new(Counts::new(metrics));
        Arc::new(Self { limits, shares, users: Users::default(), counts })
    }

    /// Counts a connection, of this client if it is known, unless there is no room for it.
    pub(super) fn enter(self: &Arc<Self>, client: Option<ClientAddr>) -> Result<Ticket, Refusal> {
        let networks = client.map_or(Networks::Unnamed, Networks::of);
        let displaced = CancellationToken::new();
        let mut counts = self.counts();
        counts.make_room(&networks, &self.limits, &self.shares)?;
        let id = counts.add(networks, Standing::Unheard, displaced.clone());
        let state = State::Stranger { id, heard: false };
        let (admission, displaced) = (Arc::clone(self), Some(displaced));
        Ok(Ticket { admission, networks, state, shown: None, displaced })
    }

    /// Connections there are, and may be.
    pub(super) fn connections(&self) -> (usize, usize) {
        (self.counts().connections, self.limits.connections)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic between two counts would be a fault of this file, not of the counts.
        lock(&self.counts)
    }
}

impl Counts {
    fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            connections: 0,
            strangers: 0,
            registered: 0,
            networks: BTreeMap::new(),
            users: BTreeMap::new(),
            crowd: Crowd::default(),
        }
    }

    /// Sees that there is room for one more connection of these networks. No connection gives way
    /// for a newcomer that is refused all the same.
    fn make_room(
        &mut self,
        networks: &Networks,
        limits: &Limits,
        shares: &Shares,
    ) -> Result<(), Refusal> {
        let tallies = || networks.all().map(|network| (network, self.tally(network)));
        if networks.is_limited()
            && tallies().any(|(_, tally)| tally.connections >= shares.per_network)
        {
            return Err(Refusal::Network);
        }
        let full = tallies().find(|(network, tally)| {
            tally.strangers >= network.share_of(limits.unauthenticated_per_ip)
        });
        let gives_way = match full {
            Some((network, _)) => {
                let first = self.crowd.first_of(network).filter(is_silent);
                Some(first.ok_or(Refusal::UnauthenticatedPerIp)?)
            }
            None if self.strangers >= limits.unauthenticated => {
                Some(self.gives_way_for(networks).ok_or(Refusal::Unauthenticated)?)
            }
            None => None,
        };
        let has_few =
            !networks.is_limited() || self.tally(networks.site()).connections < shares.few;
        let room = if has_few { limits.connections } else { limits.connections - shares.reserve };
        let missing = (self.connections + 1).saturating_sub(room);
        let gives_way = match (missing, gives_way) {
            (0, gives_way) => gives_way,
            (1, Some(first)) => Some(first),
            (1, None) => Some(self.gives_way_for(networks).ok_or(Refusal::Connections)?),
            (2.., _) => return Err(Refusal::Connections),
        };
        if let Some(first) = gives_way
            && let Some(member) = self.crowd.displace(first.id)
        {
            self.forget(&member.networks);
        }
        Ok(())
    }

    /// The stranger that gives way for a newcomer of these networks.
    fn gives_way_for(&self, networks: &Networks) -> Option<Candidate> {
        self.crowd.first_for(networks).filter(|first| !first.is_own || is_silent(first))
    }

    fn tally(&self, network: Network) -> Tally {
        self.networks.get(&network).copied().unwrap_or_default()
    }

    /// Counts a stranger.
    fn add(
        &mut self,
        networks: Networks,
        standing: Standing,
        displaced: CancellationToken,
    ) -> MemberId {
        self.connections += 1;
        self.strangers += 1;
        for network in networks.all() {
            let tally = self.networks.entry(network).or_default();
            tally.connections += 1;
            tally.strangers += 1;
        }
        self.crowd.add(networks, standing, displaced)
    }

    /// A stranger is none any more, or gone.
    fn forget_stranger(&mut self, networks: &Networks) {
        self.metrics.returned(&mut self.strangers, "the place of a stranger");
        for network in networks.all() {
            if let Some(tally) = self.networks.get_mut(&network) {
                self.metrics.returned(&mut tally.strangers, "a network's place of a stranger");
            }
        }
    }

    /// A stranger is registered no more, or has been verified.
    fn forget_registered(&mut self) {
        self.metrics.returned(&mut self.registered, "the place of a registered stranger");
    }

    fn forget_connection(&mut self, networks: &Networks) {
        self.metrics.returned(&mut self.connections, "the place of a connection");
        for network in networks.all() {
            if let Some(tally) = self.networks.get_mut(&network) {
                self.metrics.returned(&mut tally.connections, "a network's place of a connection");
                if tally.connections == 0 {
                    self.networks.remove(&network);
                }
            }
        }
    }

    fn forget(&mut self, networks: &Networks) {
        self.forget_stranger(networks);
        self.forget_connection(networks);
    }

    fn forget_user(&mut self, user: User) {
        if let Some(count) = self.users.get_mut(&user) {
            self.metrics.returned(count, "a user's place of a connection");
            if *count == 0 {
                self.users.remove(&user);
            }
        }
    }
}

/// Whether it has said nothing for so long that others of its own network may have its place.
fn is_silent(first: &Candidate) -> bool {
    first.standing < Standing::Heard && first.since.elapsed() >= SILENT_FOR
}

impl Ticket {
    /// Counts the connection for its client, unless that one has too many; once is enough.
    pub(super) fn comes_from(&mut self, client: ClientAddr) -> Result<(), Refusal> {
        let State::Stranger { id, heard } = self.state else { return Ok(()) };
        if self.networks != Networks::Unnamed {
            return Ok(());
        }
        let Admission { limits, shares, .. } = &*self.admission;
        let displaced = self.displaced();
        let mut counts = self.admission.counts();
        self.state = State::Out;
        if counts.crowd.remove(id).is_none() {
            return Err(Refusal::Unauthenticated);
        }
        counts.forget(&self.networks);
        let networks = Networks::of(client);
        counts.make_room(&networks, limits, shares)?;
        let id = counts.add(networks, Standing::Unheard, displaced);
        (self.networks, self.state) = (networks, State::Stranger { id, heard });
        Ok(())
    }

    /// Notes that a complete request came.
    pub(super) fn is_heard(&mut self) {
        if let State::Stranger { id, heard: heard @ false } = &mut self.state {
            *heard = true;
            self.admission.counts().crowd.promote(*id, Standing::Heard);
        }
    }

    /// Notes the token that the connection shows, for a user that has no name.
    pub(super) fn shows(&mut self, token: &Token) {
        self.shown = Some(self.admission.users.of_token(token));
    }

    /// The connection has proved to be of this user, unless that one has too many; it makes room for
    /// strangers.
    pub(super) fn is_verified(&mut self, user: &auth::User) -> Result<(), Refusal> {
        let Admission { shares, users, .. } = &*self.admission;
        let user = users.named(user).or(self.shown).unwrap_or_else(|| users.unknown());
        let mut counts = self.admission.counts();
        let id = match self.state {
            State::Stranger { id, .. } => Some(id),
            State::Registered => None,
            State::Verified(_) => return Ok(()),
            State::Out => return Err(Refusal::Unauthenticated),
        };
        if counts.users.get(&user).is_some_and(|count| *count >= shares.per_user) {
            return Err(Refusal::User);
        }
        match id {
            // It has just been given away.
            Some(id) if counts.crowd.remove(id).is_none() => {
                self.state = State::Out;
                return Err(Refusal::Unauthenticated);
            }
            Some(_) => {}
            None => counts.forget_registered(),
        }
        counts.forget_stranger(&self.networks);
        *counts.users.entry(user).or_default() += 1;
        self.state = State::Verified(user);
        self.displaced = None;
        Ok(())
    }

    /// The connection registers. Without a verified token that proves nothing: it remains a
    /// stranger, but one that does not give way, and of those there are never so many that no room
    /// is left for others.
    pub(super) fn registers(&mut self) -> Result<(), Refusal> {
        let Admission { limits, shares, .. } = &*self.admission;
        let State::Stranger { id, .. } = self.state else { return Ok(()) };
        let mut counts = self.admission.counts();
        if counts.registered >= limits.unauthenticated - shares.newcomers {
            return Err(Refusal::Unauthenticated);
        }
        if counts.crowd.remove(id).is_none() {
            self.state = State::Out;
            return Err(Refusal::Unauthenticated);
        }
        counts.registered += 1;
        self.state = State::Registered;
        self.displaced = None;
        Ok(())
    }

    /// Returns what is cancelled when the connection has to give way to another one, which is never
    /// the case once it is verified.
    pub(super) fn displaced(&self) -> CancellationToken {
        self.displaced.clone().unwrap_or_default()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        match self.state {
            State::Stranger { id, .. } => {
                if counts.crowd.remove(id).is_some() {
                    counts.forget(&self.networks);
                }
            }
            State::Registered => {
                counts.forget_registered();
                counts.forget(&self.networks);
            }
            State::Verified(user) => {
                counts.forget_user(user);
                counts.forget_connection(&self.networks);
            }
            State::Out => {}
        }
    }
}

#[cfg(test)]
mod tests;
