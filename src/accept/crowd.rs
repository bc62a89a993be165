//! Connections that have proved nothing yet, in the order in which they make room for others.
//!
//! The widest network with the most of them gives way first, and in it the oldest that has said the
//! least: a client that opens many connections displaces its own only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::network::{Network, Networks};

/// The progress of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Not a byte came.
    Silent,
    /// Bytes came, but no complete request.
    Unheard,
    /// At least one complete request came.
    Heard,
}

/// The number of a connection in a crowd; a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(u64);

/// The place of a connection in the queue of its networks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    standing: Standing,
    id: MemberId,
}

/// The sites are in the order of this: the last one gives way first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Size {
    members: usize,
    /// Of equal sites, the one with the first member to give way does.
    first: Reverse<Rank>,
    site: Network,
}

/// A connection of the crowd.
pub struct Member {
    /// The networks that the client belongs to.
    pub networks: Networks,
    standing: Standing,
    since: Instant,
    displaced: CancellationToken,
}

/// The connection that gives way next.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which it is.
    pub id: MemberId,
    /// The progress of the connection.
    pub standing: Standing,
    /// When it was accepted.
    pub since: Instant,
    /// Whether it is of the newcomer's own site.
    pub is_own: bool,
}

/// See the module. Each operation takes a time that grows with the logarithm of the number of members.
#[derive(Default)]
pub struct Crowd {
    members: BTreeMap<MemberId, Member>,
    queues: BTreeMap<Network, BTreeSet<Rank>>,
    sites: BTreeSet<Size>,
    last: u64,
}

impl Crowd {
    /// The number of members.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The number of members from a network.
    pub fn count_of(&self, network: Network) -> usize {
        self.queues.get(&network).map_or(0, BTreeSet::len)
    }

    /// Adds a connection, which is notified through `displaced` when it has to give way.
    pub fn add(
        &mut self,
        networks: Networks,
        standing: Standing,
        displaced: CancellationToken,
    ) -> MemberId {
        self.last += 1;
        let id = MemberId(self.last);
        self.members.insert(id, Member { networks, standing, since: Instant::now(), displaced });
        self.enqueue(networks, Rank { standing, id });
        id
    }

    /// Takes a connection out, if it is still there.
    pub fn remove(&mut self, id: MemberId) -> Option<Member> {
        let member = self.members.remove(&id)?;
        self.dequeue(member.networks, Rank { standing: member.standing, id });
        Some(member)
    }

