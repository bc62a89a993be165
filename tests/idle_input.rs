//! Input that is part of no request: a little of it is allowed, much of it ends a connection that
//! has no tunnel yet. What belongs to a request never reaches the other endpoint.

mod support;

use futures_util::SinkExt;
use nymea_remoteproxy::node::Node;
use support::stream::{Client, Stream, Way, authenticate, everywhere};
use support::{Endpoint, node_with, soon};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The largest request, and as much white space.
const LIMIT: usize = 10 * 1024;
const HELLO: &str = r#"{"id":1,"method":"RemoteProxy.Hello"}"#;

fn node() -> (Node, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    (node_with(|config| everywhere(config, &folder)), folder)
}

/// A text frame, or with `more` of a message that has begun.
fn frame(text: &str, more: bool, last: bool) -> Message {
    let kind = if more { Data::Continue } else { Data::Text };
    Message::Frame(Frame::message(text.to_owned(), OpCode::Data(kind), last))
}

/// Sends the same again and again, until the node has enough of it.
async fn flood(endpoint: &mut Endpoint, message: &Message, count: usize) {
    for _ in 0..count {
        if endpoint.ws.feed(message.clone()).await.is_err() {
            return;
        }
    }
    let _closed_already = soon("sending", endpoint.ws.flush()).await;
}

#[tokio::test]
async fn messages_without_a_request_end_a_connection() {
    let (node, _folder) = node();
    for text in ["", " ", "\r\n\t ", &" ".repeat(1000)] {
        let mut endpoint = Endpoint::connect(&node).await;
        let allowed = LIMIT / text.len().max(1);
        flood(&mut endpoint, &Message::text(text), allowed).await;
        endpoint.send(Message::text(HELLO)).await;
        assert_eq!(endpoint.json().await["id"], 1, "{allowed} blanks are not too much");
        flood(&mut endpoint, &Message::text(text), allowed + 1).await;
        endpoint.closed_with(1009).await;
    }
}

#[tokio::test]
async fn frames_without_data_end_a_connection() {
    let (node, _folder) = node();
    let pong = Message::Pong(Vec::new().into());
    for message in [Message::Ping(Vec::new().into()), pong, frame("", true, false)] {
        let mut endpoint = Endpoint::connect(&node).await;
        endpoint.send(frame(" ", false, false)).await;
        flood(&mut endpoint, &message, 2 * LIMIT).await;
        endpoint.closed_with(1008).await;
    }
}

#[tokio::test]
async fn white_space_without_a_request_ends_a_stream() {
    let (node, _folder) = node();
    for way in Way::STREAMS {
        let mut stream = Stream::connect(&node, way).await;
        stream.send(&[b'\n'; LIMIT]).await;
        stream.send(HELLO.as_bytes()).await;
        assert!(stream.line().await.expect("an answer").contains("success"));
        stream.send(&[b' '; LIMIT + 1]).await;
        assert_eq!(stream.rest().await.unwrap_or_default(), b"", "{way:?}");

        let mut waiting = Client::waiting(&node, way, r#""token":"t""#).await;
        waiting.send(&" ".repeat(LIMIT)).await;
        waiting.send("\n").await;
        waiting.ended(1009).await;
    }
}

#[tokio::test]
async fn the_rest_of_a_request_does_not_reach_the_partner() {
    let (node, _folder) = node();
    let params = r#""token":"t""#;
    let mut first = Endpoint::connect(&node).await;
    first.send(frame(&authenticate(params), false, false)).await;
    assert_eq!(first.json().await["status"], "success");
    first.send(frame("\n", true, false)).await;
    let mut second = Endpoint::waiting(&node, "t").await;
    first.established().await;
    second.established().await;
    for (text, last) in [("", false), (" \n", false), ("", true)] {
        first.send(frame(text, true, last)).await;
    }
    first.send(Message::text("data")).await;
    assert_eq!(second.text().await, "data");
}
