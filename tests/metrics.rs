//! The metrics of nodes: correct, back at zero when all connections are closed, and free of names and
//! addresses of clients.

mod support;

use std::time::Duration;

use nymea_remoteproxy::node::Node;
use support::cluster::Cluster;
use support::redis::until;
use support::{Endpoint, node, node_with, tunnel, tunnel_between};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// The sum over all series with this name and these labels.
fn sum(node: &Node, name: &str, labels: &[&str]) -> f64 {
    let text = node.telemetry().metrics.text();
    let series = text.lines().filter_map(|line| line.rsplit_once(' '));
    let of_name = series.filter(|(series, _)| series.split('{').next() == Some(name));
    let matching = of_name.filter(|(series, _)| labels.iter().all(|label| series.contains(label)));
    matching.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

async fn counted(node: &Node, name: &str, labels: &[&str], value: f64) {
    let what = format!("{name} {labels:?} to be {value}, it is {}", sum(node, name, labels));
    #[expect(clippy::float_cmp, reason = "counts are whole numbers")]
    until(&what, async || sum(node, name, labels) == value).await;
}

async fn all_over(node: &Node) {
    counted(node, "remoteproxy_connections", &[], 0.0).await;
    counted(node, "remoteproxy_tunnels", &[], 0.0).await;
    counted(node, "remoteproxy_bridge_streams_in", &[], 0.0).await;
    counted(node, "remoteproxy_bridge_streams_out", &[], 0.0).await;
}

#[tokio::test]
async fn a_tunnel_from_its_coming_to_its_end() {
    let node = node();
    let mut first = Endpoint::waiting(&node, "t").await;
    counted(&node, "remoteproxy_connections", &["stage=\"waiting\""], 1.0).await;
    let mut second = Endpoint::waiting(&node, "t").await;
    first.established().await;
    second.established().await;
    counted(&node, "remoteproxy_connections", &["stage=\"tunnel\""], 2.0).await;
    counted(&node, "remoteproxy_tunnels", &["kind=\"local\"", "generation=\"1\""], 1.0).await;
    for size in [1, 70_000] {
        first.send(Message::binary(vec![7; size])).await;
        assert_eq!(second.message().await.len(), size);
    }
    second.send(Message::text("back")).await;
    assert_eq!(first.text().await, "back");
    // Seen while it goes on, not only at its end.
    let local = "kind=\"local\"";
    for (direction, bytes, messages) in [("forth", 70_001.0, 2.0), ("back", 4.0, 1.0)] {
        let labels = [local, &format!("direction=\"{direction}\"")];
        counted(&node, "remoteproxy_tunnel_traffic_bytes_total", &labels, bytes).await;
        counted(&node, "remoteproxy_tunnel_messages_total", &labels, messages).await;
    }
    first.leave().await;
    second.closed_with(1000).await;
    all_over(&node).await;
    let labels = [local, "reason=\"other_left\""];
    counted(&node, "remoteproxy_tunnels_closed_total", &labels, 1.0).await;
    counted(&node, "remoteproxy_tunnel_traffic_bytes_total", &[], 70_005.0).await;
    counted(&node, "remoteproxy_tunnel_duration_seconds_count", &[local], 1.0).await;
    counted(&node, "remoteproxy_wait_duration_seconds_count", &[], 1.0).await;
    let accepted = ["result=\"accepted\""];
    counted(&node, "remoteproxy_authentication_duration_seconds_count", &accepted, 2.0).await;
    let steps = [
        ("handshake", 2.0),
        ("authenticate", 2.0),
        ("claim", 2.0),
        ("introduce", 2.0),
        ("total", 1.0),
    ];
    for (step, count) in steps {
        let step = format!("step=\"{step}\"");
        counted(&node, "remoteproxy_setup_duration_seconds_count", &[&step], count).await;
    }
    for own in [
        "process_memory_usage_bytes",
        "process_cpu_time_seconds_total",
        "remoteproxy_file_descriptors_open",
        "remoteproxy_file_descriptors_limit",
        "remoteproxy_tasks",
        "remoteproxy_build_info",
    ] {
        assert!(sum(&node, own, &[]) > 0.0, "{own}");
    }
    until("a look at the runtime", async || {
        sum(&node, "remoteproxy_loop_lag_seconds_count", &[]) > 0.0
    })
    .await;
}

#[tokio::test]
async fn who_gets_no_tunnel_is_counted_by_the_reason() {
    let node = node_with(|config| {
        config.timeouts.waiting = Duration::from_millis(100);
        config.limits.unauthenticated_per_ip = 1;
    });
    Endpoint::waiting(&node, "alone").await.closed_with(1013).await;
    let mut wrong = Endpoint::connect(&node).await;
    assert!(Endpoint::try_connect(&node).await.is_err());
    wrong.send(Message::text("{no json}")).await;
    while wrong.next().await.is_some_and(|message| message.is_ok()) {}
    all_over(&node).await;
    for (name, reason) in [
        ("remoteproxy_connections_closed_total", "nobody_came"),
        ("remoteproxy_connections_closed_total", "invalid_request"),
        ("remoteproxy_connections_refused_total", "unauthenticated_per_ip"),
    ] {
        counted(&node, name, &[&format!("reason=\"{reason}\"")], 1.0).await;
    }
}

#[tokio::test]
async fn whoever_vanishes_at_any_stage_is_not_counted_any_more() {
    let cluster = Cluster::start(2).await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    for round in 0..5 {
        let bare = TcpStream::connect(support::Listening::address(one)).await.expect("TCP");
        let secured = support::tls(one).await;
        let silent = Endpoint::connect(one).await;
        let mut asking = Endpoint::connect(other).await;
        asking.request(r#""token":"asking""#).await;
        let waiting = Endpoint::waiting(one, "waiting").await;
        let local = tunnel(other, &format!("local {round}")).await;
        let mut bridged = tunnel_between(one, other, &format!("bridged {round}")).await;
        bridged.0.send(Message::binary(vec![1; 1 << 20])).await;
        counted(one, "remoteproxy_tunnels", &[], 1.0).await;
        counted(other, "remoteproxy_tunnels", &[], 2.0).await;
        drop((bare, secured, silent, asking, waiting, local, bridged));
        for node in [one, other] {
            all_over(node).await;
        }
    }
}

#[tokio::test]
async fn a_bridged_tunnel_is_counted_on_both_nodes() {
    let cluster = Cluster::start(2).await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut first = Endpoint::waiting(one, "t").await;
    counted(one, "remoteproxy_connections", &["stage=\"waiting\""], 1.0).await;
    let mut second = Endpoint::waiting(other, "t").await;
    first.established().await;
    second.established().await;
    for node in [one, other] {
        counted(node, "remoteproxy_tunnels", &["kind=\"bridged\""], 1.0).await;
    }
    counted(one, "remoteproxy_bridge_streams_in", &["peer=\"node2\""], 1.0).await;
    let to_the_first = ["peer=\"node1\""];
    counted(other, "remoteproxy_bridge_streams_out", &to_the_first, 1.0).await;
    let round_trips = "remoteproxy_bridge_round_trip_seconds_count";
    until("a round trip", async || sum(other, round_trips, &to_the_first) > 0.0).await;
    assert!(sum(other, "remoteproxy_bridge_connections", &to_the_first) >= 1.0);
    counted(other, "remoteproxy_bridge_calls_total", &["outcome=\"attached\""], 1.0).await;
    first.send(Message::text("over")).await;
    assert_eq!(second.text().await, "over");
    second.leave().await;
    first.closed_with(1000).await;
    for node in [one, other] {
        all_over(node).await;
        let bridged = ["kind=\"bridged\"", "direction=\"forth\""];
        counted(node, "remoteproxy_tunnel_traffic_bytes_total", &bridged, 4.0).await;
        counted(node, "remoteproxy_redis_up", &[], 1.0).await;
        let offers = ["command=\"offer\"", "outcome=\"ok\""];
        counted(node, "remoteproxy_redis_command_duration_seconds_count", &offers, 1.0).await;
    }
}

#[tokio::test]
async fn nothing_in_the_metrics_identifies_anybody() {
    let node = node();
    let (first, second) = tunnel(&node, "a-token").await;
    let mut named = Endpoint::connect(&node).await;
    let uuid = "0a2b7e6e-5a6b-4f0e-9d6a-5d7f6f0d6c11";
    named
        .authenticate(&format!(r#""token":"b-token","nonce":"n-once","uuid":"{uuid}","name":"Jo""#))
        .await;
    let text = node.telemetry().metrics.text();
    for secret in ["a-token", "b-token", "n-once", uuid, "Jo", "127.0.0.1"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    drop((first, second, named));
    all_over(&node).await;
}
