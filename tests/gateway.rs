//! The client library as gateway and app, against real nodes, on all transports.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nymea_remoteproxy::client::{
    App, AppStream, Apps, Attachment, ConnectError, Connector, Gateway, TunnelError,
};
use nymea_remoteproxy::config::{Config, Listen, TokenFor};
use nymea_remoteproxy::node::{LocalAddr, Node};
use nymea_remoteproxy::protocol::Token;
use support::{FREE, node_with, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use uuid::Uuid;

/// WebSocket or not, with TLS or not.
const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

/// A node with a listener of each kind at these addresses.
fn node_on(addresses: [SocketAddr; 4], change: impl FnOnce(&mut Config)) -> Node {
    let listen = |((websocket, tls), address)| {
        if websocket { Listen::WebSocket { address, tls } } else { Listen::Tcp { address, tls } }
    };
    node_with(|config| {
        config.listen = KINDS.into_iter().zip(addresses).map(listen).collect();
        change(config);
    })
}

fn node() -> Node {
    node_on([FREE; 4], |_| {})
}

/// How to reach each listener of the node.
fn connectors(node: &Node) -> Vec<Connector> {
    let urls = node.addresses().iter().map(LocalAddr::url);
    urls.map(|url| Connector::new(&url).expect("valid").insecure()).collect()
}

async fn register(connector: &Connector, uuid: Uuid) -> Apps {
    let gateway = Gateway::new(connector.clone().name("gateway"), uuid);
    soon("a registration", gateway.register()).await.expect("registered")
}

async fn attach(connector: &Connector, gateway: Uuid) -> Attachment {
    soon("an attachment", App::new(connector.clone(), gateway).attach()).await.expect("attached")
}

async fn accept(apps: &mut Apps) -> AppStream {
    soon("an app", apps.accept()).await.expect("an app")
}

fn tunnel_error(error: &std::io::Error) -> &TunnelError {
    error.get_ref().and_then(|source| source.downcast_ref()).expect("a typed source")
}

#[tokio::test]
async fn every_byte_arrives_both_ways_on_every_pair_of_transports() {
    let node = node();
    for of_gateway in connectors(&node) {
        let uuid = Uuid::new_v4();
        let mut apps = register(&of_gateway, uuid).await;
        for of_app in connectors(&node) {
            let app_uuid = Uuid::new_v4();
            let mut app = attach(&of_app.name("an app").uuid(app_uuid), uuid).await;
            let mut stream = accept(&mut apps).await;
            assert_eq!(stream.info().name, "an app");
            assert_eq!(stream.info().uuid, format!("{{{app_uuid}}}"));
            assert!(stream.info().peer_address.starts_with("127.0.0.1"));

            let (up, down) = (pattern(1, 300_000), pattern(2, 300_000));
            let (mut sum_up, mut sum_down) = (vec![0; up.len()], vec![0; down.len()]);
            soon("all bytes", async {
                let (mut from_app, mut to_app) = split(&mut stream);
                let (mut from_gateway, mut to_gateway) = split(&mut app);
                tokio::try_join!(
                    to_gateway.write_all(&up),
                    from_app.read_exact(&mut sum_up),
                    to_app.write_all(&down),
                    from_gateway.read_exact(&mut sum_down),
                )
            })
            .await
            .expect("sent and received");
            assert!(sum_up == up && sum_down == down);

            stream.write_all(b"the last").await.expect("sent");
            soon("the end", stream.shutdown()).await.expect("shut down");
            let mut rest = Vec::new();
            soon("the end", app.read_to_end(&mut rest)).await.expect("a normal end");
            assert_eq!(rest, b"the last");
            let error = stream.write_all(b"x").await.expect_err("shut down");
            assert!(matches!(tunnel_error(&error), TunnelError::SentAfterClose));
            assert_eq!(soon("the end", stream.read(&mut [0])).await.expect("a normal end"), 0);
        }
    }
}

#[tokio::test]
async fn an_app_that_leaves_is_an_end_behind_its_data() {
    let node = node();
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let mut apps = register(&connector, uuid).await;
        let mut app = attach(&connector, uuid).await;
        let mut stream = accept(&mut apps).await;
        app.write_all(b"goodbye").await.expect("sent");
        app.flush().await.expect("sent");
        // Reading moves a WebSocket on until its close is confirmed.
        soon("the end", async {
            let mut rest = Vec::new();
            let (mut from_gateway, mut to_gateway) = split(app);
            let leaving = async {
                to_gateway.shutdown().await.expect("a normal end");
                // A stream of bytes can still receive.
                from_gateway.read_to_end(&mut Vec::new()).await
            };
            tokio::select! {
                read = stream.read_to_end(&mut rest) => drop(read.expect("an end")),
                () = async { drop(leaving.await); std::future::pending::<()>().await } => {}
            }
            assert_eq!(rest, b"goodbye");
            let error = stream.write_all(b"x").await.expect_err("it left");
            assert!(matches!(tunnel_error(&error), TunnelError::OtherLeft));
        })
        .await;
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_disconnects_its_app() {
    let node = node();
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let mut apps = register(&connector, uuid).await;
        let mut app = attach(&connector, uuid).await;
        drop(accept(&mut apps).await);
        let read = soon("the end", app.read(&mut [0])).await.expect("a normal end");
        assert_eq!(read, 0);
        // The gateway is still registered.
        let mut app = attach(&connector, uuid).await;
        let mut stream = accept(&mut apps).await;
        stream.write_all(b"x").await.expect("sent");
        soon("a byte", app.read_exact(&mut [0])).await.expect("received");
    }
}

#[tokio::test]
async fn an_app_that_is_not_read_is_given_up_and_the_others_go_on() {
    let node = node();
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let gateway = Gateway::new(connector.clone(), uuid)
            .backlog(64 * 1024)
            .stalled_timeout(Duration::from_millis(200));
        let mut apps = soon("a registration", gateway.register()).await.expect("registered");
        let stalled = attach(&connector, uuid).await;
        let mut unread = accept(&mut apps).await;
        let mut other = attach(&connector, uuid).await;
        let mut stream = accept(&mut apps).await;

        let flood = tokio::spawn(async move {
            let (data, mut nothing) = (pattern(3, 64 * 1024), [0]);
            let (mut from_gateway, mut to_gateway) = split(stalled);
            let flooding = async {
                while to_gateway.write_all(&data).await.is_ok() && to_gateway.flush().await.is_ok()
                {
                }
            };
            tokio::select! {
                () = flooding => {}
                _ = from_gateway.read(&mut nothing) => {}
            }
        });
        let data = pattern(4, 1_000_000);
        let mut sum = vec![0; data.len()];
        soon("the other app's data", async {
            let sending = async {
                other.write_all(&data).await?;
                other.flush().await
            };
            tokio::try_join!(sending, async { stream.read_exact(&mut sum).await.map(drop) })
        })
        .await
        .expect("sent and received");
        assert!(sum == data);
        soon("the stalled app to be closed", flood).await.expect("it ended");
        let mut rest = Vec::new();
        let end = soon("the end", unread.read_to_end(&mut rest)).await.expect_err("given up");
        assert!(matches!(tunnel_error(&end), TunnelError::TooSlow), "{end:?}");
        assert!(rest.len() <= 64 * 1024);
        assert!(pattern(3, 64 * 1024).starts_with(&rest));
    }
}

