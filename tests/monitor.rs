//! The monitor socket of a real node.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::redis::until;
use support::tunnel_proxy::{Gateway, app, receive, uuid};
use support::{Endpoint, node_with, soon, tunnel};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;

async fn refresh(path: &Path) -> Value {
    ask(path, true).await
}

async fn ask(path: &Path, print_all: bool) -> Value {
    let mut monitor = UnixStream::connect(path).await.expect("a socket");
    let request = json!({ "method": "refresh", "params": { "printAll": print_all } });
    monitor.write_all(request.to_string().as_bytes()).await.expect("sent");
    let mut line = String::new();
    let mut monitor = BufReader::new(monitor);
    soon("a report", monitor.read_line(&mut line)).await.expect("a line");
    serde_json::from_str(&line).expect("JSON")
}

#[tokio::test]
async fn a_node_tells_what_it_is_doing() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("monitor.sock");
    let node = node_with(|config| {
        config.server.name = "the proxy".into();
        config.monitor.socket = Some(path.clone());
    });
    let report = refresh(&path).await;
    assert_eq!(report["serverName"], "the proxy");
    assert_eq!(report["serverVersion"], env!("CARGO_PKG_VERSION"));
    assert!(report["apiVersion"].is_string(), "{report}");
    let statistic = &report["tunnelProxyStatistic"];
    assert_eq!(statistic["totalClientCount"], 0);
    assert_eq!(statistic["tunnelConnections"], Value::Array(Vec::new()));

    // Tunnels by tokens are counted, with what they relay.
    let (mut first, mut second) = tunnel(&node, "t").await;
    let waiting = Endpoint::waiting(&node, "other").await;
    let statistic = &refresh(&path).await["tunnelProxyStatistic"];
    assert_eq!(statistic["totalClientCount"], 3);
    assert_eq!(statistic["transports"]["websocket"], 3, "{statistic}");
    assert_eq!(statistic["serverConnectionsCount"], 0);
    first.send(Message::binary(vec![7; 5_000])).await;
    assert_eq!(second.message().await.len(), 5_000);
    until("the throughput is told", async || {
        refresh(&path).await["tunnelProxyStatistic"]["troughput"] == 5_000
    })
    .await;
    until("the throughput is over", async || {
        refresh(&path).await["tunnelProxyStatistic"]["troughput"] == 0
    })
    .await;

    drop(waiting);
    first.leave().await;
    second.closed_with(1000).await;
    soon("drain", node.drain()).await;
    assert!(!path.exists(), "the socket is left behind");
}

#[tokio::test]
async fn gateways_are_listed_with_their_apps() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("monitor.sock");
    let node = node_with(|config| config.monitor.socket = Some(path.clone()));
    let mut gateway = Gateway::register(&node, 1).await;
    let _idle = Gateway::register(&node, 2).await;
    let mut app = app(&node, 3, 1).await;
    let address = gateway.connected().await;
    app.send(Message::binary(vec![7; 1_000])).await;
    gateway.data(address, 1_000).await;
    gateway.send(address, &[8; 500]).await;
    receive(&mut app, 500).await;

    let all = |report: &Value| report["tunnelProxyStatistic"].clone();
    let named = |statistic: &Value, number| {
        let gateways = statistic["tunnelConnections"].as_array().expect("a list");
        let is_it = |gateway: &&Value| gateway["serverUuid"] == uuid(number);
        gateways.iter().find(is_it).expect("the gateway").clone()
    };
    until("the gateway's bytes are told", async || {
        let busy = named(&all(&refresh(&path).await), 1);
        busy["rxDataCount"] != 0 && busy["clientConnections"][0]["txDataCount"] == 500
    })
    .await;
    let statistic = all(&refresh(&path).await);
    assert_eq!(statistic["totalClientCount"], 3);
    assert_eq!(statistic["serverConnectionsCount"], 2);
    assert_eq!(statistic["clientConnectionsCount"], 1);
    let (busy, idle) = (named(&statistic, 1), named(&statistic, 2));
    assert_eq!(idle["clientConnections"], Value::Array(Vec::new()));
    assert_eq!(busy["name"], "gateway");
    for (number, from) in [("rxDataCount", 500), ("txDataCount", 1_000)] {
        assert!(busy[number].as_u64().expect("a number") >= from, "with its frames: {busy}");
    }
    let listed = &busy["clientConnections"][0];
    assert_eq!(listed["clientUuid"], uuid(3));
    assert_eq!((&listed["name"], &listed["rxDataCount"]), (&"app".into(), &1_000.into()));
    for connection in [&busy, listed] {
        let from = connection["address"].as_str().expect("a text");
        assert!(from.starts_with("127.0.0.1"), "{connection}");
        assert!(connection["timestamp"].as_u64().expect("a time") > 1_700_000_000);
        assert!(connection["id"].is_string());
    }

    let fewer = ask(&path, false).await;
    let gateways = all(&fewer)["tunnelConnections"].as_array().expect("a list").len();
    assert_eq!((gateways, &all(&fewer)["serverConnectionsCount"]), (1, &2.into()));
}

#[tokio::test]
async fn without_the_setting_there_is_no_socket_and_where_another_lives_no_node() {
    use nymea_remoteproxy::config::Config;
    use nymea_remoteproxy::node::Prepared;

    assert_eq!(Config::default().monitor.socket, None);
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("monitor.sock");
    let settings = |config: &mut Config| config.monitor.socket = Some(path.clone());
    let _node = node_with(settings);
    let mut config = Config::default();
    config.server.port = 0;
    config.admin.enabled = false;
    settings(&mut config);
    let Err(error) = Prepared::new(config).expect("valid").start() else {
        panic!("two nodes on one socket");
    };
    assert!(error.to_string().contains("another program answers there"), "{error}");
}
