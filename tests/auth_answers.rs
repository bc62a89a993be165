//! What an authentication server may answer, byte for byte, and how its connection may end: only an
//! explicit yes is a yes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nymea_remoteproxy::auth::{Authenticator, HttpAuthenticator, HttpSettings, Verdict};
use nymea_remoteproxy::protocol::Token;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It stays open.
    Keep,
    /// It ends in order.
    Close,
    /// It is reset.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Yes,
    No,
    Failure,
}

fn is(verdict: &Verdict) -> Is {
    match verdict {
        Verdict::Accepted(_) => Is::Yes,
        Verdict::Refused => Is::No,
        Verdict::Failed(_) => Is::Failure,
    }
}

fn authenticator(url: String, timeout: Duration) -> Arc<HttpAuthenticator> {
    let settings = HttpSettings { url, ca: None, timeout, concurrency: 100 };
    Arc::new(HttpAuthenticator::new(&settings).expect("settings"))
}

async fn ask(authenticator: &Arc<HttpAuthenticator>) -> Verdict {
    ask_about(authenticator, "t").await
}

async fn ask_about(authenticator: &Arc<HttpAuthenticator>, token: &str) -> Verdict {
    Arc::clone(authenticator).authenticate(Token::new(token)).await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// The token in the next request; `None` at the end of the connection.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("ASCII").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).await.ok()?;
    let question: Value = serde_json::from_slice(&body).expect("JSON");
    question["token"].as_str().map(str::to_owned)
}

/// The bytes of each answer, and how the connection ends after it.
type Answers = Mutex<Vec<(Vec<u8>, End)>>;

/// A server that answers by the token, and who asks it.
struct Server {
    answers: Arc<Answers>,
    patient: Arc<HttpAuthenticator>,
    hurried: Arc<HttpAuthenticator>,
}

impl Server {
    async fn start() -> Self {
        let (listener, address) = listen().await;
        let answers = Arc::<Answers>::default();
        let given = Arc::clone(&answers);
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let given = Arc::clone(&given);
                tokio::spawn(async move {
                    let number: usize = read_request(&mut tcp).await?.parse().ok()?;
                    let (answer, end) = given.lock().expect("no panic")[number].clone();
                    tcp.write_all(&answer).await.ok()?;
                    match end {
                        End::Keep => _ = tcp.read_u8().await,
                        End::Close => {}
                        End::Reset => tcp.set_zero_linger().expect("a socket"),
                    }
                    Some(())
                });
            }
        });
        let authenticator = |timeout| authenticator(format!("http://{address}/"), timeout);
        let patient = authenticator(Duration::from_secs(10));
        // What never ends is a time-out.
        Self { answers, patient, hurried: authenticator(Duration::from_millis(300)) }
    }

    /// The verdict about an answer.
    async fn verdict(&self, answer: &[u8], end: End) -> Is {
        let number = {
            let mut answers = self.answers.lock().expect("no panic");
            answers.push((answer.to_vec(), end));
            answers.len() - 1
        };
        let authenticator = if end == End::Keep { &self.hurried } else { &self.patient };
        is(&ask_about(authenticator, &number.to_string()).await)
    }

    /// Checks each answer with the connection kept and closed.
    async fn check(&self, answers: &[(String, Is, Is)]) {
        for (answer, kept, closed) in answers {
            let bytes = answer.as_bytes();
            assert_eq!(self.verdict(bytes, End::Keep).await, *kept, "kept open: {answer:?}");
            assert_eq!(self.verdict(bytes, End::Close).await, *closed, "closed: {answer:?}");
        }
    }
}

const YES: &str = r#"{"isValid":true}"#;
const NO: &str = r#"{"isValid":false}"#;

