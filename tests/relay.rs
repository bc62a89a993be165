//! What a tunnel carries and how it ends (`src/protocol/README.md`, section 6), over real TLS
//! WebSockets.

mod support;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use support::{Endpoint, node, node_with, pattern, soon, tunnel};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

#[tokio::test]
async fn messages_arrive_as_they_were_sent() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    let messages = [
        Message::text(""),
        Message::binary(vec![]),
        Message::text("{\"id\":1}"),
        Message::text("zwölf Boxkämpfer\n"),
        Message::binary((0..=255).collect::<Vec<u8>>()),
        Message::text("ä".repeat(70_000)),
        Message::binary(pattern(1, 64 * 1024)),
        Message::binary(pattern(2, 64 * 1024 + 1)),
        Message::binary(pattern(3, 3_000_000)),
        Message::text("the end"),
    ];
    for message in &messages {
        first.ws.feed(message.clone()).await.expect("taken");
        second.ws.feed(message.clone()).await.expect("taken");
    }
    let (a, b) = tokio::join!(drive(first, messages.len()), drive(second, messages.len()));
    for (at, expected) in messages.iter().enumerate() {
        assert!(a[at] == *expected && b[at] == *expected, "message {at} differs");
    }
}

/// Flushes and receives at the same time.
async fn drive(endpoint: Endpoint, count: usize) -> Vec<Message> {
    let (mut sink, stream) = endpoint.ws.split();
    let received = stream.take(count).map(|message| message.expect("open")).collect();
    let (flushed, received) =
        soon("all messages", async { tokio::join!(sink.flush(), received) }).await;
    flushed.expect("open");
    received
}

#[tokio::test]
async fn fragments_make_one_message() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    let fragment = |data: &'static [u8], opcode, last| {
        Message::Frame(Frame::message(data, OpCode::Data(opcode), last))
    };
    // A code point split over frames, a ping in between.
    first.send(fragment(b"\xC3", Data::Text, false)).await;
    first.send(Message::Ping(b""[..].into())).await;
    first.send(fragment(b"", Data::Continue, false)).await;
    first.send(fragment(b"\xA4", Data::Continue, true)).await;
    assert_eq!(second.message().await, Message::text("ä"));
}

#[tokio::test]
async fn the_largest_message_passes_and_a_larger_one_is_1009() {
    let limit = 300_000;
    let node = node_with(|config| config.limits.message_size = limit);
    let (mut first, mut second) = tunnel(&node, "t").await;
    let largest = Message::binary(pattern(4, limit));
    first.send(largest.clone()).await;
    assert!(second.message().await == largest);
    first.send(Message::text("before")).await;
    first.send(Message::binary(pattern(5, limit + 1))).await;
    first.closed_with(1009).await;
    assert_eq!(second.text().await, "before");
    second.closed_with(1001).await;
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_1007() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    first.send(Message::Frame(Frame::message(&b"\xFF"[..], OpCode::Data(Data::Text), true))).await;
    first.closed_with(1007).await;
    second.closed_with(1001).await;
}

#[tokio::test]
async fn what_was_sent_before_leaving_arrives() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    // More than fits into the buffers, so that the close frame arrives long before the end.
    let parts: Vec<_> = (0..64).map(|seed| pattern(seed, 200_000)).collect();
    let sent = parts.clone();
    let leaving = tokio::spawn(async move {
        for part in sent {
            first.send(Message::binary(part)).await;
        }
        first.send(Message::Close(None)).await;
        while let Some(Ok(_)) = first.next().await {}
    });
    for part in parts {
        assert!(second.message().await.into_data() == part);
    }
    second.closed_with(1000).await;
    soon("the goodbye", leaving).await.expect("no panic");
}

#[tokio::test]
async fn an_endpoint_that_leaves_does_not_wait_for_one_that_floods() {
    let node = node();
    let (mut first, second) = tunnel(&node, "t").await;
    let (mut sink, mut stream) = second.ws.split();
    let flood = tokio::spawn(async move {
        let message = Message::binary(pattern(6, 100_000));
        while sink.send(message.clone()).await.is_ok() {}
    });
    first.message().await;
    first.send(Message::Close(None)).await;
    soon("the flood to end", async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Close(frame))) => {
                    assert_eq!(frame.map(|frame| frame.code), Some(CloseCode::Normal));
                    break;
                }
                Some(Ok(_)) => {}
                other => panic!("no close: {other:?}"),
            }
        }
        flood.await.expect("no panic");
    })
    .await;
}