    /// Notes that a connection has come further.
    pub fn promote(&mut self, id: MemberId, standing: Standing) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = std::mem::replace(&mut member.standing, standing);
        let networks = member.networks;
        if before != standing {
            self.dequeue(networks, Rank { standing: before, id });
            self.enqueue(networks, Rank { standing, id });
        }
    }

    /// Takes a connection out, and has it closed.
    pub fn displace(&mut self, id: MemberId) -> Option<Member> {
        let member = self.remove(id)?;
        member.displaced.cancel();
        Some(member)
    }

    /// Has all of them closed.
    pub fn displace_all(&mut self) {
        let gone = std::mem::take(&mut self.members);
        self.queues.clear();
        self.sites.clear();
        for member in gone.into_values() {
            member.displaced.cancel();
        }
    }

    /// The member of this network that gives way first.
    pub fn first_of(&self, network: Network) -> Option<Candidate> {
        self.candidate(network, true)
    }

    /// The member that gives way for a newcomer: of the site with the most members, which is the
    /// newcomer's own where no other one has more.
    pub fn first_for(&self, newcomer: &Networks) -> Option<Candidate> {
        let Size { members, site, .. } = *self.sites.last()?;
        let own = newcomer.site();
        if self.count_of(own) >= members {
            self.candidate(own, true)
        } else {
            self.candidate(site, false)
        }
    }

    fn candidate(&self, network: Network, is_own: bool) -> Option<Candidate> {
        let Rank { standing, id } = *self.queues.get(&network)?.first()?;
        let since = self.members.get(&id)?.since;
        Some(Candidate { id, standing, since, is_own })
    }

    fn enqueue(&mut self, networks: Networks, rank: Rank) {
        self.unlist(networks.site());
        for network in networks.all() {
            self.queues.entry(network).or_default().insert(rank);
        }
        self.list(networks.site());
    }

    fn dequeue(&mut self, networks: Networks, rank: Rank) {
        self.unlist(networks.site());
        for network in networks.all() {
            let Some(queue) = self.queues.get_mut(&network) else { continue };
            queue.remove(&rank);
            if queue.is_empty() {
                self.queues.remove(&network);
            }
        }
        self.list(networks.site());
    }

    fn list(&mut self, site: Network) {
        self.sites.extend(self.size_of(site));
    }

    fn unlist(&mut self, site: Network) {
        if let Some(size) = self.size_of(site) {
            self.sites.remove(&size);
        }
    }

    /// The place of a site among the sites, if it has members.
    fn size_of(&self, site: Network) -> Option<Size> {
        let queue = self.queues.get(&site)?;
        Some(Size { members: queue.len(), first: Reverse(*queue.first()?), site })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClientAddr;

    fn of(ip: &str) -> Networks {
        let ip: std::net::IpAddr = ip.parse().expect("an address");
        Networks::of(ClientAddr::Ip((ip, 7).into()))
    }

    fn add(crowd: &mut Crowd, ip: &str, standing: Standing) -> (MemberId, CancellationToken) {
        let displaced = CancellationToken::new();
        (crowd.add(of(ip), standing, displaced.clone()), displaced)
    }

    #[test]
    fn the_site_with_the_most_gives_way_first_and_in_it_the_oldest_silent_one() {
        let mut crowd = Crowd::default();
        let (_, few) = add(&mut crowd, "192.0.2.1", Standing::Silent);
        add(&mut crowd, "192.0.2.2", Standing::Heard);
        let (oldest, displaced) = add(&mut crowd, "192.0.2.2", Standing::Silent);
        add(&mut crowd, "192.0.2.2", Standing::Silent);
        let first = crowd.first_for(&of("192.0.2.3")).expect("a candidate");
        assert_eq!((first.id, first.is_own), (oldest, false));
        crowd.displace(first.id);
        assert!(displaced.is_cancelled() && !few.is_cancelled());
        assert_eq!(crowd.count(), 3);
        // A member of the site itself has no one else displaced.
        let first = crowd.first_for(&of("192.0.2.2")).expect("a candidate");
        assert!(first.is_own && first.standing == Standing::Silent);
    }

    #[test]
    fn an_ipv6_site_is_one_however_many_networks_it_uses() {
        let mut crowd = Crowd::default();
        for number in 0..3 {
            add(&mut crowd, &format!("2001:db8:1:{number}::1"), Standing::Silent);
        }
        add(&mut crowd, "192.0.2.2", Standing::Silent);
        add(&mut crowd, "192.0.2.2", Standing::Silent);
        let first = crowd.first_for(&of("192.0.2.2")).expect("a candidate");
        assert!(!first.is_own);
        assert_eq!(crowd.count_of(of("2001:db8:1:1::").all().next().expect("one")), 1);
        assert_eq!(crowd.count_of(of("2001:db8:1:1::").site()), 3);
    }

    #[test]
    fn what_comes_further_gives_way_later_and_nothing_is_left_of_who_leaves() {
        let mut crowd = Crowd::default();
        let (old, _) = add(&mut crowd, "2001:db8::1", Standing::Silent);
        let (new, _) = add(&mut crowd, "2001:db8::1", Standing::Silent);
        crowd.promote(old, Standing::Unheard);
        crowd.promote(old, Standing::Heard);
        assert_eq!(crowd.first_of(of("2001:db8::2").site()).map(|first| first.id), Some(new));
        assert!(crowd.remove(new).is_some() && crowd.remove(new).is_none());
        assert!(crowd.remove(old).is_some());
        assert!(crowd.queues.is_empty() && crowd.sites.is_empty() && crowd.count() == 0);
        assert!(crowd.first_for(&of("192.0.2.1")).is_none());
    }
}
