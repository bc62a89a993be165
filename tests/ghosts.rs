//! Stale entries: one that Redis has lost, or one without an endpoint. Exactly two endpoints of a key
//! are paired, and no endpoint is refused because of a stale entry.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nymea_remoteproxy::config::{Config, Secret};
use nymea_remoteproxy::node::{Node, Prepared};
use nymea_remoteproxy::rendezvous::redis::{Pace, RedisRendezvous};
use nymea_remoteproxy::rendezvous::{
    Answer, Directory, Home, Offer, Registered, Registration, Rendezvous, Role, Waiting,
};
use support::cluster::{Certificates, Cluster, member};
use support::delay::SlowReplies;
use support::redis::{Server, ask, join_with, offer, quick, remote, settings, until, up};
use support::tunnel_proxy::{Gateway, app, try_app};
use support::{Endpoint, soon, tunnel_between};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

/// How long it may take until an entry of a ghost is out of the way, on a slow machine. Nothing is
/// waited for that takes as long.
const AT_ONCE: Duration = Duration::from_secs(4);

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

/// All entries as they are in Redis, to be put back later.
async fn entries(redis: &Server) -> BTreeMap<String, Vec<String>> {
    let mut entries = BTreeMap::new();
    for key in redis.keys().await {
        if key.contains("pair:") || key.contains("uuid:") {
            entries.insert(key.clone(), redis.ask(&["HGETALL", &key]).await);
        }
    }
    entries
}

/// As after a failover in which the last writes were lost.
async fn bring_back(redis: &Server, entries: &BTreeMap<String, Vec<String>>) {
    for (key, fields) in entries {
        let mut command = vec!["HSET", key];
        command.extend(fields.iter().map(String::as_str));
        redis.ask::<i64>(&command).await;
        redis.ask::<i64>(&["EXPIRE", key, "86400"]).await;
    }
}

/// Two endpoints come once each, and have each other soon.
async fn meet(one: &Node, other: &Node, token: &str) {
    let meeting = async {
        let mut first = Endpoint::waiting(one, token).await;
        let mut second = Endpoint::waiting(other, token).await;
        first.established().await;
        second.established().await;
        talk(&mut first, &mut second).await;
    };
    timeout(AT_ONCE, meeting).await.unwrap_or_else(|_| panic!("{token}: not in {AT_ONCE:?}"));
}

#[tokio::test]
async fn nobody_is_refused_for_an_entry_whose_release_redis_has_lost() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut waiting = Endpoint::waiting(a, "waiting").await;
    let mut pairs = Vec::new();
    for (token, one, other) in
        [("local", a, a), ("bridged", a, b), ("far", a, b), ("to the owner", a, b)]
    {
        pairs.push(tunnel_between(one, other, token).await);
    }
    let stale = entries(&cluster.redis).await;
    assert_eq!(stale.len(), 5);
    waiting.leave().await;
    for (one, other) in &mut pairs {
        one.leave().await;
        other.closed_with(1000).await;
    }
    cluster.is_clean().await;
    bring_back(&cluster.redis, &stale).await;

    let nodes = [
        ("waiting", b, c),
        ("local", b, c),
        ("bridged", c, b),
        ("far", c, c),
        ("to the owner", b, a),
    ];
    for (token, one, other) in nodes {
        meet(one, other, token).await;
    }
    cluster.is_clean().await;
}

#[tokio::test]
async fn a_claim_that_nobody_follows_keeps_nobody_from_the_one_that_waits() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    for (token, node) in [("on another node", b), ("on its own node", a), ("on a third", c)] {
        let mut first = Endpoint::waiting(a, token).await;
        until("the entry", async || cluster.redis.pairs().await.len() == 1).await;
        let entry = cluster.redis.pairs().await.remove(0);
        let node2 = cluster.redis.keys().await.into_iter().find(|key| key.contains("node:node2-"));
        let node2 = node2.expect("a lease");
        let node2 = node2.rsplit("node:").next().expect("an id");
        let claimer = Uuid::new_v4().simple().to_string();
        let claim = ["HSET", &entry, "claimer", &claimer, "claimer_node", node2];
        cluster.redis.ask::<i64>(&claim).await;
        let mut second = Endpoint::waiting(node, token).await;
        let meeting = async {
            first.established().await;
            second.established().await;
        };
        timeout(AT_ONCE, meeting).await.unwrap_or_else(|_| panic!("{token}: not in {AT_ONCE:?}"));
        talk(&mut first, &mut second).await;
        first.leave().await;
        second.closed_with(1000).await;
        cluster.is_clean().await;
    }
}

