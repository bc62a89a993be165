//! A registered UUID belongs to its holder for as long as that lives, however many rivals register
//! for it at once, on whichever node.

mod support;

use futures_util::future::join_all;
use nymea_remoteproxy::node::Node;
use serde_json::json;
use support::cluster::Cluster;
use support::tunnel_proxy::{Event, Gateway, app, call, uuid};
use support::{Endpoint, node};
use tokio_tungstenite::tungstenite::Message;

/// Connects rivals, which register for UUID 1 all at once. What each of them is answered.
async fn rivals(nodes: &[&Node], count: usize) -> Vec<String> {
    let connecting = (0..count).map(|number| Endpoint::connect(nodes[number % nodes.len()]));
    let mut rivals = join_all(connecting).await;
    let params = json!({ "serverName": "rival", "serverUuid": uuid(1) });
    let asked = rivals.iter_mut().map(async |rival| {
        rival.send(Message::text(call("RegisterServer", &params))).await;
        let answer = rival.json().await;
        answer["params"]["tunnelProxyError"].as_str().expect("a text").to_owned()
    });
    join_all(asked).await
}

/// The holder of UUID 1 on the first node keeps it against so many rivals on these nodes, and apps
/// of all nodes reach it afterwards.
async fn is_kept(holder_node: &Node, nodes: &[&Node], count: usize, rounds: usize) {
    let mut holder = Gateway::register(holder_node, 1).await;
    for round in 0..rounds {
        let answers = tokio::select! {
            event = holder.event() => panic!("round {round}: {event:?}"),
            answers = rivals(nodes, count) => answers,
        };
        let taken = answers.iter().filter(|it| it.ends_with("AlreadyRegistered")).count();
        assert_eq!(taken, count, "round {round}: {answers:?}");
    }
    for (number, node) in nodes.iter().enumerate() {
        let mut app = app(*node, 100 + number as u128, 1).await;
        let address = holder.connected().await;
        app.send(Message::binary("for the holder")).await;
        assert_eq!(holder.event().await, Event::Data(address, b"for the holder".to_vec()));
        app.leave().await;
        holder.disconnected(address).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_rivals_at_once_do_not_take_the_uuid_of_a_live_gateway() {
    let node = node();
    is_kept(&node, &[&node], 40, 4).await;
}

#[tokio::test]
async fn two_hundred_rivals_on_another_node_do_not_take_the_uuid_of_a_live_gateway() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    is_kept(a, &[b], 200, 2).await;
}

#[tokio::test]
async fn two_hundred_rivals_on_both_nodes_do_not_take_the_uuid_of_a_live_gateway() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    is_kept(a, &[a, b], 200, 2).await;
}
