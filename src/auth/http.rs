//! Asks an authentication server: `POST <url>` with `{"token": "…"}`.
//!
//! 200 with a JSON object decides by its boolean `isValid`; 200 or 204 without a body means yes;
//! 401 and 403 mean no. Everything else is a failure of the server, and never a yes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Authenticator, Failure, User, Verdict};
use crate::protocol::Token;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The server's URL, `https` or `http`.
    pub url: String,
    /// PEM file with certificates to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// For the wait for a place, the connection and the answer together.
    pub timeout: Duration,
    /// Questions at once; more wait.
    pub concurrency: usize,
}

/// Why an authentication server cannot be asked at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The URL makes no sense.
    #[error("authentication.server is no URL")]
    Url(#[source] url::ParseError),
    /// The URL is not of HTTP.
    #[error("authentication.server must begin with https:// or http://, not {0}://")]
    Scheme(String),
    /// The file of `authentication.ca` cannot be read.
    #[error("cannot read authentication.ca from {}", .0.display())]
    UnreadableCa(PathBuf, #[source] std::io::Error),
    /// The file of `authentication.ca` makes no sense.
    #[error("authentication.ca: there is no usable PEM certificate in {}", .0.display())]
    BadCa(PathBuf),
    /// The HTTP client cannot be made.
    #[error("cannot set up the client of the authentication server")]
    Client(#[source] reqwest::Error),
}

/// Asks a server over HTTP, on pooled connections.
pub struct HttpAuthenticator {
    client: Client,
    url: Url,
    timeout: Duration,
    places: Semaphore,
}

impl HttpAuthenticator {
    /// Checks the settings; asks nobody yet.
    pub fn new(settings: &HttpSettings) -> Result<Self, SetupError> {
        let url = Url::parse(&settings.url).map_err(SetupError::Url)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SetupError::Scheme(url.scheme().to_owned()));
        }
        let mut client = Client::builder()
            .user_agent(concat!("nymea-remoteproxy/", env!("CARGO_PKG_VERSION")))
            // A redirect would hand the token to somebody who was not configured.
            .redirect(redirect::Policy::none())
            .referer(false);
        if let Some(file) = &settings.ca {
            client = client.tls_certs_merge(read_ca(file)?);
        }
        let client = client.build().map_err(SetupError::Client)?;
        let places = Semaphore::new(settings.concurrency);
        Ok(Self { client, url, timeout: settings.timeout, places })
    }

    async fn ask(&self, token: Token) -> Result<Verdict, Failure> {
        #[derive(serde::Serialize)]
        struct Question<'a> {
            token: &'a str,
        }
        let question = Question { token: token.reveal() };
        let request = self.client.post(self.url.clone()).json(&question);
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => judge(&read(response).await?),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Verdict::Refused),
            status => Err(Failure::Status(status.as_u16())),
        }
    }
}

impl Authenticator for HttpAuthenticator {
    fn authenticate(self: Arc<Self>, token: Token) -> BoxFuture<'static, Verdict> {
        async move {
            let started = tokio::time::Instant::now();
            let Ok(place) = timeout(self.timeout, self.places.acquire()).await else {
                return Verdict::Failed(Failure::Busy);
            };
            let left = self.timeout.saturating_sub(started.elapsed());
            let verdict = timeout(left, self.ask(token)).await;
            drop(place);
            match verdict {
                Ok(verdict) => verdict.unwrap_or_else(Verdict::Failed),
                Err(_) => Verdict::Failed(Failure::Timeout(self.timeout)),
            }
        }
        .boxed()
    }
}

fn read_ca(file: &Path) -> Result<Vec<Certificate>, SetupError> {
    let pem =
        std::fs::read(file).map_err(|source| SetupError::UnreadableCa(file.to_owned(), source))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(SetupError::BadCa(file.to_owned())),
    }
}

/// The URL may carry credentials; it does not belong into a log.
fn unreachable(error: reqwest::Error) -> Failure {
    Failure::Unreachable(error.without_url())
}

async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Failure::Answer("is larger than 64 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn judge(body: &[u8]) -> Result<Verdict, Failure> {
    if body.trim_ascii().is_empty() {
        return Ok(Verdict::Accepted(User::default()));
    }
    let answer: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| Failure::Answer("is no JSON object"))?;
    match answer.get("isValid").and_then(Value::as_bool) {
        Some(true) => Ok(Verdict::Accepted(owner(&answer))),
        Some(false) => Ok(Verdict::Refused),
        None => Err(Failure::Answer("has no boolean 'isValid'")),
    }
}

fn owner(answer: &Map<String, Value>) -> User {
    let token = answer.get("verifiedData").and_then(|data| data.get("verifiedParsedToken"));
    let text = |name| token.and_then(|token| token.get(name)?.as_str().map(str::to_owned));
    User { email: text("email"), username: text("cognito:username") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_is_valid() {
        let accepted = |body: &str| match judge(body.as_bytes()) {
            Ok(Verdict::Accepted(user)) => Some(user),
            _ => None,
        };
        assert_eq!(accepted(""), Some(User::default()));
        assert_eq!(accepted(r#"{"isValid":true,"more":1}"#), Some(User::default()));
        let user = r#"{"isValid":true,"verifiedData":{"verifiedParsedToken":
            {"email":"a@b","cognito:username":"ab"}}}"#;
        let named = User { email: Some("a@b".into()), username: Some("ab".into()) };
        assert_eq!(accepted(user), Some(named));
        assert!(matches!(judge(br#"{"isValid":false}"#), Ok(Verdict::Refused)));
        for nonsense in ["{}", r#"{"isValid":"true"}"#, r#"{"isValid":1}"#, "true", "[true]", "<p>"]
        {
            assert!(matches!(judge(nonsense.as_bytes()), Err(Failure::Answer(_))), "{nonsense}");
        }
    }

    #[test]
    fn settings_are_checked() {
        let settings = |url: &str| HttpSettings {
            url: url.into(),
            ca: None,
            timeout: Duration::from_secs(1),
            concurrency: 1,
        };
        assert!(HttpAuthenticator::new(&settings("https://localhost/a")).is_ok());
        let error =
            HttpAuthenticator::new(&settings("ftp://localhost")).err().map(|e| e.to_string());
        assert!(error.is_some_and(|error| error.ends_with("not ftp://")));
        assert!(HttpAuthenticator::new(&settings("localhost")).is_err());
    }
}