#[tokio::test]
async fn a_gateway_registers_again_when_its_node_is_gone() {
    for kind in 0..KINDS.len() {
        let first = node_on([FREE; 4], |config| config.drain.grace = Duration::ZERO);
        let uuid = Uuid::new_v4();
        let connector = connectors(&first).remove(kind);
        let mut apps = register(&connector, uuid).await;
        let mut app = attach(&connector, uuid).await;
        // The node waits for it to close.
        let leaving = tokio::spawn(async move { drop(app.read(&mut [0]).await) });
        let mut stream = accept(&mut apps).await;
        let addresses = first.addresses().iter().map(|address| address.ip().expect("an IP"));
        let addresses: Vec<_> = addresses.collect();
        soon("the end", first.drain()).await;
        // In order or not, it has ended.
        let _how = soon("the end", stream.read(&mut [0])).await;
        soon("the end", leaving).await.expect("it ended");
        drop(first);

        let _second = node_on(addresses.try_into().expect("one each"), |_| {});
        let app = App::new(connector.clone(), uuid);
        let mut app = soon("the gateway", async {
            loop {
                match app.attach().await {
                    Ok(app) => return app,
                    Err(ConnectError::GatewayNotFound) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
        .await;
        let mut stream = accept(&mut apps).await;
        app.write_all(b"x").await.expect("sent");
        app.flush().await.expect("sent");
        soon("a byte", stream.read_exact(&mut [0])).await.expect("received");
    }
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let node = node();
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let refusal = async |gateway: Gateway| {
            soon("an answer", gateway.register()).await.expect_err("refused")
        };
        let app = async |app: App| soon("an answer", app.attach()).await.expect_err("refused");
        let error = app(App::new(connector.clone(), uuid)).await;
        assert!(matches!(error, ConnectError::GatewayNotFound), "{error:?}");
        assert!(error.is_temporary());

        let _apps = register(&connector, uuid).await;
        let error = refusal(Gateway::new(connector.clone(), uuid)).await;
        assert!(matches!(error, ConnectError::AlreadyRegistered), "{error:?}");
        let error = app(App::new(connector.clone().uuid(uuid), uuid)).await;
        assert!(matches!(error, ConnectError::AlreadyRegistered), "{error:?}");
        let error = refusal(Gateway::new(connector.clone(), Uuid::nil())).await;
        assert!(matches!(error, ConnectError::InvalidUuid), "{error:?}");
    }
}

#[tokio::test]
async fn without_websocket_there_is_no_pairing_by_token() {
    let connector = Connector::new("tcp://127.0.0.1:1").expect("valid");
    let error = connector.connect(&Token::new("t"), None).await.expect_err("no WebSocket");
    assert!(matches!(error, ConnectError::Setup(_)), "{error:?}");
}

#[tokio::test]
async fn a_token_is_shown_where_one_is_demanded() {
    let node = node_on([FREE; 4], |config| config.tunnel_proxy.token = TokenFor::Both);
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let gateway = Gateway::new(connector.clone(), uuid);
        let error = soon("an answer", gateway.register()).await.expect_err("no token");
        let ConnectError::Rejected(words) = error else { panic!("{error:?}") };
        assert!(words.contains("'token' is missing"), "{words}");
        let gateway = gateway.token(Token::new("t"));
        let _apps = soon("an answer", gateway.register()).await.expect("registered");
        let app = App::new(connector, uuid).token(Token::new("t"));
        soon("an answer", app.attach()).await.expect("attached");
    }
}

#[tokio::test]
async fn an_app_that_takes_nothing_for_a_while_loses_nothing_and_holds_nobody_up() {
    let node = node();
    for connector in connectors(&node) {
        let uuid = Uuid::new_v4();
        let mut apps = register(&connector, uuid).await;
        let mut slow = attach(&connector, uuid).await;
        let mut to_slow = accept(&mut apps).await;
        let mut other = attach(&connector, uuid).await;
        let mut to_other = accept(&mut apps).await;

        // More than fits into what the system keeps for a connection and the node for an app.
        let data = pattern(5, 24 << 20);
        let sent = data.clone();
        let sending = tokio::spawn(async move {
            to_slow.write_all(&sent).await.expect("sent");
            to_slow.shutdown().await.expect("shut down");
        });
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            to_other.write_all(b"ping").await.expect("sent");
            soon("the other app", other.read_exact(&mut [0; 4])).await.expect("received");
        }
        assert!(!sending.is_finished(), "too little to show anything");

        let mut received = Vec::new();
        soon("all data", slow.read_to_end(&mut received)).await.expect("a normal end");
        assert!(received == data, "{} of {} bytes", received.len(), data.len());
        soon("the end", sending).await.expect("all sent");
    }
}
