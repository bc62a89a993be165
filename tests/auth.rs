//! Tokens checked by an authentication server: a real HTTP server on loopback, with answers that the
//! tests write byte for byte.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use nymea_remoteproxy::node::Node;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use support::{Endpoint, node_with, soon};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// An HTTP server that answers by the token in the question.
struct AuthServer {
    url: String,
    connections: Arc<AtomicUsize>,
    /// A question for the token `hang` has come.
    asked: Arc<Notify>,
    /// The request about the token `hang` was cancelled.
    cancelled: Arc<Notify>,
}

impl AuthServer {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let port = listener.local_addr().expect("bound").port();
        let server = Self {
            url: format!("{scheme}://localhost:{port}/verify?key=secret"),
            connections: Arc::default(),
            asked: Arc::default(),
            cancelled: Arc::default(),
        };
        let connections = Arc::clone(&server.connections);
        let (asked, cancelled) = (Arc::clone(&server.asked), Arc::clone(&server.cancelled));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, cancelled) = (Arc::clone(&asked), Arc::clone(&cancelled));
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => answer_all(tcp, &asked, &cancelled).await,
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => answer_all(stream, &asked, &cancelled).await,
                            Err(_not_trusted) => None,
                        },
                    }
                });
            }
        });
        server
    }

    fn node(&self) -> Node {
        let url = self.url.clone();
        node_with(move |config| config.authentication.server = Some(url))
    }
}

