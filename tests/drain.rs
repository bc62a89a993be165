//! How a node goes away without hurting those who are connected.

mod support;

use std::time::Duration;

use support::{Endpoint, node, node_with, soon, tunnel};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn waiting_endpoints_are_sent_away_and_tunnels_go_on() {
    let node = node();
    let mut greeting = Endpoint::connect(&node).await;
    let mut waiting = Endpoint::waiting(&node, "alone").await;
    let (mut first, mut second) = tunnel(&node, "t").await;
    let drain = node.drain();
    let clients = async {
        greeting.closed_with(1001).await;
        waiting.closed_with(1001).await;
        assert!(
            TcpStream::connect(support::Listening::address(&node)).await.is_err(),
            "nobody listens any more"
        );
        first.send(Message::text("still here")).await;
        assert_eq!(second.text().await, "still here");
        second.send(Message::Close(None)).await;
        first.closed_with(1000).await;
    };
    soon("the last tunnel to end", async { tokio::join!(drain, clients) }).await;
}

#[tokio::test]
async fn tunnels_end_when_the_grace_is_over() {
    let node = node_with(|config| config.drain.grace = Duration::from_millis(100));
    let (mut first, mut second) = tunnel(&node, "t").await;
    let clients = async {
        first.closed_with(1001).await;
        second.closed_with(1001).await;
    };
    soon("the end", async { tokio::join!(node.drain(), clients) }).await;
}
