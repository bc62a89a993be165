//! Gateways and their apps on different nodes: real Redis, real bridges.

mod support;

use std::time::Duration;

use nymea_remoteproxy::observability::Kind;
use serde_json::json;
use support::cluster::Cluster;
use support::redis::until;
use support::tunnel_proxy::{
    Event, Gateway, app, receive, refused_app, refused_gateway, try_app, try_gateway, uuid,
};
use support::{pattern, soon};
use tokio_tungstenite::tungstenite::Message;

/// Entries of UUIDs in Redis.
async fn uuids(cluster: &Cluster) -> usize {
    cluster.redis.keys().await.iter().filter(|key| key.contains("uuid:")).count()
}

#[tokio::test]
async fn apps_of_all_nodes_reach_a_gateway_on_one() {
    const LENGTH: usize = 1 << 20;
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    refused_app(b, 2, 1, "ServerNotFound").await;
    let mut gateway = Gateway::register(a, 1).await;
    let mut apps = Vec::new();
    for (number, node) in [a, b, c, b].into_iter().enumerate() {
        let app = app(node, 100 + number as u128, 1).await;
        let params = gateway.notification("ClientConnected").await;
        assert_eq!(params["clientUuid"], uuid(100 + number as u128));
        // As its own node sees it, not the bridge.
        let from = params["clientPeerAddress"].as_str().expect("a text").to_owned();
        let tunnels = node.telemetry().tunnels.list(None, 9, |tunnel| {
            format!("{:?}", tunnel.facts.second).contains(from.rsplit(':').next().expect("a port"))
        });
        assert_eq!(tunnels.len(), 1, "{from}");
        apps.push((u16::try_from(number + 1).expect("few"), app));
    }
    let data = pattern(1, LENGTH);
    let tasks: Vec<_> = apps
        .into_iter()
        .map(|(address, mut app)| {
            tokio::spawn(async move {
                let mine = pattern(u64::from(address), LENGTH);
                app.send(Message::binary(mine)).await;
                assert!(receive(&mut app, LENGTH).await == pattern(1, LENGTH), "{address}");
                app
            })
        })
        .collect();
    let wanted: Vec<_> = (1..=4).map(|address| (address, LENGTH)).collect();
    let got = gateway.collect(&wanted).await;
    for (address, _) in &wanted {
        assert!(got[address] == pattern(u64::from(*address), LENGTH), "{address}");
        gateway.send(*address, &data).await;
    }
    let mut apps = Vec::new();
    for task in tasks {
        apps.push(soon("an app", task).await.expect("all is right"));
    }
    // The gateway's node knows all of them, with where they are.
    let records = a.telemetry().gateways.list();
    let nodes: Vec<_> = records[0].apps().iter().map(|app| app.node.clone()).collect();
    let elsewhere = |name: &str| Some(name.to_owned());
    assert_eq!(nodes, [None, elsewhere("node2"), elsewhere("node3"), elsewhere("node2")]);
    assert!(records[0].apps().iter().all(|app| app.bytes.received() == LENGTH as u64));
    assert!(records[0].apps().iter().all(|app| app.bytes.sent() == LENGTH as u64));
    let kinds = b.telemetry().tunnels.list(None, 9, |tunnel| tunnel.facts.kind == Kind::Bridged);
    assert_eq!(kinds.len(), 2);
    apps[1].leave().await;
    gateway.disconnected(2).await;
    gateway.request("DisconnectClient", &json!({ "socketAddress": 3 })).await;
    gateway.message().await;
    apps[2].closed_with(1000).await;
    gateway.disconnected(3).await;
    gateway.endpoint.leave().await;
    apps[3].closed_with(1000).await;
    apps[0].closed_with(1000).await;
    until("no UUID is left", async || uuids(&cluster).await == 0).await;
}

#[tokio::test]
async fn a_uuid_is_registered_once_in_the_cluster_in_one_role() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut gateway = Gateway::register(a, 1).await;
    let mut app = app(b, 2, 1).await;
    let address = gateway.connected().await;
    tokio::select! {
        event = gateway.event() => panic!("{event:?}"),
        message = app.message() => panic!("{message:?}"),
        () = async {
            refused_gateway(b, 1, "AlreadyRegistered").await;
            refused_app(a, 2, 1, "AlreadyRegistered").await;
            refused_gateway(a, 2, "AlreadyRegistered").await;
            refused_app(b, 1, 1, "AlreadyRegistered").await;
        } => {}
    }
    app.send(Message::binary("still")).await;
    assert_eq!(gateway.event().await, Event::Data(address, b"still".to_vec()));
}

