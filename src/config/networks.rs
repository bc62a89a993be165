//! Lists of IP networks in a configuration, as in `10.0.0.0/8, fd00::/8, 192.0.2.1`.
//!
//! The transports check with them whether a peer is a trusted load balancer.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Some IP networks; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// Why a text is not a network. Each contains the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// The text is neither an address nor a network.
    #[error("`{0}` is neither an IP address nor a network such as 10.0.0.0/8 or 2001:db8::/32")]
    Syntax(String),
    /// There are bits set after the prefix, so that the intention is not clear.
    #[error("`{given}` has bits after its prefix; write {network} for the network, or {address}")]
    HostBits {
        /// The text as it was given.
        given: String,
        /// The network it is in.
        network: IpNet,
        /// The single address.
        address: IpAddr,
    },
}

impl Networks {
    /// Whether one of them contains `address`. An IPv4 address is one in its IPv6 form, too
    /// (`::ffff:192.0.2.1`): that is how it arrives on a socket for both.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Networks {
    type Err = NetworkError;

    /// Reads networks with commas between them.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

/// A network, or a single address as the network that has only that one.
fn network(text: &str) -> Result<IpNet, NetworkError> {
    let read = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let given: IpNet = read.map_err(|_| NetworkError::Syntax(text.into()))?;
    let network = given.trunc();
    if network != given {
        let (given, address) = (text.into(), given.addr());
        return Err(NetworkError::HostBits { given, network, address });
    }
    Ok(canonical(network))
}

/// IPv4 for IPv4 in its IPv6 form, which no address is compared in.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;

    let IpAddr::V4(address) = network.addr().to_canonical() else { return network };
    let prefix = match network {
        IpNet::V4(_) => return network,
        IpNet::V6(network) => network.prefix_len(),
    };
    let ipv4 = prefix.checked_sub(MAPPED).and_then(|prefix| Ipv4Net::new(address, prefix).ok());
    ipv4.map_or(network, IpNet::V4)
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, network) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

impl Serialize for Networks {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(self.0.iter().map(IpNet::to_string))
    }
}

impl<'de> Deserialize<'de> for Networks {
    /// From an array of texts, or from one text with commas, as in an environment variable.
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Networks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of IP networks such as [\"10.0.0.0/8\", \"2001:db8::/32\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Networks, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Networks, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = texts.next_element::<String>()? {
                    list.push(network(text.trim()).map_err(de::Error::custom)?);
                }
                Ok(Networks(list))
            }
        }

        input.deserialize_any(List)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn networks(text: &str) -> Networks {
        text.parse().expect(text)
    }

    fn contains(networks: &Networks, address: &str) -> bool {
        networks.contains(address.parse().expect("address in a test"))
    }

    #[test]
    fn networks_contain_their_addresses() {
        let networks = networks("10.0.0.0/8, 192.0.2.1,2001:db8::/32, ::1, 198.51.100.7/32");
        for inside in
            ["10.0.0.0", "10.255.255.255", "192.0.2.1", "2001:db8::5", "::1", "198.51.100.7"]
        {
            assert!(contains(&networks, inside), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.2", "2001:db9::", "::2", "::", "0.0.0.0"] {
            assert!(!contains(&networks, outside), "{outside}");
        }
        assert!(contains(&"0.0.0.0/0".parse().expect("all"), "192.0.2.2"));
        assert!(!contains(&"0.0.0.0/0".parse().expect("all"), "2001:db8::1"));
    }

    #[test]
    fn ipv4_in_ipv6_is_ipv4() {
        assert!(contains(&networks("10.0.0.0/8"), "::ffff:10.1.2.3"));
        assert!(contains(&networks("::ffff:10.0.0.0/104"), "10.1.2.3"));
        assert!(contains(&networks("::ffff:10.0.0.1"), "10.0.0.1"));
        assert_eq!(networks("::ffff:10.0.0.0/104"), networks("10.0.0.0/8"));
    }

    #[test]
    fn none() {
        for text in ["", " ", ","] {
            assert!(networks(text).is_empty());
        }
        assert!(!contains(&Networks::default(), "127.0.0.1"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let why = |text: &str| text.parse::<Networks>().expect_err(text).to_string();
        for text in ["localhost", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "[::1]", "1.2.3.4:80"] {
            let expected = format!("`{text}` is neither an IP address nor a network such as");
            assert!(why(&format!("::1, {text}")).starts_with(&expected), "{text}");
        }
        assert_eq!(
            why("10.0.0.1/8"),
            "`10.0.0.1/8` has bits after its prefix; write 10.0.0.0/8 for the network, or 10.0.0.1"
        );
    }

    #[test]
    fn they_are_read_and_written_as_lists() {
        let read = |value| serde_json::from_value::<Networks>(value);
        let both = networks("10.0.0.0/8, ::1");
        assert_eq!(read(json!(["10.0.0.0/8", "::1"])).expect("array"), both);
        assert_eq!(read(json!("10.0.0.0/8,::1")).expect("text"), both);
        assert_eq!(json!(both), json!(["10.0.0.0/8", "::1/128"]));
        assert_eq!(both.to_string(), "10.0.0.0/8, ::1/128");
        let why = read(json!(["10.0.0.1/8"])).expect_err("host bits").to_string();
        assert!(why.contains("write 10.0.0.0/8"), "{why}");
        let why = read(json!(5)).expect_err("number").to_string();
        assert!(why.ends_with(
            "expected a list of IP networks such as [\"10.0.0.0/8\", \"2001:db8::/32\"]"
        ));
    }
}