/// Answers question after question on one connection.
async fn answer_all<S>(mut stream: S, asked: &Notify, cancelled: &Notify) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let question = read_question(&mut stream).await?;
        let answer = match question.as_str() {
            "valid" => with_body("200 OK", r#"{"isValid":true}"#),
            "empty" => with_body("200 OK", ""),
            "no content" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
            "invalid" => with_body("200 OK", r#"{"isValid":false}"#),
            "unauthorized" => with_body("401 Unauthorized", ""),
            "forbidden" => with_body("403 Forbidden", r#"{"isValid":true}"#),
            "broken" => with_body("500 Internal Server Error", r#"{"isValid":true}"#),
            "redirect" => {
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".into()
            }
            "page" => with_body("200 OK", "<html>"),
            "string" => with_body("200 OK", r#"{"isValid":"true"}"#),
            "huge" => with_body("200 OK", &" ".repeat(100_000)),
            _ => {
                asked.notify_one();
                // The end of the connection is all that can come.
                let _reset_or_end = stream.read_u8().await;
                cancelled.notify_one();
                return None;
            }
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

fn with_body(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The token in the next request; the request must be as documented.
async fn read_question(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        bytes.push(stream.read_u8().await.ok()?);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(bytes).expect("ASCII").to_lowercase();
    assert!(head.starts_with("post /verify?key=secret http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).await.ok()?;
    let question: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(question.as_object().map(serde_json::Map::len), Some(1), "only the token");
    question["token"].as_str().map(str::to_owned)
}

/// The error and close code that an endpoint of generation 2 gets for this token; `None` for success.
async fn told(node: &Node, token: &str) -> Option<(String, u16)> {
    let mut endpoint = Endpoint::connect(node).await;
    endpoint.request(&format!(r#""token":"{token}","uuid":"u","name":"n""#)).await;
    let answer = endpoint.json().await;
    let error = answer["params"]["authenticationError"].as_str().expect("an enum");
    let error = error.strip_prefix("AuthenticationError").expect("its prefix").to_owned();
    if answer["status"] == "success" {
        assert_eq!(error, "NoError");
        return None;
    }
    Some((error, endpoint.close_code().await))
}

#[tokio::test]
async fn only_a_clear_yes_is_a_yes() {
    let server = AuthServer::start().await;
    let node = server.node();
    for token in ["valid", "empty", "no content"] {
        assert_eq!(told(&node, token).await, None, "{token}");
    }
    let refused = Some(("AuthenticationFailed".to_owned(), 1008));
    for token in ["invalid", "unauthorized", "forbidden"] {
        assert_eq!(told(&node, token).await, refused, "{token}");
    }
    let failed = Some(("ProxyError".to_owned(), 1013));
    for token in ["broken", "redirect", "page", "string", "huge"] {
        assert_eq!(told(&node, token).await, failed, "{token}");
    }
}

#[tokio::test]
async fn generation_1_gets_the_seeds_words() {
    let server = AuthServer::start().await;
    let node = server.node();
    let mut refused = Endpoint::connect(&node).await;
    refused.request(r#""token":"invalid""#).await;
    assert_eq!(
        refused.text().await,
        "{\"id\":0,\"status\":\"error\",\
         \"error\":\"Invalid token. You are not allowed to use this server.\"}\n"
    );
    refused.closed_with(1008).await;
    let mut failed = Endpoint::connect(&node).await;
    failed.request(r#""token":"broken""#).await;
    let answer = failed.json().await;
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("temporary")), "{answer}");
    assert!(answer.get("params").is_none());
    failed.closed_with(1013).await;
}

#[tokio::test]
async fn connections_to_the_server_are_used_again() {
    let server = AuthServer::start().await;
    let node = server.node();
    for _ in 0..5 {
        assert_eq!(told(&node, "valid").await, None);
        assert_eq!(told(&node, "invalid").await.map(|(_, code)| code), Some(1008));
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_that_is_away_never_says_yes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    drop(listener);
    let node = node_with(|config| config.authentication.server = Some(url));
    assert_eq!(told(&node, "valid").await, Some(("ProxyError".into(), 1013)));
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout() {
    let server = AuthServer::start().await;
    let url = server.url.clone();
    let node = node_with(|config| {
        config.authentication.server = Some(url);
        config.authentication.timeout = Duration::from_millis(200);
    });
    assert_eq!(told(&node, "hang").await, Some(("Timeout".into(), 1013)));
    soon("the question to be cancelled", server.cancelled.notified()).await;
}

#[tokio::test]
async fn the_node_waits_no_longer_than_the_client_may() {
    let server = AuthServer::start().await;
    let url = server.url.clone();
    let node = node_with(|config| {
        config.authentication.server = Some(url);
        config.timeouts.authentication = Duration::from_millis(200);
    });
    assert_eq!(told(&node, "hang").await, Some(("Timeout".into(), 1013)));
    soon("the question to be cancelled", server.cancelled.notified()).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_question() {
    let server = AuthServer::start().await;
    let node = server.node();
    let mut endpoint = Endpoint::connect(&node).await;
    endpoint.request(r#""token":"hang""#).await;
    soon("the question", server.asked.notified()).await;
    drop(endpoint);
    soon("the question to be cancelled", server.cancelled.notified()).await;
}

#[tokio::test]
async fn too_many_questions_at_once_are_told_to_come_back() {
    let server = AuthServer::start().await;
    let url = server.url.clone();
    let node = node_with(|config| {
        config.authentication.server = Some(url);
        config.authentication.concurrency = 1;
        config.authentication.timeout = Duration::from_millis(500);
        config.timeouts.authentication = Duration::from_secs(20);
    });
    let mut first = Endpoint::connect(&node).await;
    first.request(r#""token":"hang""#).await;
    soon("the question", server.asked.notified()).await;
    // It waits for the place of the first, in vain or for the little time that is left.
    let mut waiting: Vec<_> = Vec::new();
    for _ in 0..3 {
        waiting.push(told(&node, "hang"));
    }
    let told: Vec<_> = futures_util::stream::iter(waiting).buffered(3).collect().await;
    for told in told {
        let (error, code) = told.expect("not accepted");
        assert!(["ProxyError", "Timeout"].contains(&&*error), "{error}");
        assert_eq!(code, 1013);
    }
    // Its place is free again.
    assert_eq!(self::told(&node, "valid").await, None);
}

#[tokio::test]
async fn https_is_trusted_by_its_ca_only() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a pair");
    let server = AuthServer::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await;
    let folder = tempfile::tempdir().expect("temporary folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).expect("writable");

    let url = server.url.clone();
    let trusting = node_with(|config| {
        config.authentication.server = Some(url);
        config.authentication.ca = Some(ca);
    });
    assert_eq!(told(&trusting, "valid").await, None);
    assert_eq!(told(&server.node(), "valid").await, Some(("ProxyError".into(), 1013)));
}
