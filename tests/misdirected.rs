//! Nodes that are reached under the address of another one: a wrong `bridge.advertise` is reported,
//! and no waiting endpoint loses its offer.

mod support;

use nymea_remoteproxy::node::{Node, Prepared};
use serde_json::Value;
use support::cluster::{Certificates, member};
use support::redis::{Server, until};
use support::tunnel_proxy::{Event, Gateway, app, try_app, try_gateway};
use support::{Endpoint, soon};
use tokio_tungstenite::tungstenite::Message;

/// Nodes a, b and c, of which b says that it is reached where a is.
struct Misconfigured {
    redis: Server,
    a: Node,
    b: Node,
    c: Node,
}

impl Misconfigured {
    async fn start() -> Self {
        let (redis, certificates) = (Server::start().await, Certificates::new());
        let start = |name, advertise| {
            let mut config = member(&redis, &certificates, name);
            config.bridge.advertise = advertise;
            Prepared::new(config).expect("valid settings").start().expect("free ports")
        };
        let a = start("a", None);
        let address_of_a = a.bridge_addr().expect("a bridge").to_string();
        let (b, c) = (start("b", Some(address_of_a)), start("c", None));
        Self { redis, a, b, c }
    }

    /// Waits until these nodes show to operators what is wrong with b.
    async fn is_reported_by(&self, nodes: &[&Node]) {
        for node in nodes {
            until("the trouble is shown", async || {
                let trouble = trouble_with(node, "b").await;
                trouble.as_str().is_some_and(|it| it.contains("check bridge.advertise of \"b\""))
            })
            .await;
            let events = node.telemetry().journal.since(0);
            let said = events.iter().filter(|event| event.text.contains("bridge.advertise"));
            assert_eq!(said.count(), 1, "once, and not for each call: {events:?}");
        }
    }
}

async fn trouble_with(node: &Node, name: &str) -> Value {
    let url = format!("http://{}/api/v1/cluster", node.admin_addr().expect("an admin listener"));
    let answer = soon("an answer", reqwest::get(url)).await.expect("an answer");
    let answer: Value = serde_json::from_str(&answer.text().await.expect("a text")).expect("JSON");
    let nodes = answer["nodes"].as_array().expect("nodes").clone();
    let found = nodes.iter().find(|node| node["name"] == name);
    found.map_or(Value::Null, |node| node["trouble"].clone())
}

#[tokio::test]
async fn an_endpoint_on_a_node_with_a_wrong_address_keeps_waiting_and_both_nodes_report_it() {
    let cluster = Misconfigured::start().await;
    let Misconfigured { redis, a, b, c } = &cluster;
    let mut waiting = Endpoint::waiting(b, "t").await;
    until("its entry", async || redis.pairs().await.len() == 1).await;
    let entry = redis.pairs().await.remove(0);
    let offer: String = redis.ask(&["HGET", &entry, "offer"]).await;
    let claiming = Endpoint::waiting(c, "t").await;
    cluster.is_reported_by(&[a, c]).await;
    assert_eq!(redis.ask::<String>(&["HGET", &entry, "offer"]).await, offer, "it is still there");
    drop(claiming);
    // Its own node is not misled.
    let mut partner = Endpoint::waiting(b, "t").await;
    waiting.established().await;
    partner.established().await;
}

#[tokio::test]
async fn a_node_that_reaches_itself_in_place_of_another_one_says_so() {
    let cluster = Misconfigured::start().await;
    let Misconfigured { redis, a, b, .. } = &cluster;
    let mut waiting = Endpoint::waiting(b, "t").await;
    until("its entry", async || redis.pairs().await.len() == 1).await;
    let claiming = Endpoint::waiting(a, "t").await;
    until("the trouble is shown", async || {
        trouble_with(a, "b").await.as_str().is_some_and(|it| it.contains("check bridge.advertise"))
    })
    .await;
    drop(claiming);
    let mut partner = Endpoint::waiting(b, "t").await;
    waiting.established().await;
    partner.established().await;
}

#[tokio::test]
async fn a_gateway_on_a_node_with_a_wrong_address_stays_registered() {
    let cluster = Misconfigured::start().await;
    let Misconfigured { a, b, c, .. } = &cluster;
    let mut gateway = Gateway::register(b, 1).await;
    for round in 0..3 {
        let (_endpoint, error) = try_app(c, 2, 1).await;
        assert_eq!(error, "TunnelProxyErrorInternalServerError", "{round}");
    }
    // Takes a few seconds: whether the holder lives may still become known.
    let (_endpoint, error) = try_gateway(c, 1).await;
    assert_eq!(error, "TunnelProxyErrorInternalServerError");
    cluster.is_reported_by(&[a, c]).await;
    let mut app = app(b, 3, 1).await;
    let address = gateway.connected().await;
    app.send(Message::binary("for the gateway")).await;
    assert_eq!(gateway.event().await, Event::Data(address, b"for the gateway".to_vec()));
}

#[tokio::test]
async fn nodes_that_advertise_the_same_address_are_shown_before_anybody_is_missed() {
    let cluster = Misconfigured::start().await;
    for name in ["a", "b"] {
        until("both are listed", async || {
            let trouble = trouble_with(&cluster.c, name).await;
            trouble.as_str().is_some_and(|it| it.contains("2 nodes (\"a\", \"b\")"))
        })
        .await;
    }
    assert_eq!(trouble_with(&cluster.c, "c").await, Value::Null);
}
