//! Gateways and their apps on one node (`src/protocol/README.md`, section 4).

mod support;

use nymea_remoteproxy::node::Node;
use serde_json::json;
use support::redis::until;
use support::tunnel_proxy::{
    Event, Gateway, app, frame, receive, refused_app, refused_gateway, try_gateway,
};
use support::{Endpoint, node, node_with, pattern, soon};
use tokio_tungstenite::tungstenite::Message;

/// Bytes that hold every value, and many that must be escaped.
fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = pattern(seed, length);
    for (index, byte) in bytes.iter_mut().enumerate() {
        match index % 7 {
            3 => *byte = 0xC0,
            5 => *byte = 0xDB,
            _ => {}
        }
    }
    for value in 0..=255 {
        bytes.push(value);
    }
    bytes
}

async fn gateway_with_app(node: &Node) -> (Gateway, Endpoint, u16) {
    let mut gateway = Gateway::register(node, 1).await;
    let app = app(node, 2, 1).await;
    let address = gateway.connected().await;
    (gateway, app, address)
}

#[tokio::test]
async fn an_app_is_announced_and_both_reach_each_other() {
    let node = node();
    let mut gateway = Gateway::register(&node, 1).await;
    let mut app = app(&node, 2, 1).await;
    let params = gateway.notification("ClientConnected").await;
    let address = params["clientPeerAddress"].as_str().expect("a text");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let uuid = "{00000000-0000-0000-0000-000000000002}";
    let expected = json!({
        "clientName": "app", "clientUuid": uuid, "clientPeerAddress": address, "socketAddress": 1,
    });
    assert_eq!(params, expected);
    app.send(Message::text("Hello")).await;
    assert_eq!(gateway.event().await, Event::Data(1, b"Hello".to_vec()));
    gateway.send(1, b"{}\n").await;
    assert_eq!(app.message().await, Message::text("{}\n"));
    gateway.send(1, &[0xC0, 0xDB, 0xDC]).await;
    assert_eq!(app.message().await, Message::binary(vec![0xC0, 0xDB, 0xDC]));
    app.leave().await;
    gateway.disconnected(1).await;
}

#[tokio::test]
async fn the_app_is_announced_before_its_first_byte() {
    let node = node();
    let mut gateway = Gateway::register(&node, 1).await;
    for number in 0..20 {
        let mut app = app(&node, 100 + number, 1).await;
        app.send(Message::binary("first")).await;
        let address = gateway.connected().await;
        assert_eq!(gateway.event().await, Event::Data(address, b"first".to_vec()));
        app.leave().await;
        gateway.disconnected(address).await;
    }
}

#[tokio::test]
async fn every_byte_survives_in_any_split_for_sixteen_apps_at_once() {
    const LENGTH: usize = 300_000;
    let node = node();
    let mut gateway = Gateway::register(&node, 1).await;
    let mut apps = Vec::new();
    for number in 0..16_u64 {
        let app = app(&node, 100 + u128::from(number), 1).await;
        apps.push((gateway.connected().await, number, app));
    }
    let sending: Vec<_> = apps
        .into_iter()
        .map(|(address, seed, mut app)| {
            tokio::spawn(async move {
                for piece in random(seed, LENGTH).chunks(10_007) {
                    app.send(Message::binary(piece.to_vec())).await;
                }
                let expected = random(seed + 1000, LENGTH);
                assert!(receive(&mut app, expected.len()).await == expected, "app {seed}");
                (address, app)
            })
        })
        .collect();
    let addresses: Vec<u16> = (1..=16).collect();
    let wanted: Vec<_> = addresses.iter().map(|address| (*address, LENGTH + 256)).collect();
    let got = gateway.collect(&wanted).await;
    for address in &addresses {
        assert!(got[address] == random(u64::from(*address) - 1, LENGTH), "{address}");
    }
    // The frames of all apps in sequence, cut anywhere into messages of any size.
    let mut stream = Vec::new();
    let all: Vec<_> =
        addresses.iter().map(|address| random(u64::from(*address) + 999, LENGTH)).collect();
    for index in 0..=LENGTH / 5000 {
        for (address, data) in addresses.iter().zip(&all) {
            let from = (index * 5000).min(data.len());
            let to = if index == LENGTH / 5000 { data.len() } else { from + 5000 };
            stream.extend(frame(*address, &data[from..to]));
        }
    }
    let mut rest = &stream[..];
    let mut step = 1;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(step.min(rest.len()));
        gateway.raw(piece).await;
        rest = more;
        step = (step * 7 + 13) % 20_011 + 1;
    }
    for app in sending {
        soon("an app", app).await.expect("all is right");
    }
}

