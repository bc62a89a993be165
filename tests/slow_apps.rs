//! Apps that take their data slowly, late or not at all, beside others of the same gateway.

mod support;

use std::time::{Duration, Instant};

use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::Node;
use serde_json::json;
use support::stream::{Stream, ip};
use support::tunnel_proxy::{Gateway, app, call, receive, uuid};
use support::{FREE, node, node_with, pattern, soon};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

const PIECE: usize = 1 << 20;

/// Also on TCP.
fn streams(config: &mut Config) {
    config.listen = vec![
        Listen::WebSocket { address: FREE, tls: true },
        Listen::Tcp { address: FREE, tls: false },
    ];
}

/// An app on TCP, for which the system keeps next to nothing.
async fn small_app(node: &Node, number: u128) -> Stream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("set");
    let connecting = socket.connect(ip(node, "tcp"));
    let tcp: TcpStream = soon("a connection", connecting).await.expect("connected");
    let mut app = Stream::over(Box::new(tcp));
    let params = json!({
        "clientName": "app", "clientUuid": uuid(number), "serverUuid": uuid(1),
    });
    app.send(call("RegisterClient", &params).as_bytes()).await;
    let answer = app.line().await.expect("an answer");
    assert!(answer.contains("TunnelProxyErrorNoError"), "{answer}");
    app
}

/// Counts the apps that were closed as they took too little.
fn closed(node: &Node) -> bool {
    node.telemetry()
        .metrics
        .text()
        .lines()
        .any(|line| line.starts_with("remoteproxy_backlogs_full_total") && !line.ends_with(" 0"))
}

#[tokio::test]
async fn apps_that_read_late_get_everything_and_stop_nobody_meanwhile() {
    const LATE: u128 = 4;
    const PIECES: usize = 10;
    let node = node_with(streams);
    let mut gateway = Gateway::register(&node, 1).await;
    let mut late = Vec::new();
    for number in 0..LATE {
        let app = small_app(&node, 100 + number).await;
        late.push((gateway.connected().await, app));
    }
    let mut live = app(&node, 2, 1).await;
    let address = gateway.connected().await;
    let piece = pattern(1, PIECE);
    let expected = piece.clone();
    let reading = tokio::spawn(async move {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        for _ in 0..PIECES * usize::try_from(LATE).expect("few") {
            assert!(receive(&mut live, PIECE).await == expected);
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    });
    for (late, _) in &late {
        for _ in 0..PIECES {
            gateway.send(*late, &piece).await;
            gateway.send(address, &piece).await;
        }
    }
    let longest = soon("all data", reading).await.expect("all is right");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    for (address, app) in &mut late {
        for part in 0..PIECES {
            assert!(app.exactly(PIECE).await == piece, "{address}: {part}");
        }
    }
    assert!(!closed(&node));
}

#[tokio::test]
async fn an_app_that_takes_its_data_slowly_gets_all_of_it_even_without_room_for_it() {
    const LENGTH: usize = 4 << 20;
    let node = node_with(|config| {
        streams(config);
        config.tunnel_proxy.backlog = 64 << 10;
        config.tunnel_proxy.overflow = 256 << 10;
    });
    let mut gateway = Gateway::register(&node, 1).await;
    let mut slow = small_app(&node, 2).await;
    let address = gateway.connected().await;
    let data = pattern(2, LENGTH);
    let expected = data.clone();
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        while all.len() < LENGTH {
            all.extend(slow.exactly(16 * 1024).await);
            sleep(Duration::from_millis(15)).await;
        }
        assert!(all == expected);
    });
    for piece in data.chunks(100_000) {
        gateway.send(address, piece).await;
    }
    soon("all data", reading).await.expect("all is right");
    assert!(!closed(&node));
}

#[tokio::test]
async fn apps_that_take_nothing_are_closed_where_there_is_no_room_and_the_overflow_is_free_again() {
    const PIECES: usize = 12;
    let node = node_with(|config| {
        streams(config);
        config.tunnel_proxy.overflow = 2 << 20;
    });
    let mut gateway = Gateway::register(&node, 1).await;
    let mut apps = Vec::new();
    for number in 0..4 {
        let app = small_app(&node, 100 + number).await;
        apps.push((gateway.connected().await, app));
    }
    let piece = pattern(3, PIECE);
    let began = Instant::now();
    for (address, _) in &apps {
        for _ in 0..PIECES {
            gateway.send(*address, &piece).await;
        }
    }
    for (address, _) in &apps {
        gateway.disconnected(*address).await;
    }
    // Most of it moves the data: the gateway waits 2 s for the first app, and 250 ms for each other.
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
    assert!(closed(&node));
    let used = node.telemetry().metrics.text();
    let used = used.lines().find(|line| line.starts_with("remoteproxy_gateway_overflow_bytes"));
    assert!(used.is_some_and(|line| line.ends_with(" 0")), "{used:?}");
}

#[tokio::test]
async fn a_stalled_app_of_one_gateway_leaves_room_to_those_of_another() {
    const PIECES: usize = 8;
    let node = node();
    let mut one = Gateway::register(&node, 1).await;
    let _stalled = app(&node, 2, 1).await;
    let stalled = one.connected().await;
    let mut other = Gateway::register(&node, 3).await;
    let mut live = app(&node, 4, 3).await;
    let address = other.connected().await;
    let piece = pattern(4, PIECE);
    for _ in 0..PIECES {
        one.send(stalled, &piece).await;
    }
    let sent = async {
        for _ in 0..PIECES {
            other.send(address, &piece).await;
        }
    };
    let received = async {
        for _ in 0..PIECES {
            assert!(receive(&mut live, PIECE).await == piece);
        }
    };
    tokio::join!(sent, received);
}
