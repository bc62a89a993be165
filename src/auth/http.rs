//! Asks an authentication server: `POST <url>` with `{"token": "…"}`.
//!
//! 200 with a JSON object decides by its boolean `isValid`; 204, or 200 with a `Content-Length` of
//! 0, means yes; 401 and 403 mean no. Everything else is a failure of the server, and never a yes.
//! What an answer means is decided by [`answer`]; here is how it is received.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::TRANSFER_ENCODING;
use reqwest::{Certificate, Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Authenticator, Failure, User, Verdict, answer};
use crate::protocol::Token;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long a connection is kept for the next question. Servers close idle ones without notice, the
/// first of them after 5 s.
const KEEP_IDLE: Duration = Duration::from_secs(4);

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

/// Why the client of the authentication server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The URL is malformed.
    #[error("authentication.server is not a valid URL")]
    Url(#[source] url::ParseError),
    /// The URL is not of HTTP.
    #[error("authentication.server must begin with https:// or http://, not {0}://")]
    Scheme(String),
    /// The file of `authentication.ca` cannot be read.
    #[error("cannot read authentication.ca from {}", .0.display())]
    UnreadableCa(PathBuf, #[source] io::Error),
    /// The file of `authentication.ca` has no usable certificate.
    #[error("authentication.ca: there is no usable PEM certificate in {}", .0.display())]
    BadCa(PathBuf),
    /// The HTTP client cannot be made.
    #[error("cannot set up the client of the authentication server")]
    Client(#[source] reqwest::Error),
}

/// Asks a server over HTTP, on pooled connections.
pub struct HttpAuthenticator {
    pooled: Client,
    /// For the second try, when a pooled connection turned out to be closed: others may be, too.
    unpooled: Client,
    url: Url,
    timeout: Duration,
    places: Semaphore,
}

impl HttpAuthenticator {
    /// Checks the settings, without sending a request.
    pub fn new(settings: &HttpSettings) -> Result<Self, SetupError> {
        let url = Url::parse(&settings.url).map_err(SetupError::Url)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SetupError::Scheme(url.scheme().to_owned()));
        }
        let trusted = settings.ca.as_deref().map(read_ca).transpose()?.unwrap_or_default();
        let pooled = builder(trusted.clone()).pool_idle_timeout(KEEP_IDLE);
        let unpooled = builder(trusted).pool_max_idle_per_host(0);
        Ok(Self {
            pooled: pooled.build().map_err(SetupError::Client)?,
            unpooled: unpooled.build().map_err(SetupError::Client)?,
            url,
            timeout: settings.timeout,
            places: Semaphore::new(settings.concurrency),
        })
    }

    async fn ask(&self, token: Token) -> Result<Verdict, Failure> {
        let response = match self.send(&self.pooled, &token).await {
            Err(error) if is_closed_without_answer(&error) => {
                self.send(&self.unpooled, &token).await
            }
            sent => sent,
        };
        let response = response.map_err(unreachable)?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(Verdict::Accepted(User::default())),
            // hyper knows this length from the head alone: a body that ends with the connection, or
            // in chunks, has none, and may have been cut off.
            StatusCode::OK if response.content_length() == Some(0) => {
                Ok(Verdict::Accepted(User::default()))
            }
            StatusCode::OK => answer::judge(&read(response).await?),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Verdict::Refused),
            status => Err(Failure::Status(status.as_u16())),
        }
    }

    async fn send(&self, client: &Client, token: &Token) -> Result<Response, reqwest::Error> {
        #[derive(serde::Serialize)]
        struct Question<'a> {
            token: &'a str,
        }
        let question = Question { token: token.reveal() };
        client.post(self.url.clone()).json(&question).send().await
    }
}

fn builder(trusted: Vec<Certificate>) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(concat!("nymea-remoteproxy/", env!("CARGO_PKG_VERSION")))
        // A redirect would hand the token to a server that was not configured.
        .redirect(redirect::Policy::none())
        .referer(false);
    if trusted.is_empty() { builder } else { builder.tls_certs_merge(trusted) }
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

/// Whether the connection was closed before anything of an answer arrived, as happens to one that
/// was idle for too long.
fn is_closed_without_answer(error: &reqwest::Error) -> bool {
    let is_closed = causes(error).any(|cause| {
        if let Some(error) = cause.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_canceled() || error.is_closed())
        {
            return true;
        }
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::UnexpectedEof
            )
        })
    });
    is_closed && !error.is_connect()
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let ends_with_connection = response.content_length().is_none()
        && response.version() <= http::Version::HTTP_11
        && !response.headers().contains_key(TRANSFER_ENCODING);
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_ANSWER => {
                return Err(Failure::Answer("is larger than 64 KiB"));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            // Python's servers end TLS without a goodbye. Nothing can be cut off a JSON object that
            // is whole.
            Err(error) if ends_with_connection && is_tls_cut(&error) => return Ok(body),
            Err(error) => return Err(unreachable(error)),
        }
    }
}

/// Whether TLS ended without its own goodbye.
fn is_tls_cut(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