#[tokio::test]
async fn a_uuid_is_free_whose_release_redis_has_lost() {
    let cluster = Cluster::start(2).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut gateway = Gateway::register(a, 1).await;
    let mut attached = app(a, 2, 1).await;
    gateway.connected().await;
    let stale = entries(&cluster.redis).await;
    assert_eq!(stale.len(), 2);
    gateway.endpoint.leave().await;
    attached.closed_with(1000).await;
    let no_entry = async || entries(&cluster.redis).await.is_empty();
    until("no entry is left", no_entry).await;
    bring_back(&cluster.redis, &stale).await;

    let registering = async {
        let mut gateway = Gateway::register(b, 1).await;
        let _attached = app(b, 2, 1).await;
        gateway.connected().await;
    };
    timeout(AT_ONCE, registering).await.expect("in time");
}

#[tokio::test]
async fn a_third_is_refused_by_the_node_of_the_tunnel_whoever_is_asked() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    let (mut first, mut second) = tunnel_between(a, b, "t").await;
    for node in [a, b, c] {
        let refused = async { Endpoint::waiting(node, "t").await.closed_with(1008).await };
        timeout(AT_ONCE, refused).await.expect("in time");
    }
    talk(&mut first, &mut second).await;
}

#[tokio::test]
async fn entries_that_redis_loses_one_by_one_are_put_back_by_real_nodes() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut waiting = Endpoint::waiting(a, "waiting").await;
    let (mut first, mut second) = tunnel_between(a, b, "tunnel").await;
    let mut gateway = Gateway::register(a, 1).await;
    let lost = entries(&cluster.redis).await;
    assert_eq!(lost.len(), 3);
    for key in lost.keys() {
        cluster.redis.ask::<i64>(&["DEL", key]).await;
    }
    // Its partner finds the key free, and a third endpoint of the tunnel does, too.
    let mut partner = Endpoint::waiting(b, "waiting").await;
    let mut third = Endpoint::waiting(c, "tunnel").await;
    let found = async {
        waiting.established().await;
        partner.established().await;
        third.closed_with(1008).await;
        while try_app(b, 2, 1).await.1 != "TunnelProxyErrorNoError" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        gateway.connected().await;
    };
    soon("all that was lost", found).await;
    talk(&mut waiting, &mut partner).await;
    Endpoint::waiting(b, "tunnel").await.closed_with(1008).await;
    talk(&mut first, &mut second).await;
}

/// A node in a runtime of its own, with which it ends as a killed process does.
fn mortal(config: Config) -> (Runtime, Node) {
    let runtime = Runtime::new().expect("a runtime");
    let guard = runtime.enter();
    let node = Prepared::new(config).expect("valid settings").start().expect("free ports");
    drop(guard);
    (runtime, node)
}

#[tokio::test]
async fn a_node_restarted_in_the_place_of_a_dead_one_does_not_answer_for_it() {
    let cluster = Cluster::start(2).await;
    let [b, c] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut config = member(&cluster.redis, &cluster.certificates, "dying");
    let (runtime, dying) = mortal(config.clone());
    let mut first = Endpoint::waiting(&dying, "t").await;
    let mut second = Endpoint::waiting(&dying, "t").await;
    first.established().await;
    second.established().await;
    until("the tunnel", async || is_claimed(&cluster.redis).await).await;
    config.bridge.listen = dying.bridge_addr().expect("a bridge");
    runtime.shutdown_background();
    drop(dying);
    until("the address is free", async || {
        std::net::TcpListener::bind(config.bridge.listen).is_ok()
    })
    .await;
    let _in_its_place = Prepared::new(config).expect("valid").start().expect("free ports");
    // Its lease has 7 s left at least, and is late after 3.5 s at most.
    let meeting = async {
        let mut first = Endpoint::waiting(b, "t").await;
        let mut second = Endpoint::waiting(c, "t").await;
        first.established().await;
        second.established().await;
    };
    timeout(Duration::from_secs(7), meeting).await.expect("in time");
}

