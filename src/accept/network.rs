//! The networks that a client belongs to, as far as limits count them: one IPv4 address, or the IPv6
//! networks of 64, 56 and 48 bits. One line, one home and one site get those by default, so that a
//! client cannot have more by taking another address of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ids::ClientAddr;

/// The prefixes of IPv6 that are counted, the narrowest first, and how many times a limit of counts
/// each may have.
const LEVELS: [(u8, usize); 3] = [(64, 1), (56, 4), (48, 16)];

/// What counts as one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// A single IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 network.
    V6 {
        /// The length of its prefix.
        prefix: u8,
        /// Its first address.
        address: Ipv6Addr,
        /// How many times a limit of counts it may have.
        weight: usize,
    },
    /// The programs on unix sockets, which are not distinguished.
    Local,
    /// The connections of which a load balancer has still to name the client.
    Unnamed,
}

impl Network {
    /// What this network may have where a single address may have `limit`. Programs on unix sockets,
    /// and a load balancer, are many clients.
    pub fn share_of(self, limit: usize) -> usize {
        match self {
            Self::V4(_) => limit,
            Self::V6 { weight, .. } => limit.saturating_mul(weight),
            Self::Local | Self::Unnamed => usize::MAX,
        }
    }
}

/// The networks of one client, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networks {
    /// It has one.
    One([Network; 1]),
    /// Of IPv6.
    V6([Network; 3]),
}

impl Networks {
    /// Those of this client.
    pub fn of(client: ClientAddr) -> Self {
        match client.ip().map(|ip| ip.to_canonical()) {
            Some(IpAddr::V4(address)) => Self::One([Network::V4(address)]),
            Some(IpAddr::V6(address)) => Self::V6(LEVELS.map(|(prefix, weight)| {
                let bits = address.to_bits() >> (128 - prefix) << (128 - prefix);
                Network::V6 { prefix, address: Ipv6Addr::from_bits(bits), weight }
            })),
            None => Self::One([Network::Local]),
        }
    }

    /// Those of a client that is not known yet.
    pub const UNNAMED: Self = Self::One([Network::Unnamed]);

    /// All of them.
    pub fn all(&self) -> &[Network] {
        match self {
            Self::One(all) => all,
            Self::V6(all) => all,
        }
    }

    /// The widest of them, which includes all the others.
    pub fn site(&self) -> Network {
        match self {
            Self::One([site]) | Self::V6([_, _, site]) => *site,
        }
    }

    /// Whether limits for single clients apply to it.
    pub fn is_limited(&self) -> bool {
        match self.site() {
            Network::V4(_) | Network::V6 { .. } => true,
            Network::Local | Network::Unnamed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ip: &str) -> Networks {
        let ip: IpAddr = ip.parse().expect("an address");
        Networks::of(ClientAddr::Ip((ip, 7).into()))
    }

    #[test]
    fn an_ipv4_address_is_alone_also_in_its_ipv6_form() {
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1").all().len(), 1);
        assert_eq!(of("192.0.2.1").site().share_of(100), 100);
    }

    #[test]
    fn ipv6_is_counted_by_64_56_and_48_bits() {
        let shared = |one: &str, other: &str| {
            let (one, other) = (of(one), of(other));
            one.all().iter().zip(other.all()).filter(|(one, other)| one == other).count()
        };
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:2:f::"), 3);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:3::1"), 2);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:f02::1"), 1);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:2:2::1"), 0);
        let allowed: Vec<_> = of("2001:db8::1").all().iter().map(|it| it.share_of(100)).collect();
        assert_eq!(allowed, [100, 400, 1600]);
    }

    #[test]
    fn who_is_many_is_not_limited_as_one() {
        let local = Networks::of(ClientAddr::Unix { process: None });
        assert!(!local.is_limited() && !Networks::UNNAMED.is_limited());
        assert!(of("::1").is_limited() && of("127.0.0.1").is_limited());
    }
}
