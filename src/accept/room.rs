//! A bounded number of connections that have proved nothing yet. A newcomer is never turned away: if
//! there is no room for it, another one goes.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

use super::crowd::{Crowd, MemberId, Standing};
use super::network::Networks;

use crate::lock::lock;

/// See the module.
pub struct Room {
    limit: usize,
    /// Of one IPv4 address or IPv6 /64 network, and some more of the wider IPv6 networks.
    per_network: usize,
    crowd: Mutex<Crowd>,
}

/// A connection's place in a [`Room`], given back when dropped.
pub struct Visit {
    room: Arc<Room>,
    id: MemberId,
    displaced: CancellationToken,
}

impl Room {
    /// Returns an empty one.
    pub fn new(limit: usize, per_network: usize) -> Arc<Self> {
        Arc::new(Self { limit, per_network, crowd: Mutex::default() })
    }

    /// Lets a connection in, and closes another one if there is no room for both.
    pub fn enter(
        self: &Arc<Self>,
        networks: Networks,
        standing: Standing,
        displaced: CancellationToken,
    ) -> Visit {
        let mut crowd = self.lock();
        let full = networks.all().find(|network| {
            crowd.count_of(*network) >= network.share_of(self.per_network).min(self.limit)
        });
        let first = match full {
            Some(network) => crowd.first_of(network),
            None if crowd.count() >= self.limit => crowd.first_for(&networks),
            None => None,
        };
        if let Some(first) = first {
            crowd.displace(first.id);
        }
        let id = crowd.add(networks, standing, displaced.clone());
        drop(crowd);
        Visit { room: Arc::clone(self), id, displaced }
    }

    /// The number of connections in the room.
    pub fn count(&self) -> usize {
        self.lock().count()
    }

    /// Closes the connection that would have to go next.
    pub(super) fn displace_one(&self) {
        let mut crowd = self.lock();
        if let Some(first) = crowd.first_for(&Networks::Unnamed) {
            crowd.displace(first.id);
        }
    }

    /// Closes all of them.
    pub(super) fn displace_all(&self) {
        self.lock().displace_all();
    }

    fn lock(&self) -> MutexGuard<'_, Crowd> {
        // A panic between two changes leaves a place too many or too few, and no more harm.
        lock(&self.crowd)
    }
}

impl Visit {
    /// Notes how far the connection has come.
    pub fn has_come(&self, standing: Standing) {
        self.room.lock().promote(self.id, standing);
    }

    /// Cancelled when the connection has to go.
    pub fn displaced(&self) -> &CancellationToken {
        &self.displaced
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.room.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClientAddr;

    fn enter(room: &Arc<Room>, ip: &str) -> Visit {
        let ip: std::net::IpAddr = ip.parse().expect("an address");
        let networks = Networks::of(ClientAddr::Ip((ip, 7).into()));
        room.enter(networks, Standing::Silent, CancellationToken::new())
    }

    #[test]
    fn who_has_more_than_its_share_displaces_its_own() {
        let room = Room::new(4, 2);
        let first = enter(&room, "192.0.2.1");
        let second = enter(&room, "192.0.2.1");
        let third = enter(&room, "192.0.2.1");
        assert!(first.displaced().is_cancelled());
        assert!(!second.displaced().is_cancelled() && !third.displaced().is_cancelled());
        assert_eq!(room.count(), 2);
    }

    #[test]
    fn a_newcomer_always_finds_room() {
        let room = Room::new(4, 2);
        let crowd: Vec<_> =
            ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"].map(|ip| enter(&room, ip)).into();
        crowd[0].has_come(Standing::Unheard);
        let newcomers: Vec<_> = (3..6).map(|n| enter(&room, &format!("192.0.2.{n}"))).collect();
        assert!(newcomers.iter().all(|visit| !visit.displaced().is_cancelled()));
        assert_eq!(room.count(), 4);
        drop((crowd, newcomers));
        assert_eq!(room.count(), 0);
    }
}
