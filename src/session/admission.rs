//! How many connections there may be: counted when they come, given back when their [`Ticket`]
//! is dropped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;
use crate::ids::ClientAddr;
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
    authenticated: bool,
    /// Until it is authenticated: the network it is counted for, once that is known.
    network: Option<IpAddr>,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    /// Counts a connection, unless there is no room for it.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        let mut counts = self.counts();
        if counts.connections >= self.limits.connections {
            return Err(Refusal::Connections);
        }
        if counts.unauthenticated >= self.limits.unauthenticated {
            return Err(Refusal::Unauthenticated);
        }
        counts.connections += 1;
        counts.unauthenticated += 1;
        Ok(Ticket { admission: Arc::clone(self), authenticated: false, network: None })
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
    /// Counts the connection for its client, unless that one has too many; once is enough. Programs
    /// on a unix socket are not told apart.
    pub(super) fn comes_from(&mut self, client: ClientAddr) -> Result<(), Refusal> {
        let Some(network) = client.ip().map(network_of) else { return Ok(()) };
        if self.authenticated || self.network.is_some() {
            return Ok(());
        }
        let mut counts = self.admission.counts();
        let from_there = counts.unauthenticated_per_ip.entry(network).or_default();
        if *from_there >= self.admission.limits.unauthenticated_per_ip {
            return Err(Refusal::UnauthenticatedPerIp);
        }
        *from_there += 1;
        self.network = Some(network);
        Ok(())
    }

    /// The connection has proved itself and makes room for others that have not.
    pub(super) fn authenticated(&mut self) {
        if std::mem::replace(&mut self.authenticated, true) {
            return;
        }
        let mut counts = self.admission.counts();
        counts.unauthenticated -= 1;
        if let Some(network) = self.network.take()
            && let Some(count) = counts.unauthenticated_per_ip.get_mut(&network)
        {
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

    /// Somebody comes from this address.
    fn enter(admission: &Arc<Admission>, ip: &str) -> Result<Ticket, Refusal> {
        let ip: IpAddr = ip.parse().expect("an address");
        let mut ticket = admission.enter()?;
        ticket.comes_from(ClientAddr::Ip((ip, 1).into()))?;
        Ok(ticket)
    }

    #[test]
    fn each_limit_refuses_with_its_name() {
        let admission = admission(3, 2, 1);
        let mut first = enter(&admission, "10.0.0.1").expect("room");
        let refused = |address| enter(&admission, address).err();
        assert_eq!(refused("10.0.0.1"), Some(Refusal::UnauthenticatedPerIp));
        let second = enter(&admission, "10.0.0.2").expect("room");
        assert_eq!(refused("10.0.0.3"), Some(Refusal::Unauthenticated));
        first.authenticated();
        let third = enter(&admission, "10.0.0.1").expect("room again");
        assert_eq!(refused("10.0.0.4"), Some(Refusal::Connections));
        drop((first, second, third));
        let counts = admission.counts();
        assert_eq!((counts.connections, counts.unauthenticated), (0, 0));
        assert!(counts.unauthenticated_per_ip.is_empty());
    }

    #[test]
    fn a_client_is_counted_once_and_a_unix_socket_is_none() {
        let admission = admission(9, 9, 1);
        let mut ticket = admission.enter().expect("room");
        let client = ClientAddr::Ip(([10, 0, 0, 1], 7).into());
        assert_eq!([(); 2].map(|()| ticket.comes_from(client)), [Ok(()), Ok(())]);
        assert!(enter(&admission, "10.0.0.1").is_err());
        drop(ticket);
        assert!(enter(&admission, "10.0.0.1").is_ok());
        for _ in 0..3 {
            let mut local = admission.enter().expect("room");
            assert_eq!(local.comes_from(ClientAddr::Unix { process: None }), Ok(()));
            std::mem::forget(local);
        }
        assert_eq!(admission.counts().unauthenticated, 3);
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let admission = admission(9, 9, 1);
        let _first = enter(&admission, "2001:db8::1").expect("room");
        assert!(enter(&admission, "2001:db8::2").is_err());
        assert!(enter(&admission, "2001:db8:0:1::1").is_ok());
        let _mapped = enter(&admission, "::ffff:10.0.0.1").expect("room");
        assert!(enter(&admission, "10.0.0.1").is_err());
    }
}