fn pace() -> Pace {
    Pace { verify: Duration::from_millis(400), ..quick() }
}

async fn node(server: &Server, name: &str) -> Arc<RedisRendezvous> {
    let node = join_with(&settings(&server.url()), name, pace());
    up(&node).await;
    node
}

fn there(offer: Offer, node: &str) -> Answer {
    let home = Home::There { node: remote(node), secret: offer.secret, trace: offer.trace };
    Answer::Claimed(Waiting { id: offer.id, home })
}

#[tokio::test]
async fn the_session_of_a_waiting_endpoint_learns_that_its_entry_alone_is_lost() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let (lost, kept, other) = (offer("lost"), offer("kept"), offer("lost"));
    for offer in [lost, kept] {
        assert_eq!(ask(&a, offer).await, Answer::Wait);
    }
    let (loses, keeps) = (a.lost(lost, a.epoch()), a.lost(kept, a.epoch()));
    let key = entry_of(&server, lost).await;
    server.ask::<i64>(&["DEL", &key]).await;
    assert_eq!(
        ask(&b, other).await,
        Answer::Wait,
        "found free, which only the node of the other can see"
    );
    soon("the loss", loses).await;
    assert_eq!(ask(&a, lost).await, there(other, "b"));
    assert!(timeout(pace().verify * 3, keeps).await.is_err());
}

async fn entry_of(server: &Server, offer: Offer) -> String {
    for key in server.pairs().await {
        if server.ask::<String>(&["HGET", &key, "offer"]).await == offer.id.to_string() {
            return key;
        }
    }
    panic!("no entry");
}

#[tokio::test]
async fn a_tunnel_whose_entry_alone_is_lost_gets_it_back_from_whoever_waits_there() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let (local, bridged) = (offer("local"), offer("bridged"));
    assert_eq!(ask(&a, local).await, Answer::Wait);
    assert!(matches!(ask(&a, offer("local")).await, Answer::Claimed(_)));
    assert_eq!(ask(&a, bridged).await, Answer::Wait);
    assert_eq!(ask(&b, offer("bridged")).await, there(bridged, "a"));
    assert!(a.stands(bridged));
    let owners = async || {
        let mut owners = Vec::new();
        for key in server.pairs().await {
            let owner: Option<String> = server.ask(&["HGET", &key, "offer"]).await;
            let claimer: Option<String> = server.ask(&["HGET", &key, "claimer"]).await;
            owners.extend(owner.filter(|_| claimer.is_some()));
        }
        owners.sort();
        owners
    };
    let mut both = vec![local.id.to_string(), bridged.id.to_string()];
    both.sort();
    until("both stand", async || owners().await == both).await;
    for key in server.pairs().await {
        server.ask::<i64>(&["DEL", &key]).await;
    }
    let third = offer("bridged");
    assert_eq!(ask(&b, third).await, Answer::Wait);
    let gives_way = b.lost(third, b.epoch());
    until("both are put back", async || owners().await == both).await;
    soon("the third learns that", gives_way).await;
    assert_eq!(ask(&b, third).await, Answer::Taken);
    assert_eq!(ask(&b, offer("local")).await, Answer::Taken);
}

#[tokio::test]
async fn a_registration_whose_entry_alone_is_lost_is_put_back() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let gateway = Registration::new(Uuid::from_u128(1), Role::Gateway);
    let registered = Arc::clone(&a).register(gateway).await.expect("Redis is there");
    let Registered::Yes { lost } = registered else { panic!("{registered:?}") };
    let keys = server.keys().await;
    let key = keys.iter().find(|key| key.contains("uuid:")).expect("an entry");
    server.ask::<i64>(&["DEL", key]).await;
    until("it is found again", async || {
        Arc::clone(&b).find_gateway(gateway.uuid).await.expect("Redis is there").is_some()
    })
    .await;
    assert!(!lost.is_cancelled());
}
