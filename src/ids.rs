//! The identifiers of the system, one type each, so that they cannot be mixed up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// A connection accepted by this node, numbered from 1 since the node started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The next number of this process.
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address of a client, as the node that accepted it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddr {
    /// Over IP. The port is 0 where a proxy in between does not say it.
    Ip(SocketAddr),
    /// Over a unix socket: from a program on this machine.
    Unix {
        /// The process of the client, if the system provides it.
        process: Option<u32>,
    },
}

impl ClientAddr {
    /// Its IP address, if it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix { .. } => None,
        }
    }
}

impl From<SocketAddr> for ClientAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix { process: Some(process) } => write!(f, "unix:{process}"),
            Self::Unix { process: None } => f.write_str("unix"),
        }
    }
}

/// One endpoint's offer to be paired: random, so that it never repeats, on any node.
///
/// A tunnel bears the id of the offer that waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId(Uuid);

impl OfferId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id as 128 bits.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl From<Uuid> for OfferId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for OfferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for OfferId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A node from its start to its end: its name, and a number that no other start of it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The node of this name, in the boot epoch with this number.
    pub fn new(name: &str, boot: u64) -> Self {
        Self(format!("{name}-{boot:016x}").into())
    }

    /// A node of this name that has just started.
    pub fn started(name: &str) -> Self {
        Self::new(name, rand::random())
    }

    /// Its name, which is the same for each of its starts.
    pub fn name(&self) -> &str {
        let is_boot =
            |boot: &str| boot.len() == 16 && boot.bytes().all(|it| it.is_ascii_hexdigit());
        match self.0.rsplit_once('-') {
            Some((name, boot)) if is_boot(boot) => name,
            Some(_) | None => &self.0,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
