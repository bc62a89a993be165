//! Endpoints on different nodes: three real nodes in this process, a real Redis between them, and
//! real mutual TLS on their bridges.

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use support::cluster::Cluster;
use support::{Endpoint, pattern, soon, tunnel_between as tunnel};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

#[tokio::test]
async fn every_pair_of_nodes_carries_every_kind_of_message() {
    let cluster = Cluster::start(3).await;
    let messages = [
        Message::text(""),
        Message::binary(vec![]),
        Message::text("zwölf Boxkämpfer\n"),
        Message::binary((0..=255).collect::<Vec<u8>>()),
        Message::text("ä".repeat(70_000)),
        Message::binary(pattern(1, 64 * 1024 + 1)),
        Message::binary(pattern(2, 1_000_000)),
    ];
    for (a, one) in cluster.nodes.iter().enumerate() {
        for (b, other) in cluster.nodes.iter().enumerate() {
            let (mut first, mut second) = tunnel(one, other, &format!("token {a} {b}")).await;
            for message in &messages {
                first.send(message.clone()).await;
                assert!(second.message().await == *message, "{a} to {b}");
                second.send(message.clone()).await;
                assert!(first.message().await == *message, "{b} to {a}");
            }
            first.send(Message::Close(None)).await;
            second.closed_with(1000).await;
        }
    }
    cluster.is_clean().await;
}

