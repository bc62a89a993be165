//! The format of all data in Redis: every key, and the values that are not text.

use std::fmt::Write;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::ids::NodeId;
use crate::protocol::PairingKey;
use crate::rendezvous::Secret;

/// The keys below one prefix.
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The entry of two endpoints. The braces make Redis Cluster place it by the hash alone.
    pub(super) fn pair(&self, key: &PairingKey) -> String {
        self.entry("pair", key.as_bytes())
    }

    /// The key of a registration. The UUID itself cannot be read from it.
    pub(super) fn uuid(&self, uuid: &Uuid) -> String {
        let mut hash = Sha256::new();
        hash.update(b"nymea-remoteproxy uuid 1\0");
        hash.update(uuid.as_bytes());
        self.entry("uuid", &hash.finalize())
    }

    /// The nodes by their ids, as each describes itself.
    pub(super) fn nodes(&self) -> String {
        format!("{}nodes", self.prefix)
    }

    /// The lease of a node.
    pub(super) fn node(&self, node: &NodeId) -> String {
        format!("{}node:{node}", self.prefix)
    }

    fn entry(&self, kind: &str, hash: &[u8]) -> String {
        let mut text = format!("{}{kind}:{{", self.prefix);
        for byte in hash {
            // Writing to a text cannot fail.
            let _written = write!(text, "{byte:02x}");
        }
        text.push('}');
        text
    }
}

/// A secret in hex.
pub(super) fn write_secret(secret: Secret) -> String {
    format!("{:032x}", u128::from_be_bytes(secret.0))
}

/// The inverse of [`write_secret`].
pub(super) fn read_secret(text: &str) -> Option<Secret> {
    u128::from_str_radix(text, 16).ok().map(|number| Secret(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Token;

    #[test]
    fn keys_are_spelled_like_this() {
        let keys = Keys::new("test:");
        let pair = keys.pair(&PairingKey::new(&Token::new("token"), Some("nonce")));
        assert_eq!(
            pair,
            "test:pair:{e139eef4e422be4378b71a26283ae12d1a3318083ff97eacd1509712d5b6c496}"
        );
        let uuid = keys.uuid(&Uuid::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
        assert_eq!(
            uuid,
            "test:uuid:{139785b05f3a64d6e51f02d8a8df81afe0249489a3c7156e6683c432b351af32}"
        );
        let node = NodeId::new("proxy-1", 0xab);
        assert_eq!(keys.node(&node), "test:node:proxy-1-00000000000000ab");
        assert_eq!(keys.nodes(), "test:nodes");
    }

    #[test]
    fn secrets_come_back() {
        let secret = Secret(*b"\0\x01 0123456789abc");
        assert_eq!(write_secret(secret), "00012030313233343536373839616263");
        assert_eq!(read_secret(&write_secret(secret)), Some(secret));
        assert_eq!(read_secret("no hex"), None);
    }
}