#[tokio::test]
async fn a_gateway_moves_to_another_node_and_apps_find_it() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    for round in 0..10 {
        let (here, there) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let mut gateway = Gateway::register(here, 1).await;
        let mut app = app(there, 2, 1).await;
        assert_eq!(gateway.connected().await, 1);
        app.send(Message::text("hello")).await;
        assert_eq!(gateway.event().await, Event::Data(1, b"hello".to_vec()));
        gateway.endpoint.leave().await;
        app.closed_with(1000).await;
    }
}

#[tokio::test]
async fn a_stalled_app_of_another_node_is_closed_and_the_others_go_on() {
    const PARTS: usize = 24;
    let cluster = Cluster::start_with(2, |config| config.tunnel_proxy.overflow = 2 << 20).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut gateway = Gateway::register(a, 1).await;
    let mut stalled = app(b, 2, 1).await;
    let its_address = gateway.connected().await;
    let mut live = app(b, 3, 1).await;
    let address = gateway.connected().await;
    let piece = pattern(3, 1 << 20);
    let expected = piece.clone();
    let reading = tokio::spawn(async move {
        for _ in 0..PARTS {
            assert!(receive(&mut live, 1 << 20).await == expected);
        }
        live
    });
    for _ in 0..PARTS {
        gateway.send(its_address, &piece).await;
        gateway.send(address, &piece).await;
    }
    soon("all data", reading).await.expect("all is right");
    let code = loop {
        match stalled.message().await {
            Message::Close(frame) => break u16::from(frame.expect("a reason").code),
            Message::Binary(_) | Message::Text(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 1008);
    gateway.disconnected(its_address).await;
}

#[tokio::test]
async fn when_a_node_drains_its_gateway_goes_elsewhere_with_its_apps() {
    let cluster = Cluster::start_with(2, |config| {
        config.drain.grace = Duration::from_millis(300);
    })
    .await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut idle = Gateway::register(a, 1).await;
    let mut busy = Gateway::register(a, 2).await;
    let mut app = app(b, 3, 2).await;
    let address = busy.connected().await;
    let drained = a.drain();
    let seen = async {
        idle.endpoint.closed_with(1001).await;
        app.closed_with(1001).await;
        busy.disconnected(address).await;
        busy.endpoint.closed_with(1001).await;
        Gateway::register(b, 1).await
    };
    let ((), mut gateway) = tokio::join!(drained, seen);
    let mut app = support::tunnel_proxy::app(b, 3, 1).await;
    assert_eq!(gateway.connected().await, 1);
    app.send(Message::text("hello")).await;
    assert_eq!(gateway.event().await, Event::Data(1, b"hello".to_vec()));
}

#[tokio::test]
async fn redis_away_standing_apps_go_on_and_new_ones_hear_so_in_time() {
    let mut cluster = Cluster::start(2).await;
    let mut gateway = Gateway::register(&cluster.nodes[0], 1).await;
    let mut app = app(&cluster.nodes[1], 2, 1).await;
    let address = gateway.connected().await;
    cluster.redis.kill();
    app.send(Message::text("hello")).await;
    assert_eq!(gateway.event().await, Event::Data(address, b"hello".to_vec()));
    refused_app(&cluster.nodes[1], 3, 1, "InternalServerError").await;
    refused_gateway(&cluster.nodes[1], 4, "InternalServerError").await;
    cluster.redis.restart().await;
    let again = async || try_app(&cluster.nodes[1], 3, 1).await.1.ends_with("NoError");
    until("apps are attached again", again).await;
    assert_ne!(gateway.connected().await, address);
    let taken = async || try_gateway(&cluster.nodes[1], 2).await.1.ends_with("AlreadyRegistered");
    tokio::select! {
        message = app.message() => panic!("{message:?}"),
        () = until("the app's UUID is known again", taken) => {}
    }
}

#[tokio::test]
async fn nobody_is_attached_who_does_not_know_the_secret() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let _gateway = Gateway::register(a, 1).await;
    let keys = cluster.redis.keys().await;
    let entry = keys.iter().find(|key| key.contains("uuid:")).expect("an entry");
    let wrong = "0123456789abcdef0123456789abcdef";
    cluster.redis.ask::<i64>(&["HSET", entry, "secret", wrong]).await;
    refused_app(b, 2, 1, "InternalServerError").await;
    assert_eq!(a.telemetry().gateways.app_count(), 0);
}