#[tokio::test]
async fn generations_meet_across_nodes() {
    let cluster = Cluster::start(2).await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut first = Endpoint::connect(one).await;
    first.authenticate(r#""token":"t","uuid":"u1","name":"one","nonce":"n""#).await;
    let mut second = Endpoint::connect(other).await;
    second.authenticate(r#""token":"t","uuid":"u2","name":"two","nonce":"n""#).await;
    assert_eq!(first.established().await["params"]["name"], "two");
    assert_eq!(second.established().await["params"]["uuid"], "u1");

    let mut seed = Endpoint::waiting(one, "t").await;
    let mut later = Endpoint::connect(other).await;
    later.authenticate(r#""token":"t","uuid":"u","name":"n""#).await;
    assert_eq!(seed.established().await["notification"], "Tunnel.Established");
    assert_eq!(later.established().await["params"]["name"], "");
}

#[tokio::test]
async fn a_loop_is_closed_on_both_nodes() {
    let cluster = Cluster::start(2).await;
    let mut first = Endpoint::connect(&cluster.nodes[0]).await;
    first.authenticate(r#""token":"t","uuid":"u","name":"a""#).await;
    let mut second = Endpoint::connect(&cluster.nodes[1]).await;
    second.authenticate(r#""token":"t","uuid":"u","name":"b""#).await;
    first.closed_with(1008).await;
    second.closed_with(1008).await;
    cluster.is_clean().await;
}

#[tokio::test]
async fn each_way_to_leave_has_its_code_across_nodes() {
    let cluster = Cluster::start(2).await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    for (one, other) in [(one, other), (other, one)] {
        for (goodbye, code) in [(CloseCode::Normal, 1000), (CloseCode::Error, 1001)] {
            let (mut first, mut second) = tunnel(one, other, "t").await;
            first.send(Message::text("last words")).await;
            let frame = CloseFrame { code: goodbye, reason: "".into() };
            second.send(Message::Close(Some(frame))).await;
            first.closed_with(code).await;
            cluster.is_clean().await;
        }
        let (first, mut second) = tunnel(one, other, "t").await;
        drop(first);
        second.closed_with(1001).await;
        cluster.is_clean().await;
    }
}

#[tokio::test]
async fn a_third_is_refused_on_every_node() {
    let cluster = Cluster::start(3).await;
    let (mut first, mut second) = tunnel(&cluster.nodes[0], &cluster.nodes[1], "t").await;
    for node in &cluster.nodes {
        Endpoint::waiting(node, "t").await.closed_with(1008).await;
    }
    first.send(Message::text("still here")).await;
    assert_eq!(second.text().await, "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_pass_both_ways() {
    const PARTS: u64 = 64;
    let cluster = Cluster::start(2).await;
    let (first, second) = tunnel(&cluster.nodes[0], &cluster.nodes[1], "t").await;
    let exchange = |endpoint: Endpoint, mine: u64, theirs: u64| async move {
        let (mut sink, mut stream) = endpoint.ws.split();
        let sending = async {
            for part in 0..PARTS {
                sink.send(Message::binary(pattern(mine + part, 1 << 20))).await.expect("open");
            }
        };
        let receiving = async {
            for part in 0..PARTS {
                let message = stream.next().await.expect("open").expect("open");
                assert!(message.into_data() == pattern(theirs + part, 1 << 20), "part {part}");
            }
        };
        tokio::join!(sending, receiving);
    };
    timeout(Duration::from_mins(2), async {
        tokio::join!(exchange(first, 1000, 2000), exchange(second, 2000, 1000))
    })
    .await
    .expect("in time");
}

#[tokio::test]
async fn a_slow_reader_slows_its_writer_across_nodes() {
    let cluster = Cluster::start(2).await;
    let (mut first, mut second) = tunnel(&cluster.nodes[0], &cluster.nodes[1], "t").await;
    let numbered = |number: u64| Message::binary(pattern(number, 64_000));
    let mut sent = 0_u64;
    while timeout(Duration::from_secs(1), first.ws.send(numbered(sent))).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "64 MB were taken for a reader that reads nothing");
    }
    let (mut sink, _stream) = first.ws.split();
    let rest = tokio::spawn(async move { sink.flush().await });
    for number in 0..=sent {
        assert!(second.message().await == numbered(number), "message {number}");
    }
    soon("flushing", rest).await.expect("no panic").expect("open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_endpoints_find_their_partners_again_and_again() {
    let cluster = Arc::new(Cluster::start(3).await);
    for round in 0..3_usize {
        let tasks: Vec<_> = (0..300_usize)
            .map(|number| {
                let cluster = Arc::clone(&cluster);
                tokio::spawn(async move {
                    let node = &cluster.nodes[(number * 7 + number / 150 + round) % 3];
                    let token = format!("token {}", number % 150);
                    let mut endpoint = Endpoint::waiting(node, &token).await;
                    endpoint.established().await;
                    endpoint.send(Message::text(format!("{number}"))).await;
                    let partner: usize = endpoint.text().await.parse().expect("a number");
                    assert_eq!(partner % 150, number % 150);
                    assert_ne!(partner, number);
                    // The first of the two to get here leaves, the other sees it.
                    endpoint.send(Message::Close(None)).await;
                    while let Some(Ok(_)) = endpoint.next().await {}
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("the right partner");
        }
        cluster.is_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_endpoints_with_one_token_make_one_tunnel() {
    let cluster = Arc::new(Cluster::start(3).await);
    let tasks: Vec<_> = (0..20)
        .map(|number| {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                let mut endpoint = Endpoint::waiting(&cluster.nodes[number % 3], "t").await;
                let message = endpoint.message().await;
                (endpoint, message)
            })
        })
        .collect();
    let (mut paired, mut refused) = (Vec::new(), 0);
    for task in tasks {
        match task.await.expect("an answer") {
            (endpoint, Message::Text(_)) => paired.push(endpoint),
            (_, Message::Close(Some(frame))) => {
                assert_eq!(u16::from(frame.code), 1008);
                refused += 1;
            }
            (_, other) => panic!("{other:?}"),
        }
    }
    assert_eq!((paired.len(), refused), (2, 18));
    let mut paired = paired.into_iter();
    let (mut one, mut other) = (paired.next().expect("one"), paired.next().expect("another"));
    one.send(Message::text("hello")).await;
    assert_eq!(other.text().await, "hello");
}

#[tokio::test]
async fn partners_that_leave_as_they_are_claimed_leave_nobody_stuck() {
    let cluster = Cluster::start(2).await;
    for round in 0..100_u64 {
        let first = Endpoint::waiting(&cluster.nodes[0], "t").await;
        let leaving = async {
            tokio::time::sleep(Duration::from_micros(round * 137 % 9_000)).await;
            drop(first);
        };
        let ((), mut second) = tokio::join!(leaving, Endpoint::waiting(&cluster.nodes[1], "t"));
        // It was paired just before, and sees its partner go; or it waits, and gets another.
        let mut third = Endpoint::waiting(&cluster.nodes[0], "t").await;
        second.established().await;
        tokio::select! {
            code = second.close_code() => assert_eq!(code, 1001),
            message = third.message() => match message {
                Message::Text(_) => {
                    third.send(Message::text("hello")).await;
                    assert_eq!(second.text().await, "hello");
                }
                Message::Close(frame) => {
                    assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1008));
                }
                other => panic!("{other:?}"),
            },
        }
        drop((second, third));
        cluster.is_clean().await;
    }
}

#[tokio::test]
async fn a_drained_node_sends_its_clients_to_the_others() {
    let cluster = Cluster::start(2).await;
    let mut waiting = Endpoint::waiting(&cluster.nodes[0], "t").await;
    let (mut first, mut second) = tunnel(&cluster.nodes[0], &cluster.nodes[1], "standing").await;
    let draining = cluster.nodes[0].drain();
    let clients = async {
        waiting.closed_with(1001).await;
        let (mut one, mut other) = tunnel(&cluster.nodes[1], &cluster.nodes[1], "t").await;
        one.send(Message::text("elsewhere")).await;
        assert_eq!(other.text().await, "elsewhere");
        first.send(Message::text("still here")).await;
        assert_eq!(second.text().await, "still here");
        second.send(Message::Close(None)).await;
        first.closed_with(1000).await;
    };
    soon("the drain", async { tokio::join!(draining, clients) }).await;
}
