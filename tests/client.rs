//! The client library against real nodes, and against servers that are no nodes.

mod support;

use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::client::{ConnectError, Connector, Message, Tunnel, TunnelError};
use nymea_remoteproxy::node::Node;
use nymea_remoteproxy::protocol::Token;
use support::{Endpoint, node, node_with, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpListener;
use uuid::Uuid;

fn connector(node: &Node) -> Connector {
    let fingerprint = node.fingerprint().expect("TLS is on");
    let connector = Connector::new(&node.url()).expect("valid");
    connector.fingerprint(&fingerprint).expect("valid")
}

async fn open(connector: &Connector, token: &str) -> Result<Tunnel, ConnectError> {
    soon("a tunnel", async { connector.connect(&Token::new(token), None).await?.partner().await })
        .await
}

async fn refusal(connector: &Connector) -> ConnectError {
    open(connector, "secret").await.expect_err("no tunnel")
}

async fn pair(node: &Node) -> (Tunnel, Tunnel) {
    let connector = connector(node);
    let (a, b) = tokio::join!(open(&connector, "t"), open(&connector, "t"));
    (a.expect("a tunnel"), b.expect("a tunnel"))
}

/// Starts a server that answers any input with these bytes; returns its URL without the scheme.
async fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = tcp.read(&mut [0; 4096]).await;
                let _ = tcp.write_all(answer).await;
                // Until the client has read it and leaves.
                if !answer.is_empty() {
                    let _ = tcp.shutdown().await;
                }
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    format!("://{address}")
}

