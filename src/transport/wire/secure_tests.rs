//! The server's end of TLS beside the client's of tokio-rustls.

use std::future::poll_fn;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::STAGE;
use super::*;

type Client = TlsStream<DuplexStream>;

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a pair");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), TlsConnector::from(Arc::new(client)))
}

/// Both ends of a connection that takes so many bytes at once.
async fn pair(
    version: &'static SupportedProtocolVersion,
    at_once: usize,
) -> (Secure<DuplexStream>, Client) {
    let (config, connector) = configs(version);
    let (here, there) = duplex(at_once);
    let name = ServerName::try_from("localhost").expect("a name");
    let (server, client) =
        tokio::join!(Secure::accept(here, config), connector.connect(name, there));
    (server.expect("a handshake"), client.expect("a handshake"))
}

/// Sends everything back until the end, which it answers.
async fn echo(mut wire: Secure<DuplexStream>) -> io::Result<()> {
    let mut inbox = BytesMut::new();
    loop {
        let filled = poll_fn(|cx| {
            match wire.poll_drain(cx) {
                Poll::Pending if wire.staged() >= STAGE => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending | Poll::Ready(Ok(())) => {}
            }
            wire.poll_fill(cx, &mut inbox)
        });
        if filled.await? == 0 {
            break;
        }
        wire.stage(&inbox);
        inbox.clear();
    }
    poll_fn(|cx| wire.poll_shutdown(cx)).await
}

async fn send(mut client: WriteHalf<Client>, data: &[u8], size: usize) {
    for part in data.chunks(size) {
        client.write_all(part).await.expect("sent");
        client.flush().await.expect("sent");
    }
    client.shutdown().await.expect("a goodbye");
}

async fn receive(mut client: ReadHalf<Client>) -> Vec<u8> {
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("an end in order");
    received
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index * 31 % 251).expect("it is less")).collect()
}

#[tokio::test]
async fn all_bytes_come_through_in_order_whatever_their_pieces() {
    for version in [&TLS13, &TLS12] {
        // Handshakes in pieces of 7 bytes, and a megabyte in records of all sizes.
        for (at_once, length, size) in [
            (7, 3000, 100),
            (1000, 100_000, 1),
            (100_000, 1 << 20, 40_000),
            (1 << 20, 1 << 20, 16_384),
        ] {
            let (server, client) = pair(version, at_once).await;
            assert_eq!(
                server.version(),
                if version.version == TLS13.version { "1.3" } else { "1.2" }
            );
            let data = pattern(length);
            let (reader, writer) = split(client);
            let (echoed, (), received) =
                tokio::join!(echo(server), send(writer, &data, size), receive(reader));
            echoed.expect("an end in order");
            assert!(received == data, "{at_once}, {length}, {size}");
        }
    }
}

#[tokio::test]
async fn new_keys_are_taken_and_answered() {
    let (server, mut client) = pair(&TLS13, 4096).await;
    let echoing = tokio::spawn(echo(server));
    for round in 0..5_u8 {
        client.get_mut().1.refresh_traffic_keys().expect("TLS 1.3");
        let data = vec![round; 20_000];
        client.write_all(&data).await.expect("sent");
        client.flush().await.expect("sent");
        let mut received = vec![0; data.len()];
        client.read_exact(&mut received).await.expect("sent back");
        assert_eq!(received, data);
    }
    client.shutdown().await.expect("a goodbye");
    echoing.await.expect("no panic").expect("an end in order");
}

#[tokio::test]
async fn a_connection_that_is_cut_is_no_end_in_order() {
    let (mut server, client) = pair(&TLS13, 4096).await;
    drop(client);
    let mut inbox = BytesMut::new();
    let end = poll_fn(|cx| server.poll_fill(cx, &mut inbox)).await;
    assert_eq!(end.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn nonsense_is_refused_with_an_alert() {
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0, 4, 9, 0, 0, 0]] {
        let (config, _) = configs(&TLS13);
        let (here, mut there) = duplex(4096);
        there.write_all(nonsense).await.expect("sent");
        let refused = Secure::accept(here, config).await.err().expect("no handshake");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let mut alert = Vec::new();
        there.read_to_end(&mut alert).await.expect("an alert");
        assert_eq!(alert.first(), Some(&0x15), "{alert:x?}");
    }
}

#[tokio::test]
async fn a_record_that_was_changed_ends_the_connection() {
    let (mut server, mut client) = pair(&TLS13, 4096).await;
    // Injected below TLS, as an attacker would.
    client.get_mut().0.write_all(&[0x17, 3, 3, 0, 20]).await.expect("sent");
    client.get_mut().0.write_all(&[7; 20]).await.expect("sent");
    let mut inbox = BytesMut::new();
    let end = poll_fn(|cx| server.poll_fill(cx, &mut inbox)).await;
    assert_eq!(end.expect_err("changed").kind(), io::ErrorKind::InvalidData);
    server.stage(b"never sent");
    poll_fn(|cx| server.poll_drain(cx)).await.expect_err("broken");
    let heard = client.read_u8().await.expect_err("an alert");
    assert!(heard.to_string().contains("BadRecordMac"), "{heard}");
}

#[tokio::test]
async fn an_idle_connection_keeps_no_block() {
    let (mut server, mut client) = pair(&TLS13, 1 << 20).await;
    client.write_all(&pattern(100_000)).await.expect("sent");
    client.flush().await.expect("sent");
    let (mut inbox, mut received) = (BytesMut::new(), 0);
    while received < 100_000 {
        received += poll_fn(|cx| server.poll_fill(cx, &mut inbox)).await.expect("data");
        server.stage(&inbox);
        inbox.clear();
        poll_fn(|cx| server.poll_drain(cx)).await.expect("there is room");
    }
    let nothing = futures_util::poll!(poll_fn(|cx| server.poll_fill(cx, &mut inbox)));
    assert!(nothing.is_pending());
    for queue in [&server.incoming, &server.record, &server.outgoing] {
        assert!(!queue.has_block(), "{queue:?}");
    }
}
