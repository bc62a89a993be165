//! The monitor socket of a real node.

mod support;

use std::path::Path;

use serde_json::Value;
use support::redis::until;
use support::{Endpoint, node_with, soon, tunnel};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;

async fn refresh(path: &Path) -> Value {
    let mut monitor = UnixStream::connect(path).await.expect("a socket");
    let request = b"{\"method\":\"refresh\",\"params\":{\"printAll\":true}}\n";
    monitor.write_all(request).await.expect("sent");
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