#[tokio::test]
async fn one_large_frame_arrives_whole() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    let data = random(5, 3 << 20);
    let expected = data.clone();
    let reading = tokio::spawn(async move {
        assert!(receive(&mut app, expected.len()).await == expected);
        app
    });
    for piece in frame(address, &data).chunks(100_000) {
        gateway.raw(piece).await;
    }
    let mut app = soon("the frame", reading).await.expect("all is right");
    app.send(Message::binary(data.clone())).await;
    assert!(gateway.data(address, data.len()).await == data);
}

#[tokio::test]
async fn a_bad_escape_loses_that_frame_only() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    let broken = [&frame(address, b"broken")[..3], &[0xDB, 0x01, b'x', 0xC0]].concat();
    let all = [frame(address, b"one "), broken, vec![0xC0, 0xC0], frame(address, b"two")].concat();
    gateway.raw(&all).await;
    assert_eq!(receive(&mut app, 7).await, b"one two");
}

#[tokio::test]
async fn text_messages_of_a_gateway_are_taken_as_bytes() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    // The end of a frame can never be text: it arrives in a binary message.
    let whole = frame(address, "grüße".as_bytes());
    let (body, end) = whole.split_at(whole.len() - 1);
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    gateway.endpoint.send(Message::text(body)).await;
    gateway.raw(end).await;
    assert_eq!(app.message().await, Message::text("grüße"));
}

#[tokio::test]
async fn a_gateway_disconnects_an_app() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    gateway.send(address, b"last words").await;
    gateway.request("DisconnectClient", &json!({ "socketAddress": address })).await;
    let answer = gateway.message().await;
    assert_eq!(answer["params"], json!({ "tunnelProxyError": "TunnelProxyErrorNoError" }));
    assert_eq!(app.message().await, Message::text("last words"));
    app.closed_with(1000).await;
    gateway.disconnected(address).await;
    for address in [u64::from(address), 77, 0, 0xFFFF, 70_000] {
        gateway.request("DisconnectClient", &json!({ "socketAddress": address })).await;
        let answer = gateway.message().await;
        let error = &answer["params"]["tunnelProxyError"];
        assert_eq!(error, "TunnelProxyErrorUnknownSocketAddress", "{address}");
    }
    gateway.request("Ping", &json!({ "timestamp": 12345 })).await;
    assert_eq!(gateway.message().await["params"], json!({ "timestamp": 12345 }));
}

#[tokio::test]
async fn addresses_are_not_used_again_at_once() {
    let node = node();
    let mut gateway = Gateway::register(&node, 1).await;
    for expected in 1..=5 {
        let mut app = app(&node, 2, 1).await;
        assert_eq!(gateway.connected().await, expected);
        app.leave().await;
        gateway.disconnected(expected).await;
    }
}

#[tokio::test]
async fn what_is_under_way_when_an_app_leaves_reaches_nobody() {
    let node = node();
    let (mut gateway, mut first, address) = gateway_with_app(&node).await;
    first.leave().await;
    gateway.disconnected(address).await;
    let mut second = app(&node, 3, 1).await;
    let other = gateway.connected().await;
    gateway.send(address, b"too late").await;
    gateway.send(other, b"in time").await;
    assert_eq!(second.message().await, Message::text("in time"));
}

#[tokio::test]
async fn when_the_gateway_leaves_its_apps_get_all_and_are_closed() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    let data = random(9, 400_000);
    gateway.send(address, &data).await;
    gateway.endpoint.leave().await;
    assert!(receive(&mut app, data.len()).await == data);
    app.closed_with(1000).await;
    refused_app(&node, 2, 1, "ServerNotFound").await;
    Gateway::register(&node, 1).await;
}

#[tokio::test]
async fn when_the_gateway_is_lost_its_apps_hear_so() {
    let node = node();
    let (gateway, mut app, _) = gateway_with_app(&node).await;
    drop(gateway);
    app.closed_with(1001).await;
}

#[tokio::test]
async fn a_uuid_is_registered_once_in_one_role() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    // Both are polled at the same time, so that they answer their probes.
    tokio::select! {
        event = gateway.event() => panic!("{event:?}"),
        message = app.message() => panic!("{message:?}"),
        () = async {
            refused_gateway(&node, 1, "AlreadyRegistered").await;
            refused_app(&node, 2, 1, "AlreadyRegistered").await;
            refused_gateway(&node, 2, "AlreadyRegistered").await;
            refused_app(&node, 1, 1, "AlreadyRegistered").await;
            refused_app(&node, 3, 9, "ServerNotFound").await;
        } => {}
    }
    // Neither connection was affected.
    app.send(Message::binary("still")).await;
    assert_eq!(gateway.event().await, Event::Data(address, b"still".to_vec()));
}

