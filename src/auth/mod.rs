//! Decides whether a token is valid: the [`Authenticator`] trait and its implementations,
//! [`HttpAuthenticator`] and [`AcceptAny`].

mod answer;
mod http;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use thiserror::Error;

use crate::protocol::Token;

pub use self::http::{HttpAuthenticator, HttpSettings, SetupError};

/// Decides about tokens. Dropping the returned future cancels the question.
pub trait Authenticator: Send + Sync {
    /// Asks about one token.
    fn authenticate(self: Arc<Self>, token: Token) -> BoxFuture<'static, Verdict>;
}

/// What came of a question. A failure is never a yes.
#[derive(Debug)]
pub enum Verdict {
    /// The token is valid, and belongs to this user.
    Accepted(User),
    /// The token is bad.
    Refused,
    /// It could not be found out.
    Failed(Failure),
}

impl Verdict {
    /// A short constant name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Refused => "refused",
            Self::Failed(Failure::Timeout(_)) => "timeout",
            Self::Failed(Failure::Busy) => "busy",
            Self::Failed(Failure::Unreachable(_)) => "unreachable",
            Self::Failed(Failure::Status(_)) => "status",
            Self::Failed(Failure::Answer(_)) => "answer",
        }
    }
}

/// The data of the authentication server about the owner of a token, for the log and for limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `verifiedData.verifiedParsedToken.email`
    pub email: Option<String>,
    /// `verifiedData.verifiedParsedToken.cognito:username`
    pub username: Option<String>,
}

/// Why a token could not be checked. None repeats what the server answered, as that may contain
/// the token.
#[derive(Debug, Error)]
pub enum Failure {
    /// No answer in time.
    #[error("the authentication server did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// All places for questions stayed taken.
    #[error("too many authentications at once (authentication.concurrency)")]
    Busy,
    /// The server cannot be reached.
    #[error("the authentication server cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// An HTTP status that is neither a yes nor a no.
    #[error("the authentication server answered with status {0}")]
    Status(u16),
    /// The answer is malformed or ambiguous.
    #[error("the answer of the authentication server {0}")]
    Answer(&'static str),
}

/// Accepts every token: for development.
pub struct AcceptAny;

impl Authenticator for AcceptAny {
    fn authenticate(self: Arc<Self>, _token: Token) -> BoxFuture<'static, Verdict> {
        ready(Verdict::Accepted(User::default())).boxed()
    }
}