#[tokio::test]
async fn each_way_to_leave_has_its_code() {
    let node = node();
    for (goodbye, code) in [
        (Some(CloseCode::Normal), 1000),
        (Some(CloseCode::Away), 1000),
        (Some(CloseCode::Error), 1001),
    ] {
        let (mut first, mut second) = tunnel(&node, "t").await;
        let frame = goodbye.map(|code| CloseFrame { code, reason: "".into() });
        first.send(Message::Close(frame)).await;
        // The close is answered, and the other endpoint is closed.
        assert!(matches!(first.message().await, Message::Close(_)));
        second.closed_with(code).await;
    }
    // Without a word.
    let (first, mut second) = tunnel(&node, "t").await;
    drop(first);
    second.closed_with(1001).await;
}

#[tokio::test]
async fn a_slow_reader_slows_its_writer_and_loses_nothing() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    let mut sent = 0_u64;
    // Until the way is full: what does not stop this would go on for ever.
    while timeout(Duration::from_secs(1), first.ws.send(numbered(sent))).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "64 MB were taken for a reader that reads nothing");
    }
    // The message that was being sent when it stopped is in the client's buffer.
    let (mut sink, _stream) = first.ws.split();
    let rest = tokio::spawn(async move { sink.flush().await });
    for number in 0..=sent {
        assert!(second.message().await == numbered(number), "message {number}");
    }
    soon("flushing", rest).await.expect("no panic").expect("open");
}

fn numbered(number: u64) -> Message {
    Message::binary(pattern(number, 64_000))
}

#[tokio::test]
async fn a_stalled_reader_is_closed_in_the_end() {
    let node = node_with(|config| {
        config.timeouts.stalled = Duration::from_millis(300);
        config.timeouts.close = Duration::from_millis(300);
    });
    let (mut first, second) = tunnel(&node, "t").await;
    let flood = async {
        let message = Message::binary(pattern(7, 100_000));
        while first.ws.send(message.clone()).await.is_ok() {}
    };
    soon("the writer to be released", flood).await;
    drop(second);
}

#[tokio::test]
async fn silent_endpoints_are_pinged_and_then_given_up() {
    let node = node_with(|config| config.keepalive.interval = Duration::from_millis(100));
    let (mut first, second) = tunnel(&node, "t").await;
    // Reading is what answers pings here: the second one never reads.
    soon("a ping", async { while !matches!(first.ws.next().await, Some(Ok(Message::Ping(_)))) {} })
        .await;
    first.closed_with(1001).await;
    drop(second);
}

#[tokio::test]
async fn endpoints_that_answer_pings_stay() {
    let node = node_with(|config| config.keepalive.interval = Duration::from_millis(50));
    let (mut first, mut second) = tunnel(&node, "t").await;
    let mut pings = 0;
    soon("pings", async {
        while pings < 10 {
            tokio::select! {
                message = first.ws.next() => {
                    pings += usize::from(matches!(message, Some(Ok(Message::Ping(_)))));
                    assert!(matches!(message, Some(Ok(_))), "{message:?}");
                }
                message = second.ws.next() => assert!(matches!(message, Some(Ok(_)))),
            }
        }
    })
    .await;
    first.send(Message::text("still here")).await;
    assert_eq!(second.text().await, "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tunnels_at_once_do_not_mix() {
    let node = std::sync::Arc::new(node());
    let tasks: Vec<_> = (0..200_u64)
        .map(|number| {
            let node = std::sync::Arc::clone(&node);
            tokio::spawn(async move {
                let (first, second) = tunnel(&*node, &format!("token {number}")).await;
                tokio::join!(
                    exchange(first, number, number + 1000),
                    exchange(second, number + 1000, number)
                );
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("content as sent");
    }
}

/// Sends the messages of one seed and expects those of the other.
async fn exchange(endpoint: Endpoint, mine: u64, theirs: u64) {
    const MESSAGES: u64 = 20;
    let message = |seed: u64, number: u64| {
        let length = 1 + (seed * 37 + number * 911) % 20_000;
        Message::binary(pattern(seed * MESSAGES + number, usize::try_from(length).expect("small")))
    };
    let (mut sink, mut stream) = endpoint.ws.split();
    let send = async {
        for number in 0..MESSAGES {
            sink.send(message(mine, number)).await.expect("open");
        }
    };
    let receive = async {
        for number in 0..MESSAGES {
            let received = stream.next().await.expect("open").expect("open");
            assert!(received == message(theirs, number), "message {number} of {theirs}");
        }
    };
    soon("the exchange", async { tokio::join!(send, receive) }).await;
}
