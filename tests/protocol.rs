//! What clients see until a tunnel is established (`src/protocol/README.md`, sections 1 to 3), over
//! real TLS WebSockets.

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nymea_remoteproxy::node::Node;
use support::{Endpoint, node, node_with, soon, tls, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

const AUTHENTICATE: &str =
    r#"{"id":0,"method":"Authentication.Authenticate","params":{"token":"t"}}"#;

#[tokio::test]
async fn generation_1_as_in_the_seed() {
    let node = node();
    let mut first = Endpoint::connect(&node).await;
    first.send(Message::text(AUTHENTICATE)).await;
    assert_eq!(first.text().await, "{\"id\":0,\"status\":\"success\"}\n");
    let mut second = Endpoint::connect(&node).await;
    second.send(Message::text(format!("{AUTHENTICATE}\n"))).await;
    assert_eq!(second.text().await, "{\"id\":0,\"status\":\"success\"}\n");
    for endpoint in [&mut first, &mut second] {
        assert_eq!(endpoint.text().await, "{\"id\":1,\"notification\":\"Tunnel.Established\"}\n");
    }
    first.send(Message::text("hello")).await;
    assert_eq!(second.message().await, Message::text("hello"));
}

#[tokio::test]
async fn generation_2_learns_who_is_there() {
    let node = node_with(|config| config.server.name = "test".into());
    let mut first = Endpoint::connect(&node).await;
    for _ in 0..3 {
        first.send(Message::text(r#"{"id":9,"method":"RemoteProxy.Hello"}"#)).await;
        let hello = first.json().await;
        assert_eq!(hello["params"]["server"], "nymea-remoteproxy");
        assert_eq!(hello["params"]["name"], "test");
        assert_eq!(hello["params"]["apiVersion"], "0.6");
    }
    first.send(Message::text(r#"{"id":10,"method":"RemoteProxy.Introspect"}"#)).await;
    let methods = &first.json().await["params"]["methods"];
    assert!(methods["Authentication.Authenticate"].is_object());

    first.request(r#""token":"t","uuid":"u1","name":"one","nonce":"n""#).await;
    assert_eq!(
        first.text().await,
        "{\"id\":0,\"status\":\"success\",\
         \"params\":{\"authenticationError\":\"AuthenticationErrorNoError\"}}\n"
    );
    let mut second = Endpoint::connect(&node).await;
    second.authenticate(r#""token":"t","uuid":"u2","name":"two","nonce":"n""#).await;
    assert_eq!(
        first.text().await,
        "{\"id\":1,\"notification\":\"RemoteProxy.TunnelEstablished\",\
         \"params\":{\"name\":\"two\",\"uuid\":\"u2\"}}\n"
    );
    assert_eq!(second.established().await["params"]["name"], "one");
}

#[tokio::test]
async fn generations_meet_when_there_is_no_nonce() {
    let node = node();
    let mut one = Endpoint::waiting(&node, "t").await;
    let mut two = Endpoint::connect(&node).await;
    two.authenticate(r#""token":"t","uuid":"u","name":"n""#).await;
    assert_eq!(one.established().await["notification"], "Tunnel.Established");
    let seen = two.established().await;
    assert_eq!(seen["notification"], "RemoteProxy.TunnelEstablished");
    assert_eq!((&seen["params"]["name"], &seen["params"]["uuid"]), (&"".into(), &"".into()));
    two.send(Message::binary(vec![0xC0])).await;
    assert_eq!(one.message().await, Message::binary(vec![0xC0]));
}

#[tokio::test]
async fn nonces_keep_tunnels_of_one_token_apart() {
    let node = node();
    let mut endpoints = Vec::new();
    for nonce in ["a", "b", "b", "a"] {
        let mut endpoint = Endpoint::connect(&node).await;
        endpoint.authenticate(&format!(r#""token":"t","nonce":"{nonce}""#)).await;
        endpoints.push((nonce, endpoint));
    }
    for (nonce, endpoint) in &mut endpoints {
        endpoint.established().await;
        endpoint.send(Message::text(*nonce)).await;
    }
    for (nonce, endpoint) in &mut endpoints {
        assert_eq!(endpoint.text().await, *nonce);
    }
}

#[tokio::test]
async fn bad_input_is_answered_then_closed() {
    let node = node();
    for (input, id, error) in [
        ("nonsense", -1, "Failed to parse JSON data"),
        ("{\"id\":1,", -1, "Failed to parse JSON data"),
        ("{}", -1, "Error parsing command. Missing 'id'"),
        (r#"{"id":3}"#, 3, "Error parsing method"),
        (r#"{"id":4,"method":"X.Y"}"#, 4, "No such namespace"),
        (r#"{"id":5,"method":"RemoteProxy.Y"}"#, 5, "No such method"),
        (r#"{"id":6,"method":"RemoteProxy.Hello","params":{"a":1}}"#, 6, "Invalid params"),
    ] {
        let mut endpoint = Endpoint::connect(&node).await;
        endpoint.send(Message::text(input)).await;
        let answer = endpoint.json().await;
        assert_eq!(answer["id"], id, "{input}");
        assert_eq!(answer["status"], "error", "{input}");
        assert!(answer["error"].as_str().is_some_and(|text| text.starts_with(error)), "{answer}");
        endpoint.closed_with(1008).await;
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_ends_the_connection() {
    let node = node();
    for size in [11 * 1024, 1024 * 1024] {
        let mut endpoint = Endpoint::connect(&node).await;
        let params = format!(r#""token":"{}""#, "x".repeat(size));
        endpoint.request(&params).await;
        endpoint.closed_with(1009).await;
    }
}

#[tokio::test]
async fn a_third_is_answered_and_closed_and_the_tunnel_goes_on() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    let mut third = Endpoint::waiting(&node, "t").await;
    third.closed_with(1008).await;
    first.send(Message::text("still here")).await;
    assert_eq!(second.text().await, "still here");
}

#[tokio::test]
async fn a_key_is_free_again_when_its_tunnel_has_ended() {
    let node = node();
    for _ in 0..3 {
        let (mut first, mut second) = tunnel(&node, "t").await;
        first.send(Message::Close(None)).await;
        second.closed_with(1000).await;
    }
}

#[tokio::test]
async fn a_waiting_endpoint_that_leaves_is_forgotten() {
    let node = node();
    for _ in 0..50 {
        let mut left = Endpoint::waiting(&node, "t").await;
        left.send(Message::Close(None)).await;
        while let Some(Ok(_)) = left.next().await {}
        let (mut first, mut second) = tunnel(&node, "t").await;
        first.send(Message::Close(None)).await;
        second.closed_with(1000).await;
    }
}

#[tokio::test]
async fn partners_that_leave_at_any_moment_leave_nobody_stuck() {
    let node = node();
    for round in 0..200u64 {
        let first = Endpoint::waiting(&node, "t").await;
        // One endpoint drops its connection while the other is being paired with it, or is alone.
        let leaving = async {
            tokio::time::sleep(Duration::from_micros(round * 7 % 900)).await;
            drop(first);
        };
        let ((), mut second) = tokio::join!(leaving, Endpoint::waiting(&node, "t"));
        // The second has met the first, and sees it go; or it waits, and meets the third.
        second_or_third_is_served(&mut second, &node).await;
        drop(second);
        wait_until_free(&node, "t").await;
    }
}

async fn second_or_third_is_served(second: &mut Endpoint, node: &Node) {
    let mut third = Endpoint::waiting(node, "t").await;
    second.established().await;
    tokio::select! {
        // Its tunnel with the first ends.
        code = second.close_code() => assert_eq!(code, 1001),
        message = third.message() => match message {
            Message::Text(_) => {
                third.send(Message::text("hello")).await;
                assert_eq!(second.text().await, "hello");
            }
            // It connected while the other two had a tunnel.
            Message::Close(frame) => {
                assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1008));
                second.closed_with(1001).await;
            }
            other => panic!("{other:?}"),
        },
    }
}

/// Waits until no endpoint has this token.
async fn wait_until_free(node: &Node, token: &str) {
    soon("the key to be free", async {
        loop {
            let mut endpoint = Endpoint::waiting(node, token).await;
            let waits = tokio::time::timeout(Duration::from_millis(20), endpoint.ws.next()).await;
            if waits.is_err() {
                endpoint.send(Message::Close(None)).await;
                while let Some(Ok(_)) = endpoint.next().await {}
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_same_uuid_is_a_loop_and_both_are_closed() {
    let node = node();
    let mut first = Endpoint::connect(&node).await;
    first.authenticate(r#""token":"t","uuid":"{U-1}","name":"a""#).await;
    let mut second = Endpoint::connect(&node).await;
    second.authenticate(r#""token":"t","uuid":"u-1","name":"b""#).await;
    first.closed_with(1008).await;
    second.closed_with(1008).await;
}

#[tokio::test]
async fn data_before_the_tunnel_stands_closes_the_connection() {
    let node = node();
    let mut early = Endpoint::waiting(&node, "t").await;
    early.send(Message::text("too early")).await;
    early.closed_with(1008).await;
    let (mut first, mut second) = tunnel(&node, "t").await;
    first.send(Message::text("in time")).await;
    assert_eq!(second.text().await, "in time");
}

#[tokio::test]
async fn pings_are_answered_at_every_stage() {
    async fn pinged(endpoint: &mut Endpoint) {
        endpoint.send(Message::Ping(b"42"[..].into())).await;
        let pong = soon("a pong", endpoint.ws.next()).await.expect("open").expect("open");
        assert_eq!(pong, Message::Pong(b"42"[..].into()));
    }
    let node = node();
    let mut first = Endpoint::connect(&node).await;
    pinged(&mut first).await;
    first.authenticate(r#""token":"t""#).await;
    pinged(&mut first).await;
    let mut second = Endpoint::waiting(&node, "t").await;
    first.established().await;
    pinged(&mut first).await;
    second.established().await;
    pinged(&mut second).await;
}

#[tokio::test]
async fn each_stage_ends_in_its_time() {
    let short = Duration::from_millis(200);
    let node = node_with(|config| {
        config.timeouts.inactivity = short;
        config.timeouts.handshake = short;
        config.timeouts.waiting = short;
    });
    let mut silent = Endpoint::connect(&node).await;
    silent.closed_with(1008).await;
    let mut alone = Endpoint::waiting(&node, "t").await;
    alone.closed_with(1013).await;
    // No upgrade, and no TLS either.
    let mut idle = tls(&node).await;
    assert_ends(&mut idle).await;
    let mut idle =
        tokio::net::TcpStream::connect(support::Listening::address(&node)).await.expect("TCP");
    assert_ends(&mut idle).await;
}

async fn assert_ends(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _reset_or_end = soon("the end", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn too_many_requests_before_authentication_are_cut_off() {
    let node = node_with(|config| config.limits.requests = 2);
    let mut endpoint = Endpoint::connect(&node).await;
    for _ in 0..2 {
        endpoint.send(Message::text(r#"{"id":9,"method":"RemoteProxy.Hello"}"#)).await;
        endpoint.json().await;
    }
    endpoint.send(Message::text(AUTHENTICATE)).await;
    endpoint.closed_with(1013).await;
}

#[tokio::test]
async fn limits_of_connections_are_answered_with_503() {
    let node = node_with(|config| {
        config.limits.unauthenticated_per_ip = 2;
        config.limits.connections = 3;
    });
    let refused = |result: Result<Endpoint, WsError>| match result {
        Err(WsError::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("must be refused"),
    };
    let idle = Endpoint::connect(&node).await;
    let mut first = Endpoint::connect(&node).await;
    assert_eq!(refused(Endpoint::try_connect(&node).await), 503);
    // An authenticated endpoint frees its place among the unauthenticated ones.
    first.authenticate(r#""token":"t""#).await;
    let mut second = Endpoint::waiting(&node, "t").await;
    first.established().await;
    second.established().await;
    assert_eq!(refused(Endpoint::try_connect(&node).await), 503);
    // The tunnel does not notice.
    first.send(Message::text("x")).await;
    assert_eq!(second.text().await, "x");
    drop(idle);
    soon("room", async {
        while Box::pin(Endpoint::try_connect(&node)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn other_http_requests_get_an_answer() {
    let node = node();
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "426"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "405"),
        ("\x16\x03\x01 nonsense\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
            "400",
        ),
        (&huge, "431"),
    ] {
        let mut stream = tls(&node).await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.expect("an orderly end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
