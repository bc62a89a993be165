//! Who a connection is of, for counting: by the name that the authentication server gives, or else
//! by its token. Neither is kept, only a hash that means nothing outside of this process.

use std::hash::{BuildHasher, RandomState};

use crate::auth;
use crate::protocol::Token;

/// A user, or a token of a user without a name. It has no `Debug`: nothing of it belongs into a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct User(u64);

/// Tells users apart, by a hash with a random key. Two users with the same one would share a limit;
/// without the key, names with equal hashes cannot be chosen.
#[derive(Default)]
pub(super) struct Users(RandomState);

impl Users {
    /// The user whom the authentication server names, if it does.
    pub(super) fn named(&self, user: &auth::User) -> Option<User> {
        let named = |kind, name: &Option<String>| {
            name.as_deref().filter(|name| !name.is_empty()).map(|name| self.hash(kind, name))
        };
        named("username", &user.username).or_else(|| named("email", &user.email))
    }

    /// The user of a token about whom nothing else is known.
    pub(super) fn of_token(&self, token: &Token) -> User {
        self.hash("token", token.reveal())
    }

    /// The user of a connection that has shown nothing.
    pub(super) fn unknown(&self) -> User {
        self.hash("unknown", "")
    }

    fn hash(&self, kind: &'static str, value: &str) -> User {
        User(self.0.hash_one((kind, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(username: Option<&str>, email: Option<&str>) -> auth::User {
        auth::User { username: username.map(Into::into), email: email.map(Into::into) }
    }

    #[test]
    fn a_user_is_known_by_name_then_by_address_then_by_token() {
        let users = Users::default();
        let named = |username, email| users.named(&user(username, email));
        assert!(named(Some("a"), Some("x")) == named(Some("a"), None));
        assert!(named(Some("a"), None) != named(None, Some("a")));
        assert!(named(None, None).is_none() && named(Some(""), None).is_none());
        let of = |token| users.of_token(&Token::new(token));
        assert!(of("a") == of("a") && of("a") != of("b"));
        assert!(Some(of("a")) != named(Some("a"), None));
        assert!(
            of("a") != Users::default().of_token(&Token::new("a")),
            "a hash of another process"
        );
    }
}