fn tunnel_error(error: &io::Error) -> &TunnelError {
    error.get_ref().and_then(|source| source.downcast_ref()).expect("a typed source")
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_is_an_end() {
    let node = node();
    let (a, b) = soon("both", async {
        let uuid = Uuid::new_v4();
        let (first, second) = (connector(&node).name("a").uuid(uuid), connector(&node).name("b"));
        let (a, b) = tokio::join!(open(&first, "t"), open(&second, "t"));
        assert_eq!(b.as_ref().expect("a tunnel").other().uuid, uuid.to_string());
        (a.expect("a tunnel"), b.expect("a tunnel"))
    })
    .await;
    assert_eq!((&*a.other().name, &*b.other().name), ("b", "a"));
    let (mut a, mut b) = (a, b);

    let data = pattern(1, 1_000_000);
    let (sent, received) = soon("the way there", async {
        let sending = async {
            a.write_all(&data).await?;
            AsyncWriteExt::flush(&mut a).await
        };
        let mut received = vec![0; data.len()];
        let receiving = async { b.read_exact(&mut received).await.map(|_| ()) };
        let (sent, end) = tokio::join!(sending, receiving);
        (sent.and(end), received)
    })
    .await;
    sent.expect("sent and received");
    assert!(received == data);

    b.write_all(b"answer").await.expect("sent");
    let (closed, rest) = soon("the end", async {
        let mut rest = Vec::new();
        let reading = a.read_to_end(&mut rest);
        let (closed, read) = tokio::join!(b.shutdown(), reading);
        (closed.and(read.map(|_| ())), rest)
    })
    .await;
    closed.expect("a normal end for both");
    assert_eq!(rest, b"answer");
    assert!(b.is_delivered());
    let error = soon("an error", a.write_all(b"late")).await.expect_err("the other left");
    assert!(matches!(tunnel_error(&error), TunnelError::OtherLeft));
}

#[tokio::test]
async fn messages_keep_their_kind_and_boundaries() {
    let (mut a, mut b) = pair(&node()).await;
    let messages = [
        Message::Text("Grüße".into()),
        Message::Binary(vec![0xff, 0].into()),
        Message::Text(String::new()),
        Message::Binary(pattern(2, 300_000).into()),
    ];
    for message in &messages {
        let (sent, received) =
            soon("a message", async { tokio::join!(a.send(message.clone()), b.next()) }).await;
        sent.expect("sent");
        assert!(received.expect("no end").expect("no error") == *message);
    }
    let (closed, end) =
        soon("the end", async { tokio::join!(SinkExt::close(&mut a), b.next()) }).await;
    closed.expect("closed");
    assert!(end.is_none());
}

#[tokio::test]
async fn both_may_write_without_end_at_the_same_time() {
    let (a, b) = pair(&node()).await;
    let data = pattern(3, 20 << 20);
    let run = |tunnel: Tunnel| {
        let data = data.clone();
        // Split over two tasks: both must be woken.
        let (mut reader, mut writer) = split(tunnel);
        let reading = tokio::spawn(async move {
            let mut received = vec![0; 20 << 20];
            reader.read_exact(&mut received).await.expect("received");
            (reader, received)
        });
        tokio::spawn(async move {
            writer.write_all(&data).await.expect("sent");
            writer.flush().await.expect("sent");
            let (reader, received) = reading.await.expect("no panic");
            (reader.unsplit(writer), received)
        })
    };
    let (a, b) = (run(a), run(b));
    let (a, b) = soon("everything", async { tokio::join!(a, b) }).await;
    for result in [a, b] {
        assert!(result.expect("no panic").1 == data);
    }
}

#[tokio::test]
async fn shutdown_waits_until_the_other_has_made_room() {
    let (mut a, mut b) = pair(&node()).await;
    let data = pattern(4, 8 << 20);
    let mut received = Vec::new();
    soon("the transfer", async {
        let sending = async {
            a.write_all(&data).await?;
            a.shutdown().await
        };
        let (sent, read) = tokio::join!(sending, b.read_to_end(&mut received));
        sent.expect("confirmed");
        read.expect("a normal end");
    })
    .await;
    assert!(received == data);
}

#[tokio::test]
async fn pings_are_answered_while_nobody_reads() {
    let node = node_with(|config| config.keepalive.interval = Duration::from_millis(50));
    let (mut a, mut b) = pair(&node).await;
    a.write_all(b"early").await.expect("sent");
    // Unanswered pings would end it after three intervals.
    let idle = async { tokio::join!(a.ended(), b.ended()) };
    assert!(tokio::time::timeout(Duration::from_millis(500), idle).await.is_err());
    let mut early = [0; 5];
    soon("the data", b.read_exact(&mut early)).await.expect("kept");
    assert_eq!(&early, b"early");
}

#[tokio::test]
async fn a_cut_does_not_look_like_an_end() {
    let (a, mut b) = pair(&node()).await;
    drop(a);
    let error = soon("an error", b.read_to_end(&mut Vec::new())).await.expect_err("cut");
    assert!(matches!(tunnel_error(&error), TunnelError::OtherLost), "{error:?}");
    let error = soon("an error", b.shutdown()).await.expect_err("cut");
    assert!(matches!(tunnel_error(&error), TunnelError::OtherLost), "{error:?}");
}

#[tokio::test]
async fn generation_1_meets_generation_2() {
    let node = node();
    let (first, second) = (connector(&node).anonymous(), connector(&node).name("two"));
    let (one, two) = tokio::join!(open(&first, "t"), open(&second, "t"));
    let (mut one, mut two) = (one.expect("a tunnel"), two.expect("a tunnel"));
    assert_eq!((&*one.other().name, &*two.other().name), ("", ""));
    one.write_all(b"x").await.expect("sent");
    assert_eq!(soon("a byte", two.read_u8()).await.expect("received"), b'x');
}

#[tokio::test]
async fn nonces_tell_tunnels_apart() {
    let node = node_with(|config| config.timeouts.waiting = Duration::from_millis(300));
    let connector = connector(&node);
    let token = Token::new("t");
    let (a, b) = soon("both", async {
        let a = connector.connect(&token, Some("1")).await.expect("authenticated");
        let b = connector.connect(&token, Some("2")).await.expect("authenticated");
        tokio::join!(a.partner(), b.partner())
    })
    .await;
    assert!(matches!(a, Err(ConnectError::NobodyCame)), "{a:?}");
    assert!(matches!(b, Err(ConnectError::NobodyCame)), "{b:?}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let node = node();
    let connector = connector(&node);
    let nobody = connector.clone().waiting_timeout(Duration::from_millis(50));
    assert!(matches!(refusal(&nobody).await, ConnectError::NobodyCame));

    let alike = connector.clone().uuid(Uuid::new_v4());
    let (a, b) = tokio::join!(open(&alike, "loop"), open(&alike, "loop"));
    assert!(matches!(a, Err(ConnectError::Loop)), "{a:?}");
    assert!(matches!(b, Err(ConnectError::Loop)), "{b:?}");

    let standing = pair(&node).await;
    let third = open(&connector, "t").await;
    assert!(matches!(third, Err(ConnectError::Taken)), "{third:?}");

    let waiting = connector.connect(&Token::new("w"), None).await.expect("authenticated");
    let (drained, ()) = soon("drain", async {
        tokio::join!(waiting.partner(), async {
            drop(standing);
            node.drain().await;
        })
    })
    .await;
    assert!(matches!(drained, Err(ConnectError::GoingAway)), "{drained:?}");
}

#[tokio::test]
async fn the_authentication_server_decides() {
    let with = async |answer, anonymous: bool| {
        let url = format!("http{}/", server(answer).await);
        let node = node_with(|config| config.authentication.server = Some(url));
        let connector = connector(&node);
        refusal(&if anonymous { connector.anonymous() } else { connector }).await
    };
    for anonymous in [false, true] {
        let refused = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        let error = with(refused, anonymous).await;
        assert!(matches!(error, ConnectError::TokenRefused), "{error:?}");
        let error = with(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", anonymous).await;
        assert!(matches!(error, ConnectError::AuthenticationUnavailable), "{error:?}");
    }
}

#[tokio::test]
async fn certificates_are_checked() {
    let node = node();
    let connector = Connector::new(&node.url()).expect("valid");
    let wrong = connector.clone().fingerprint(&"00".repeat(32)).expect("valid");
    let ConnectError::FingerprintMismatch { found } = refusal(&wrong).await else {
        panic!("must not be trusted");
    };
    assert_eq!(Some(found), node.fingerprint());

    let files = tempfile::tempdir().expect("a directory");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let (certificate, key) = (files.path().join("c.pem"), files.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let other = connector.ca(&certificate).expect("readable");
    let error = refusal(&other).await;
    assert!(matches!(error, ConnectError::CertificateNotTrusted(_)), "{error:?}");

    let node = node_with(|config| {
        config.tls.certificate = Some(certificate.clone());
        config.tls.certificate_key = Some(key);
    });
    let trusting = Connector::new(&node.url()).expect("valid").ca(&certificate).expect("readable");
    let (a, b) = tokio::join!(open(&trusting, "t"), open(&trusting, "t"));
    assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
}

#[tokio::test]
async fn what_is_no_proxy_is_named() {
    let url = server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let error = refusal(&Connector::new(&format!("ws{url}")).expect("valid")).await;
    assert!(matches!(error, ConnectError::NotARemoteProxy(_)), "{error:?}");
    let error = refusal(&Connector::new(&format!("wss{url}")).expect("valid").insecure()).await;
    assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
    let busy = server(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    let error = refusal(&Connector::new(&format!("ws{busy}")).expect("valid")).await;
    assert!(matches!(error, ConnectError::TryAgainLater), "{error:?}");

    let silent = Connector::new(&format!("ws{}", server(b"").await)).expect("valid");
    let error = refusal(&silent.connect_timeout(Duration::from_millis(100))).await;
    assert!(matches!(error, ConnectError::Timeout(_)), "{error:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = closed.local_addr().expect("bound");
    drop(closed);
    let error = refusal(&Connector::new(&format!("ws://{address}")).expect("valid")).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn without_tls_it_works_too() {
    let node = node_with(|config| config.tls.enabled = false);
    let connector = Connector::new(&node.url()).expect("valid");
    let (a, b) = tokio::join!(open(&connector, "t"), open(&connector, "t"));
    let (mut a, mut b) = (a.expect("a tunnel"), b.expect("a tunnel"));
    a.write_all(b"x").await.expect("sent");
    assert_eq!(soon("a byte", b.read_u8()).await.expect("received"), b'x');
}

#[tokio::test]
async fn a_message_above_the_limit_is_not_sent() {
    let node = node();
    let small = connector(&node).message_limit(1000);
    let (a, b) = tokio::join!(open(&small, "t"), open(&small, "t"));
    let (mut a, mut b) = (a.expect("a tunnel"), b.expect("a tunnel"));
    let error = soon("an error", a.send(Message::Binary(vec![0; 1001].into()))).await;
    assert!(matches!(error, Err(TunnelError::MessageTooLarge)), "{error:?}");
    soon("sending", a.send(Message::Binary(vec![0; 1000].into()))).await.expect("sent");
    let message = soon("a message", b.next()).await.expect("no end").expect("no error");
    assert_eq!(message.len(), 1000);
}

#[tokio::test]
async fn a_bare_websocket_is_a_partner_like_any_other() {
    let node = node();
    let connector = connector(&node);
    let mut bare = Endpoint::waiting(&node, "t").await;
    let mut tunnel = open(&connector, "t").await.expect("a tunnel");
    bare.established().await;
    bare.send(tokio_tungstenite::tungstenite::Message::text("hello")).await;
    let mut hello = [0; 5];
    soon("the text", tunnel.read_exact(&mut hello)).await.expect("received");
    assert_eq!(&hello, b"hello");
    let (closed, code) = tokio::join!(soon("the close", tunnel.shutdown()), bare.close_code());
    closed.expect("a normal end");
    assert_eq!(code, 1000);
}

#[tokio::test]
async fn who_has_nothing_to_deliver_may_be_left() {
    let node = node();
    for _ in 0..20 {
        let (mut receiver, mut sender) = pair(&node).await;
        sender.write_all(b"x").await.expect("open");
        let leaving = tokio::spawn(async move { sender.shutdown().await });
        let mut byte = [0];
        soon("the byte", receiver.read_exact(&mut byte)).await.expect("open");
        // The close frame arrives during this flush, or just before.
        let flush = AsyncWriteExt::flush(&mut receiver);
        soon("flushing nothing", flush).await.expect("nothing is missing");
        soon("the goodbye", receiver.read_to_end(&mut Vec::new())).await.expect("in order");
        soon("leaving", leaving).await.expect("no panic").expect("delivered");
    }
}
