//! The networks that a client belongs to, as far as limits count them: one IPv4 address, or the IPv6
//! networks of 64, 56 and 48 bits. One line, one home and one site get those by default, so that a
//! client cannot have more by taking another address of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ids::ClientAddr;

/// The prefixes of IPv6 that are counted, the narrowest first, and how many times a limit of counts
/// each may have.
const LEVELS: [(u8, usize); 3] = [(64, 1), (56, 4), WIDEST];
const WIDEST: (u8, usize) = (48, 16);

/// The unit that counts as one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// A single IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 network.
    V6 {
        /// The length of its prefix.
        prefix: u8,
        /// The first address of the network.
        address: Ipv6Addr,
        /// The factor by which limits are multiplied.
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

    fn around(address: Ipv6Addr, (prefix, weight): (u8, usize)) -> Self {
        let bits = address.to_bits() >> (128 - prefix) << (128 - prefix);
        Self::V6 { prefix, address: Ipv6Addr::from_bits(bits), weight }
    }
}

/// The networks of one client. Kept for each connection, so it holds no more than its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networks {
    /// One: the address itself.
    V4(Ipv4Addr),
    /// Three: one for each prefix that is counted.
    V6(Ipv6Addr),
    /// [`Network::Local`].
    Local,
    /// [`Network::Unnamed`].
    Unnamed,
}

impl Networks {
    /// Returns those of this client.
    pub fn of(client: ClientAddr) -> Self {
        match client.ip().map(|ip| ip.to_canonical()) {
            Some(IpAddr::V4(address)) => Self::V4(address),
            Some(IpAddr::V6(address)) => Self::V6(address),
            None => Self::Local,
        }
    }

    /// Returns all of them, the narrowest first.
    pub fn all(&self) -> impl Iterator<Item = Network> + use<> {
        let all = match *self {
            Self::V4(address) => [Some(Network::V4(address)), None, None],
            Self::V6(address) => LEVELS.map(|level| Some(Network::around(address, level))),
            Self::Local => [Some(Network::Local), None, None],
            Self::Unnamed => [Some(Network::Unnamed), None, None],
        };
        all.into_iter().flatten()
    }

    /// Returns the widest of them, which includes all the others.
    pub fn site(&self) -> Network {
        match *self {
            Self::V4(address) => Network::V4(address),
            Self::V6(address) => Network::around(address, WIDEST),
            Self::Local => Network::Local,
            Self::Unnamed => Network::Unnamed,
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
        assert_eq!(of("192.0.2.1").all().count(), 1);
        assert_eq!(of("192.0.2.1").site().share_of(100), 100);
    }

    #[test]
    fn ipv6_is_counted_by_64_56_and_48_bits() {
        let shared = |one: &str, other: &str| {
            let (one, other) = (of(one), of(other));
            one.all().zip(other.all()).filter(|(one, other)| one == other).count()
        };
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:2:f::"), 3);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:3::1"), 2);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:f02::1"), 1);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:2:2::1"), 0);
        let allowed: Vec<_> = of("2001:db8::1").all().map(|it| it.share_of(100)).collect();
        assert_eq!(allowed, [100, 400, 1600]);
    }

    #[test]
    fn who_is_many_is_not_limited_as_one() {
        let local = Networks::of(ClientAddr::Unix { process: None });
        assert!(!local.is_limited() && !Networks::Unnamed.is_limited());
        assert!(of("::1").is_limited() && of("127.0.0.1").is_limited());
    }
}