fn with_length(head: &str, body: &str) -> String {
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn an_explicit_answer_counts_whether_the_connection_ends_or_not() {
    let server = Server::start().await;
    let ok = "HTTP/1.1 200 OK";
    let mut answers = vec![
        (with_length(ok, YES), Is::Yes),
        (with_length(ok, NO), Is::No),
        (with_length(ok, ""), Is::Yes),
        (with_length("HTTP/1.0 200 OK", ""), Is::Yes),
        (with_length("HTTP/1.0 200 OK", YES), Is::Yes),
        ("HTTP/1.1 204 No Content\r\n\r\n".into(), Is::Yes),
        ("HTTP/1.0 204 No Content\r\n\r\n".into(), Is::Yes),
        (with_length("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", YES), Is::Yes),
        (with_length("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK", NO), Is::No),
        (format!("{ok}\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{YES}\r\n0\r\n\r\n"), Is::Yes),
        (format!("{ok}\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{NO}\r\n0\r\n\r\n"), Is::No),
        (with_length("HTTP/1.1 401 Unauthorized", YES), Is::No),
        (with_length("HTTP/1.1 403 Forbidden", ""), Is::No),
        (with_length("HTTP/1.1 200 OK\r\nContent-Encoding: gzip", "\u{1f}\u{8b}"), Is::Failure),
        (with_length(ok, " "), Is::Failure),
        (with_length(ok, "\r\n"), Is::Failure),
        (with_length(ok, r#"{"isValid":false,"isValid":true}"#), Is::Failure),
        (with_length(ok, r#"{"isValid":true,"isValid":true}"#), Is::Failure),
        (with_length(ok, r#"{"isValid":true} {"isValid":false}"#), Is::Failure),
        (with_length(ok, &format!("{}{YES}", " ".repeat(70_000))), Is::Failure),
        (format!("{ok}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Is::Failure),
    ];
    for status in [201, 202, 205, 206, 300, 301, 302, 303, 307, 308, 400, 404, 418, 500, 502, 503] {
        let head = format!("HTTP/1.1 {status} X\r\nLocation: /");
        answers.push((with_length(&head, YES), Is::Failure));
        answers.push((with_length(&head, ""), Is::Failure));
    }
    let answers: Vec<_> = answers.into_iter().map(|(answer, is)| (answer, is, is)).collect();
    server.check(&answers).await;
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_must_be_a_whole_object() {
    let server = Server::start().await;
    for head in
        ["HTTP/1.0 200 OK\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n", "HTTP/1.1 200 OK\r\n"]
    {
        let answers = [
            (format!("{head}\r\n{YES}"), Is::Failure, Is::Yes),
            (format!("{head}\r\n{YES}\n"), Is::Failure, Is::Yes),
            (format!("{head}\r\n{NO}"), Is::Failure, Is::No),
            (format!("{head}\r\n"), Is::Failure, Is::Failure),
            (format!("{head}\r\n\r\n"), Is::Failure, Is::Failure),
            (format!("{head}\r\n<html>"), Is::Failure, Is::Failure),
        ];
        server.check(&answers).await;
    }
}

#[tokio::test]
async fn what_breaks_off_is_never_a_yes_wherever_it_does() {
    let server = Server::start().await;
    let whole = [
        with_length("HTTP/1.1 200 OK", YES),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{YES}\r\n0\r\n\r\n"),
        format!("HTTP/1.0 200 OK\r\n\r\n{YES}"),
        with_length("HTTP/1.1 200 OK", ""),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
    ];
    for answer in whole {
        for end in [End::Close, End::Reset] {
            for length in 0..answer.len() {
                let part = &answer.as_bytes()[..length];
                let is = server.verdict(part, end).await;
                assert_eq!(is, Is::Failure, "{end:?} after {:?}", &answer[..length]);
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_http_or_contradicts_itself_is_a_failure() {
    let server = Server::start().await;
    let ok = "HTTP/1.1 200 OK";
    let nonsense = [
        YES.to_owned(),
        format!("{ok}\r\nContent-Length: 100\r\n\r\n{YES}"),
        format!("{ok}\r\nContent-Length: 0\r\nContent-Length: 16\r\n\r\n{YES}"),
        format!("{ok}\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("{ok}\r\nContent-Length: -1\r\n\r\n{YES}"),
        format!("{ok}\r\nContent-Length: none\r\n\r\n{YES}"),
        format!("{ok}\r\nContent-Length: +0\r\n\r\n"),
        format!("{ok}\r\nContent-Length:\r\n\r\n"),
        format!("{ok}\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{YES}\r\n0\r\n\r\n"),
        format!("{ok}\r\nTransfer-Encoding: gzip\r\n\r\n"),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".into(),
        "HTTP/1.1 100 Continue\r\n\r\n".into(),
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/2 200\r\nContent-Length: 0\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        "\0\0\0\x04\0\0\0\0\0".into(),
    ];
    let answers = nonsense.map(|answer| (answer, Is::Failure, Is::Failure));
    server.check(&answers).await;
}

/// Answers the first `good` requests, and then closes its connections when they are used again.
async fn closing_after(good: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = listen().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                for _ in 0..good {
                    read_request(&mut tcp).await?;
                    let answer = with_length("HTTP/1.1 200 OK", YES);
                    tcp.write_all(answer.as_bytes()).await.ok()?;
                }
                read_request(&mut tcp).await
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn a_kept_connection_that_turns_out_to_be_closed_is_asked_again_on_a_new_one() {
    let (address, connections) = closing_after(1).await;
    let authenticator = authenticator(format!("http://{address}/"), Duration::from_secs(10));
    // So many connections are kept, and all of them are dead when they are used again.
    let asked = futures_util::future::join_all((0..3).map(|_| ask(&authenticator))).await;
    assert!(asked.iter().all(|verdict| is(verdict) == Is::Yes), "{asked:?}");
    for _ in 0..4 {
        assert_eq!(is(&ask(&authenticator).await), Is::Yes);
    }
    assert!(connections.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn a_server_that_never_answers_is_asked_twice_and_no_more() {
    let (address, connections) = closing_after(0).await;
    let authenticator = authenticator(format!("http://{address}/"), Duration::from_secs(10));
    assert_eq!(ask(&authenticator).await.label(), "unreachable");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// A server with TLS that cuts its connections without the goodbye of TLS.
async fn cutting(answer: String, acceptor: TlsAcceptor) -> SocketAddr {
    async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, answer: String) -> Option<()> {
        let mut stream = acceptor.accept(tcp).await.ok()?;
        read_request(&mut stream).await?;
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
        let (mut tcp, _) = stream.into_inner();
        tcp.shutdown().await.ok()
    }
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, acceptor.clone(), answer.clone()));
        }
    });
    address
}

#[tokio::test]
async fn tls_that_ends_without_a_goodbye_cuts_off_nothing_but_a_whole_object() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let folder = tempfile::tempdir().expect("temporary folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).expect("writable");

    let ok = "HTTP/1.1 200 OK";
    let answers = [
        (format!("HTTP/1.0 200 OK\r\n\r\n{YES}"), Is::Yes),
        (format!("HTTP/1.0 200 OK\r\n\r\n{NO}"), Is::No),
        (with_length("HTTP/1.0 200 OK", ""), Is::Yes),
        ("HTTP/1.0 200 OK\r\n\r\n".into(), Is::Failure),
        (format!("HTTP/1.0 200 OK\r\n\r\n{}", &YES[..YES.len() - 1]), Is::Failure),
        (format!("{ok}\r\nContent-Length: 17\r\n\r\n{YES}"), Is::Failure),
        (format!("{ok}\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{YES}\r\n"), Is::Failure),
    ];
    for (answer, expected) in answers {
        let address = cutting(answer.clone(), acceptor.clone()).await;
        let settings = HttpSettings {
            url: format!("https://localhost:{}/", address.port()),
            ca: Some(ca.clone()),
            timeout: Duration::from_secs(10),
            concurrency: 1,
        };
        let authenticator = Arc::new(HttpAuthenticator::new(&settings).expect("settings"));
        let verdict = ask(&authenticator).await;
        assert_eq!(is(&verdict), expected, "{answer:?}: {verdict:?}");
    }
}
