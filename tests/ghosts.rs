//! Entries that do not say what is so: an entry that Redis has lost, or one that nobody has any
//! more. Exactly two endpoints of a key have each other, and nobody is refused for a ghost.

mod support;

use std::time::Duration;

use nymea_remoteproxy::config::Secret;
use nymea_remoteproxy::node::{Node, Prepared};
use support::Endpoint;
use support::cluster::{Certificates, member};
use support::delay::SlowReplies;
use support::redis::{Server, until};
use tokio_tungstenite::tungstenite::Message;

/// Nodes of which the first gets Redis's replies late.
async fn nodes_with_a_slow_first<const N: usize>(
    redis: &Server,
    delay: Duration,
) -> (SlowReplies, [Node; N]) {
    let slow = SlowReplies::start(redis.port, delay).await;
    let certificates = Certificates::new();
    let nodes = std::array::from_fn(|index| {
        let mut config = member(redis, &certificates, &format!("node{}", index + 1));
        if index == 0 {
            config.redis.url = Some(Secret::new(slow.redis_url()));
        }
        Prepared::new(config).expect("valid settings").start().expect("free ports")
    });
    until("all have a lease", async || redis.nodes().await == N).await;
    (slow, nodes)
}

/// Whether the only entry is that of a tunnel.
async fn is_claimed(redis: &Server) -> bool {
    match &redis.pairs().await[..] {
        [pair] => redis.ask::<bool>(&["HEXISTS", pair, "claimer"]).await,
        _ => false,
    }
}

async fn talk(one: &mut Endpoint, other: &mut Endpoint) {
    one.send(Message::text("to the other")).await;
    assert_eq!(other.text().await, "to the other");
    other.send(Message::text("to the one")).await;
    assert_eq!(one.text().await, "to the one");
}

#[tokio::test]
async fn a_tunnel_whose_bridge_was_quicker_than_redis_is_known_to_its_node() {
    let redis = Server::start().await;
    let (_slow, [owner, claimer, third]) =
        nodes_with_a_slow_first(&redis, Duration::from_millis(400)).await;
    let mut first = Endpoint::waiting(&owner, "t").await;
    until("the entry", async || redis.pairs().await.len() == 1).await;
    let mut second = Endpoint::waiting(&claimer, "t").await;
    first.established().await;
    second.established().await;

    redis.ask::<()>(&["FLUSHALL"]).await;
    until("the tunnel is put back", async || is_claimed(&redis).await).await;
    for node in [&owner, &claimer, &third] {
        Endpoint::waiting(node, "t").await.closed_with(1008).await;
    }
    talk(&mut first, &mut second).await;
    first.leave().await;
    second.closed_with(1000).await;
    until("nothing is left", async || redis.pairs().await.is_empty()).await;
}
