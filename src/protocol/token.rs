//! The secret by which two endpoints find each other, and the key made from it.

use std::fmt;

use sha2::{Digest, Sha256};

/// A token as a client showed it. Its value reaches the authenticator and nothing else: it has no
/// `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The secret itself, to be sent to the authentication server or the proxy.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The key that two endpoints have in common: SHA-256 over token and nonce, with a
/// domain separator, so that neither can be read from it or swapped with the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairingKey([u8; 32]);

impl PairingKey {
    /// The key of a token and a nonce. No nonce and an empty one are the same.
    pub fn new(token: &Token, nonce: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"nymea-remoteproxy pairing 1\0");
        hash.update((token.0.len() as u64).to_be_bytes());
        hash.update(token.0.as_bytes());
        hash.update(nonce.unwrap_or_default().as_bytes());
        Self(hash.finalize().into())
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PairingKey {
    /// Shows nothing: a reader of the log could otherwise test guesses at weak tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairingKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_and_nonce_decide_together() {
        let key = |token: &str, nonce| PairingKey::new(&Token::new(token), nonce);
        assert_eq!(key("a", None), key("a", Some("")));
        assert_eq!(key("a", Some("n")), key("a", Some("n")));
        assert_ne!(key("a", Some("n")), key("a", None));
        assert_ne!(key("a", Some("n")), key("b", Some("n")));
        assert_ne!(key("ab", Some("c")), key("a", Some("bc")));
    }

    #[test]
    fn debug_hides_the_secret() {
        let token = Token::new("geheim");
        assert!(!format!("{token:?}").contains("geheim"));
        assert_eq!(format!("{:?}", PairingKey::new(&token, None)), "PairingKey(…)");
    }
}
