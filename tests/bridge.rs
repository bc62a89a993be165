//! Who gets through a bridge: only a node with a certificate of the cluster's CA that knows the
//! secret of the offer. And what the nodes tell Redis, which is none of the endpoints' secrets.

mod support;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use hyper_util::rt::TokioIo;
use nymea_remoteproxy::node::Node;
use nymea_remoteproxy_proto::bridge::v1::bridge_client::BridgeClient;
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::refused::Reason;
use nymea_remoteproxy_proto::bridge::v1::{Attach, Data, Frame, Profile, Refused, close};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use support::cluster::{Certificates, Cluster};
use support::redis::until;
use support::{Endpoint, soon};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::Status;
use tonic::transport::{Channel, Endpoint as Peer};
use uuid::Uuid;

/// Certificate and key in files.
type Pair<'a> = (&'a Path, &'a Path);

fn connector(ca: &Path, pair: Option<Pair<'_>>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a CA")).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match pair {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate).expect("a certificate")],
                PrivateKeyDer::from_pem_file(key).expect("a key"),
            )
            .expect("a pair"),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn secured(connector: TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("localhost").expect("a name"), tcp).await
}

/// Does not say a word of gRPC before the other end has taken the certificate.
async fn connect(node: &Node, ca: &Path, pair: Option<Pair<'_>>) -> Result<Channel, String> {
    let (connector, address) = (connector(ca, pair), node.bridge_addr().expect("a bridge"));
    let dial = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move { secured(connector, address).await.map(TokioIo::new) }
    });
    let peer = Peer::from_static("http://node");
    soon("a connection", peer.connect_with_connector(dial))
        .await
        .map_err(|error| format!("{error:?}"))
}

/// What a node answers to this as the first frame.
async fn call(channel: Channel, first: Content) -> Result<Content, Status> {
    let first = Frame { content: Some(first) };
    // Goes on, as that of a node that waits for the answer.
    let outgoing = stream::iter([first]).chain(stream::pending());
    let mut client = BridgeClient::new(channel);
    let mut incoming = soon("a stream", client.tunnel(outgoing)).await?.into_inner();
    let answer = soon("an answer", incoming.message()).await?.expect("a frame");
    Ok(answer.content.expect("content"))
}

