//! One client that wants everything: whatever it shows, others get in.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::Node;
use support::raw::{client, error_in, server};
use support::stream::ip;
use support::{Endpoint, FREE, Listening, node_with, soon};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

/// A connection from this address of loopback.
async fn tcp(from: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((IpAddr::from(Ipv4Addr::new(127, 0, 0, from)), 0).into()).expect("an address");
    soon("TCP", socket.connect(to)).await.expect("TCP")
}

/// Connects an endpoint from this address; `None` if it is refused.
async fn endpoint(from: u8, node: &Node) -> Option<Endpoint> {
    let tls = support::tls_over(tcp(from, node.address()).await).await;
    let (ws, _) = Box::pin(soon("upgrade", client_async("wss://localhost/", tls))).await.ok()?;
    Some(Endpoint { ws: Box::new(ws) })
}

/// Whether it gets authenticated with this.
async fn authenticated(endpoint: &mut Endpoint, params: &str) -> bool {
    endpoint.request(params).await;
    endpoint.json().await["status"] == "success"
}

/// A client of this address finds its partner.
async fn is_served(from: u8, node: &Node) {
    let mut pair = Vec::new();
    for _ in 0..2 {
        let mut endpoint = endpoint(from, node).await.expect("let in");
        endpoint.authenticate(&format!(r#""token":"honest {from}""#)).await;
        pair.push(endpoint);
    }
    pair[0].established().await;
    pair[1].established().await;
    pair[0].send(Message::text("through")).await;
    assert_eq!(pair[1].text().await, "through");
}

/// How many of its connections one client keeps, with these params.
async fn greedy(node: &Node, params: impl Fn(usize) -> String) -> Vec<Endpoint> {
    let mut kept = Vec::new();
    for number in 0..70 {
        let Some(mut endpoint) = endpoint(1, node).await else { continue };
        if authenticated(&mut endpoint, &params(number)).await {
            kept.push(endpoint);
        }
    }
    kept
}

#[tokio::test]
async fn a_client_with_random_tokens_leaves_room_for_others() {
    let node = node_with(|config| config.limits.connections = 60);
    let kept = greedy(&node, |number| format!(r#""token":"t{number}""#)).await;
    assert_eq!(kept.len(), 45, "three quarters");
    is_served(2, &node).await;
}

#[tokio::test]
async fn a_client_with_one_token_and_many_nonces_leaves_room_for_others() {
    let node = node_with(|config| config.limits.connections = 60);
    let params = |number| format!(r#""token":"t","nonce":"n{number}","uuid":"u","name":"n""#);
    let kept = greedy(&node, params).await;
    assert_eq!(kept.len(), 30, "half");
    // The one that is too many hears why, and when to come again.
    let mut refused = endpoint(3, &node).await.expect("let in");
    refused.request(&params(99)).await;
    let answer = refused.json().await;
    assert_eq!(answer["params"]["authenticationError"], "AuthenticationErrorProxyError");
    assert_eq!(refused.close_code().await, 1013);
    is_served(2, &node).await;
    let text = node.telemetry().metrics.text();
    assert!(
        text.contains("remoteproxy_connections_refused_total{reason=\"user_share\"}"),
        "{text}"
    );
}

/// Registers from this address; returns the connection if that succeeds.
async fn registered(from: u8, node: &Node, method: &str, params: &str) -> Option<TcpStream> {
    let mut stream = BufReader::new(tcp(from, ip(node, "tcp")).await);
    let request = format!("{{\"id\":7,\"method\":\"TunnelProxy.{method}\",\"params\":{params}}}\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut line = String::new();
    soon("an answer or the end", stream.read_line(&mut line)).await.ok()?;
    let answer = serde_json::from_str(line.trim_start_matches('\0')).ok()?;
    (error_in(&answer) == "NoError").then(|| stream.into_inner())
}

fn tunnel_proxy(config: &mut Config) {
    config.limits.unauthenticated_per_ip = 5;
    config.listen = vec![Listen::Tcp { address: FREE, tls: false }];
}

#[tokio::test]
async fn registrations_without_a_token_remain_counted_for_their_address() {
    let node = node_with(tunnel_proxy);
    let mut kept = Vec::new();
    let params = server(9999).to_string();
    let _gateway = registered(2, &node, "RegisterServer", &params).await.expect("room");
    for number in 0..100 {
        let params = server(number).to_string();
        kept.extend(registered(1, &node, "RegisterServer", &params).await);
        let params = client(1000 + number, 9999).to_string();
        kept.extend(registered(1, &node, "RegisterClient", &params).await);
    }
    assert_eq!(kept.len(), 5);
    let params = server(5000).to_string();
    assert!(registered(2, &node, "RegisterServer", &params).await.is_some());
    // Who leaves makes room.
    drop(kept);
    let params = server(5001).to_string();
    support::redis::until("room", async || {
        registered(1, &node, "RegisterServer", &params).await.is_some()
    })
    .await;
}

#[tokio::test]
async fn the_oldest_silent_stranger_goes_before_a_newcomer_is_refused() {
    let node = node_with(|config| config.limits.unauthenticated = 10);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(endpoint(1, &node).await.expect("let in"));
    }
    is_served(2, &node).await;
    silent[0].closed_with(1013).await;
    let text = node.telemetry().metrics.text();
    assert!(text.contains("remoteproxy_connections_closed_total{reason=\"no_room\"} "), "{text}");
    // Those that remain can still go on.
    silent[9].authenticate(r#""token":"late""#).await;
}

#[tokio::test]
async fn strangers_of_five_addresses_do_not_keep_newcomers_out() {
    let node = node_with(|config| config.limits.connections = 200);
    let mut strangers = Vec::new();
    for number in 0..250 {
        strangers.extend(endpoint(1 + number % 5, &node).await);
    }
    is_served(7, &node).await;
}
