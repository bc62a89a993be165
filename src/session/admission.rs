//! How many connections there may be: counted when they come, given back when their [`Ticket`]
//! is dropped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;
use crate::transport::Refusal;

/// The counts of one node.
pub(super) struct Admission {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: usize,
    unauthenticated: usize,
    unauthenticated_per_ip: HashMap<IpAddr, usize>,
}

/// The right to be connected.
pub(super) struct Ticket {
    admission: Arc<Admission>,
    /// Until it is authenticated: the network it is counted for.
    network: Option<IpAddr>,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    /// Counts a connection from this address, unless there is no room for it.
    pub(super) fn enter(self: &Arc<Self>, client_ip: IpAddr) -> Result<Ticket, Refusal> {
        let network = network_of(client_ip);
        let mut counts = self.counts();
        let from_here = counts.unauthenticated_per_ip.get(&network).copied().unwrap_or(0);
        if counts.connections >= self.limits.connections {
            return Err(Refusal::Connections);
        }
        if counts.unauthenticated >= self.limits.unauthenticated {
            return Err(Refusal::Unauthenticated);
        }
        if from_here >= self.limits.unauthenticated_per_ip {
            return Err(Refusal::UnauthenticatedPerIp);
        }
        counts.connections += 1;
        counts.unauthenticated += 1;
        counts.unauthenticated_per_ip.insert(network, from_here + 1);
        Ok(Ticket { admission: Arc::clone(self), network: Some(network) })
    }

    /// Connections there are, and may be.
    pub(super) fn connections(&self) -> (usize, usize) {
        (self.counts().connections, self.limits.connections)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic between two counts would be a fault of this file, not of the counts.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The connection has proved itself and makes room for others that have not.
    pub(super) fn authenticated(&mut self) {
        let Some(network) = self.network.take() else { return };
        let mut counts = self.admission.counts();
        counts.unauthenticated -= 1;
        if let Some(count) = counts.unauthenticated_per_ip.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                counts.unauthenticated_per_ip.remove(&network);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.authenticated();
        self.admission.counts().connections -= 1;
    }
}

/// IPv6 users have a /64 of their own; counting single addresses would count nothing.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, unauthenticated: usize, per_ip: usize) -> Arc<Admission> {
        let limits = Limits {
            connections,
            unauthenticated,
            unauthenticated_per_ip: per_ip,
            ..Limits::default()
        };
        Admission::new(limits)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_limit_refuses_with_its_name() {
        let admission = admission(3, 2, 1);
        let mut first = admission.enter(ip("10.0.0.1")).expect("room");
        let refused = |address| admission.enter(ip(address)).err();
        assert_eq!(refused("10.0.0.1"), Some(Refusal::UnauthenticatedPerIp));
        let second = admission.enter(ip("10.0.0.2")).expect("room");
        assert_eq!(refused("10.0.0.3"), Some(Refusal::Unauthenticated));
        first.authenticated();
        let third = admission.enter(ip("10.0.0.1")).expect("room again");
        assert_eq!(refused("10.0.0.4"), Some(Refusal::Connections));
        drop((first, second, third));
        let counts = admission.counts();
        assert_eq!((counts.connections, counts.unauthenticated), (0, 0));
        assert!(counts.unauthenticated_per_ip.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let admission = admission(9, 9, 1);
        let _first = admission.enter(ip("2001:db8::1")).expect("room");
        assert!(admission.enter(ip("2001:db8::2")).is_err());
        assert!(admission.enter(ip("2001:db8:0:1::1")).is_ok());
        let _mapped = admission.enter(ip("::ffff:10.0.0.1")).expect("room");
        assert!(admission.enter(ip("10.0.0.1")).is_err());
    }
}