#[tokio::test]
async fn operators_see_gateways_with_their_apps_and_can_end_them() {
    let node = node();
    let (mut gateway, mut app, address) = gateway_with_app(&node).await;
    app.send(Message::binary("12345")).await;
    gateway.event().await;
    let url = format!("http://{}/api/v1/gateways", node.admin_addr().expect("an admin listener"));
    let client = reqwest::Client::new();
    let answer = soon("an answer", client.get(&url).send()).await.expect("an answer");
    let list: serde_json::Value =
        serde_json::from_str(&answer.text().await.expect("a text")).expect("JSON");
    assert_eq!((&list["total"], &list["gateways"][0]["name"]), (&json!(1), &json!("gateway")));
    let listed = &list["gateways"][0]["apps"][0];
    assert_eq!((&listed["socket_address"], &listed["received"]), (&json!(address), &json!(5)));
    let id = list["gateways"][0]["id"].as_str().expect("an id");
    let ended = client.delete(format!("{url}/{id}")).send();
    assert_eq!(soon("an answer", ended).await.expect("an answer").status(), 202);
    app.closed_with(1001).await;
    gateway.endpoint.closed_with(1001).await;
}

#[tokio::test]
async fn off_there_is_no_tunnel_proxy() {
    let node = node_with(|config| config.tunnel_proxy.enabled = Some(false));
    let mut endpoint = Endpoint::connect(&node).await;
    let params = json!({ "serverName": "g", "serverUuid": support::tunnel_proxy::uuid(1) });
    let request = support::tunnel_proxy::call("RegisterServer", &params);
    endpoint.send(Message::text(request)).await;
    let answer = endpoint.json().await;
    assert!(answer["error"].as_str().expect("a text").starts_with("No such namespace"), "{answer}");
    endpoint.closed_with(1008).await;
}

#[tokio::test]
async fn a_silent_gateway_is_closed() {
    let node = node_with(|config| {
        config.tunnel_proxy.inactivity = std::time::Duration::from_millis(300);
    });
    let mut gateway = Gateway::register(&node, 1).await;
    gateway.request("Ping", &json!({ "timestamp": 1 })).await;
    gateway.message().await;
    gateway.endpoint.closed_with(1008).await;
    until("its UUID is free", async || try_gateway(&node, 1).await.1.ends_with("NoError")).await;
}

#[tokio::test]
async fn an_app_that_takes_nothing_is_closed_and_the_others_get_everything() {
    const LENGTH: usize = 24 << 20;
    let node = node_with(|config| config.tunnel_proxy.overflow = 2 << 20);
    let mut gateway = Gateway::register(&node, 1).await;
    let stalled = app(&node, 99, 1).await;
    let its_address = gateway.connected().await;
    let mut live = Vec::new();
    for number in 0..15_u64 {
        let app = app(&node, 100 + u128::from(number), 1).await;
        live.push((gateway.connected().await, app));
    }
    let piece = pattern(3, 1 << 20);
    let expected = piece.clone();
    let addresses: Vec<_> = live.iter().map(|(address, _)| *address).collect();
    let reading: Vec<_> = live
        .into_iter()
        .map(|(address, mut app)| {
            let expected = expected.clone();
            tokio::spawn(async move {
                for part in 0..LENGTH >> 20 {
                    assert!(receive(&mut app, 1 << 20).await == expected, "{address}: {part}");
                }
                app
            })
        })
        .collect();
    for _ in 0..LENGTH >> 20 {
        gateway.send(its_address, &piece).await;
        for address in &addresses {
            gateway.send(*address, &piece).await;
        }
    }
    let mut apps = Vec::new();
    for reader in reading {
        apps.push(soon("all data", reader).await.expect("all is right"));
    }
    // Only when it reads again does it hear what happened.
    let mut stalled = stalled;
    let mut received = 0;
    let code = loop {
        match stalled.message().await {
            Message::Binary(bytes) => received += bytes.len(),
            Message::Text(text) => received += text.len(),
            Message::Close(frame) => break u16::from(frame.expect("a reason").code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 1008);
    assert!(received < LENGTH, "{received}");
    gateway.disconnected(its_address).await;
    apps[0].send(Message::binary("still")).await;
    assert_eq!(gateway.event().await, Event::Data(addresses[0], b"still".to_vec()));
}

#[tokio::test]
async fn a_slow_gateway_slows_its_apps_and_loses_nothing() {
    const PARTS: usize = 24;
    let node = node();
    let mut gateway = Gateway::register(&node, 1).await;
    let mut apps = Vec::new();
    for number in 0..4 {
        apps.push((app(&node, 100 + number, 1).await, gateway.connected().await));
    }
    let piece = pattern(4, 1 << 20);
    let wanted: Vec<_> = apps.iter().map(|(_, address)| (*address, PARTS << 20)).collect();
    let sending: Vec<_> = apps
        .into_iter()
        .map(|(mut app, _)| {
            let piece = piece.clone();
            tokio::spawn(async move {
                for _ in 0..PARTS {
                    app.send(Message::binary(piece.clone())).await;
                }
                app
            })
        })
        .collect();
    let got = gateway.collect(&wanted).await;
    let expected = piece.repeat(PARTS);
    assert!(got.values().all(|data| *data == expected));
    for app in sending {
        soon("sent", app).await.expect("all is right");
    }
}