async fn refusal(channel: &Channel, attach: &Attach) -> Refused {
    match call(channel.clone(), Content::Attach(attach.clone())).await.expect("an answer") {
        Content::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

/// What the node that has claimed the only entry would say.
async fn claim(cluster: &Cluster) -> Attach {
    until("the entry", async || cluster.redis.pairs().await.len() == 1).await;
    let pair = cluster.redis.pairs().await.remove(0);
    let offer: String = cluster.redis.ask(&["HGET", &pair, "offer"]).await;
    let offer: Uuid = offer.parse().expect("an id");
    let secret: String = cluster.redis.ask(&["HGET", &pair, "secret"]).await;
    let secret = u128::from_str_radix(&secret, 16).expect("hex");
    Attach {
        version: 1,
        offer: offer.as_bytes().to_vec().into(),
        secret: secret.to_be_bytes().to_vec().into(),
        node: "elsewhere".into(),
        profile: Some(Profile { generation: 2, uuid: "u2".into(), name: "by hand".into() }),
        app: None,
        finished: false,
        meant: String::new(),
    }
}

#[tokio::test]
async fn without_a_certificate_of_the_cluster_nobody_gets_through() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut waiting = Endpoint::waiting(a, "t").await;
    let attach = claim(&cluster).await;
    let ca = cluster.certificates.ca();
    let others = Certificates::new();
    let (certificate, key) = others.issue("node1");
    for pair in [None, Some((&*certificate, &*key))] {
        // With TLS 1.3 the client does not know yet that it is refused when it is connected.
        if let Ok(channel) = connect(a, &ca, pair).await {
            let status = call(channel, Content::Attach(attach.clone())).await.expect_err("refused");
            let source = std::error::Error::source(&status);
            assert!(source.is_some(), "not an answer, but the end of the connection: {status:?}");
        }
    }
    let mut partner = Endpoint::waiting(b, "t").await;
    waiting.established().await;
    partner.established().await;
}

#[tokio::test]
async fn without_the_secret_of_the_offer_nobody_gets_its_endpoint() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut waiting = Endpoint::connect(a).await;
    waiting.authenticate(r#""token":"t","uuid":"u1","name":"waiting""#).await;
    let right = claim(&cluster).await;
    let ca = cluster.certificates.ca();
    let (certificate, key) = cluster.certificates.issue("visitor");
    let channel = connect(a, &ca, Some((&certificate, &key))).await.expect("a connection");
    for wrong in [vec![0; 16], vec![], right.secret[..15].to_vec()] {
        let attach = Attach { secret: wrong.into(), ..right.clone() };
        assert_eq!(refusal(&channel, &attach).await.reason(), Reason::Denied);
    }
    let nobody = Attach { profile: None, ..right.clone() };
    assert_eq!(refusal(&channel, &nobody).await.reason(), Reason::Denied);
    let other = Attach { offer: vec![7; 16].into(), ..right.clone() };
    assert_eq!(refusal(&channel, &other).await.reason(), Reason::Gone);
    let newer = refusal(&channel, &Attach { version: 2, ..right.clone() }).await;
    assert_eq!((newer.reason(), newer.version), (Reason::Version, 1));
    let data = Data { text: true, last: true, payload: "hello".into(), stream: false };
    let rude = call(channel.clone(), Content::Data(data)).await.expect_err("refused");
    assert_eq!(rude.code(), tonic::Code::InvalidArgument);

    let mut partner = Endpoint::waiting(b, "t").await;
    waiting.established().await;
    partner.established().await;
    partner.send(Message::text("hello")).await;
    assert_eq!(waiting.text().await, "hello");
    // Good for one tunnel.
    assert_eq!(refusal(&channel, &right).await.reason(), Reason::Taken);
    waiting.send(Message::text("hello")).await;
    assert_eq!(partner.text().await, "hello");
    drop((waiting, partner));
    cluster.is_clean().await;
    assert_eq!(refusal(&channel, &right).await.reason(), Reason::Gone);

    let mut waiting = Endpoint::connect(a).await;
    waiting.authenticate(r#""token":"t","uuid":"u1","name":"waiting""#).await;
    let right = claim(&cluster).await;
    // That it was not for the certificate: with the secret, it is let through.
    let attached = call(channel, Content::Attach(right)).await.expect("an answer");
    let Content::Attached(attached) = attached else { panic!("{attached:?}") };
    assert_eq!(attached.profile.expect("a profile").name, "waiting");
    assert_eq!(waiting.established().await["params"]["name"], "by hand");
}

#[tokio::test]
async fn a_tunnel_is_a_call_of_grpc_to_others_too() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut waiting = Endpoint::connect(node).await;
    waiting.authenticate(r#""token":"t","uuid":"u1","name":"waiting""#).await;
    let attach = claim(&cluster).await;
    let (certificate, key) = cluster.certificates.issue("visitor");
    let ca = cluster.certificates.ca();
    let channel = connect(node, &ca, Some((&certificate, &key))).await.expect("a connection");
    #[expect(clippy::disallowed_methods, reason = "the test sends a handful of frames")]
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    let said = stream::unfold(said, async |mut said| Some((said.recv().await?, said)));
    let say = |content| say.send(Frame { content: Some(content) }).expect("it listens");
    say(Content::Attach(attach));
    let mut client = BridgeClient::new(channel);
    let answers = soon("a stream", client.tunnel(said)).await.expect("a stream");
    let mut answers = answers.into_inner();
    let mut next = async || soon("a frame", answers.message()).await.expect("a frame");
    let attached = next().await.and_then(|frame| frame.content);
    assert!(matches!(attached, Some(Content::Attached(_))), "{attached:?}");
    waiting.established().await;

    let messages = [0, 10, 5000, 70_000, 300_000].map(|size| "x".repeat(size));
    for message in &messages {
        waiting.send(Message::text(message)).await;
        let (mut heard, mut is_last) = (Vec::new(), false);
        while !is_last {
            let data = next().await.and_then(|frame| frame.content);
            let Some(Content::Data(data)) = data else { panic!("{data:?}") };
            assert!(data.text && data.payload.len() <= 64 * 1024);
            heard.extend_from_slice(&data.payload);
            is_last = data.last;
        }
        assert!(heard == message.as_bytes(), "{} bytes of {}", heard.len(), message.len());
        // Cut differently, and with an empty part.
        let parts = message.as_bytes().chunks(50_000).map(Bytes::copy_from_slice);
        for payload in parts.chain([Bytes::new()]) {
            let last = payload.is_empty();
            say(Content::Data(Data { text: true, last, payload, stream: false }));
        }
        assert!(waiting.text().await == *message, "{} bytes", message.len());
    }

    waiting.send(Message::Close(None)).await;
    let close = next().await.and_then(|frame| frame.content);
    let Some(Content::Close(close)) = close else { panic!("{close:?}") };
    assert_eq!(close.reason(), close::Reason::Left);
    // The status of the call says that all is well.
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_said_is_left() {
    let cluster = Cluster::start(1).await;
    let (certificate, key) = cluster.certificates.issue("silent");
    let connector = connector(&cluster.certificates.ca(), Some((&certificate, &key)));
    let address = cluster.nodes[0].bridge_addr().expect("a bridge");
    let mut connection = secured(connector, address).await.expect("a connection");
    let mut said = Vec::new();
    // Whether it ends in good order is all the same.
    let _ended = soon("the end", connection.read_to_end(&mut said)).await;
}

/// A tunnel across nodes from its first connection to its end.
async fn tunnel(nodes: [&Node; 2], token: &str) {
    let mut endpoints = Vec::new();
    for (number, node) in nodes.into_iter().enumerate() {
        let mut endpoint = Endpoint::connect(node).await;
        let uuid = format!(r#""uuid":"u{number}","name":"n","nonce":"noncense""#);
        endpoint.authenticate(&format!(r#""token":"{token}",{uuid}"#)).await;
        endpoints.push(endpoint);
    }
    let [first, second] = &mut endpoints[..] else { panic!("two endpoints") };
    first.established().await;
    second.established().await;
    first.send(Message::text("payload")).await;
    assert_eq!(second.text().await, "payload");
    first.send(Message::Close(None)).await;
    second.closed_with(1000).await;
}

#[tokio::test]
async fn redis_sees_no_secret_and_few_commands() {
    const TUNNELS: usize = 20;
    let cluster = Cluster::start(3).await;
    let nodes = |number| [0, 1].map(|add| &cluster.nodes[(number + add) % 3]);
    for number in 0..3 {
        // Has each node load its scripts.
        tunnel(nodes(number), "first").await;
    }
    cluster.is_clean().await;
    let client = redis::Client::open(cluster.redis.url()).expect("a URL");
    let monitor = client.get_async_monitor().await.expect("monitor");
    let mut seen = monitor.into_on_message::<String>();
    for number in 0..TUNNELS {
        tunnel(nodes(number), &format!("token-{number}")).await;
    }
    cluster.is_clean().await;
    cluster.redis.ask::<()>(&["SET", "the", "end"]).await;
    let mut commands = Vec::new();
    loop {
        let line = soon("a command", seen.next()).await.expect("a command");
        for secret in ["token-", "noncense", "payload"] {
            assert!(!line.contains(secret), "{line}");
        }
        if line.contains(r#""the" "end""#) {
            break;
        }
        let is_lease = line.contains(r#""EVALSHA""#) && line.contains(":node:");
        // What a script does is no command of its own, and this test looks for keys that are left.
        let is_other = [" lua]", r#""KEYS""#, r#""CLIENT""#].iter().any(|it| line.contains(it));
        if !is_lease && !is_other {
            commands.push(line);
        }
    }
    assert!(commands.len() > 2 * TUNNELS, "{commands:#?}");
    assert!(commands.len() <= 4 * TUNNELS, "{}: {commands:#?}", commands.len());
}
