//! What breaks besides the network: nodes that are killed or frozen, and Redis away, frozen,
//! demoted or moved. Nodes, Redis and sentinels are processes, with TLS between the nodes.
//!
//! Each test looks at established tunnels, at waiting endpoints and at new ones, all of which must
//! work again within a time, without intervention.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::time::Duration;

use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, until};
use cluster::endpoints::{Endpoint, tunnel, tunnel_between};
use cluster::{Cluster, pair, refused, talk, waits, within};
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;

/// What happens as soon as a process is gone. The rest is for slow machines.
const AT_ONCE: Duration = Duration::from_secs(3);
/// The lease of a node.
const LEASE: Duration = Duration::from_secs(10);
/// The lease, a call to a node that does not answer (3 s) and the pause after it (1 s), and some
/// time for slow machines.
const TAKEN_OVER: Duration = LEASE.saturating_add(Duration::from_secs(3 + 1 + 4));
/// How long a bridge without a sign of life is kept: an interval, and no less than a lease.
const SILENCE: Duration = Duration::from_secs(2 + 10 + 2);
/// How long it takes to be back after Redis is: the longest pause between two tries, and to put
/// everything up again.
const RECOVERED: Duration = Duration::from_secs(5);

/// The connection ends somehow, as its node has.
async fn cut(endpoint: &mut Endpoint) {
    while let Some(Ok(_)) = endpoint.next().await {}
}

#[tokio::test]
async fn a_killed_node_takes_nothing_with_it_but_its_own_endpoints() {
    let mut cluster = Cluster::<3>::start().await;
    let [a, b, c] = &mut cluster.nodes;
    let (mut gone, mut left_of_owner) = tunnel_between(a, b, "owner").await;
    let (mut left_of_claimer, _gone) = tunnel_between(b, a, "claimer").await;
    let _local = tunnel(a, "local").await;
    let mut waiting = Endpoint::waiting(a, "waiting").await;
    let (mut one, mut other) = tunnel_between(b, c, "of others").await;
    let mut elsewhere = Endpoint::waiting(c, "elsewhere").await;

    a.kill();
    within(AT_ONCE, "the ends of its tunnels", async {
        left_of_owner.closed_with(1001).await;
        left_of_claimer.closed_with(1001).await;
        cut(&mut gone).await;
        cut(&mut waiting).await;
    })
    .await;
    within(AT_ONCE, "a new tunnel", pair(b, c, "new")).await;
    within(AT_ONCE, "a key whose entry was not on it", pair(c, b, "claimer")).await;
    within(TAKEN_OVER, "its keys", async {
        tokio::join!(pair(b, c, "owner"), pair(c, b, "local"), pair(b, b, "waiting"))
    })
    .await;
    talk(&mut one, &mut other).await;
    refused(b, "of others").await;
    waits(&mut elsewhere).await;
    let mut partner = Endpoint::waiting(b, "elsewhere").await;
    elsewhere.established().await;
    partner.established().await;
}

#[tokio::test]
async fn a_frozen_node_that_wakes_up_does_not_believe_in_its_old_entries() {
    let cluster = Cluster::<3>::start().await;
    let [a, b, c] = &cluster.nodes;
    // So many that all connections between the two nodes are in use, which will be silent.
    let mut bridged = Vec::new();
    for number in 0..4 {
        bridged.push(tunnel_between(a, b, &format!("bridged {number}")).await);
    }
    let (mut local, mut local_other) = tunnel(a, "local").await;
    let mut lost = Endpoint::waiting(a, "lost").await;
    let mut met = Endpoint::waiting(a, "met").await;
    let mut kept = Endpoint::waiting(a, "kept").await;

    a.freeze();
    let others = async { tokio::join!(pair(b, c, "lost"), pair(b, c, "local")) };
    let ends = async {
        for (_, other) in &mut bridged {
            other.closed_with(1001).await;
        }
    };
    let mut met_by = Endpoint::waiting(b, "met").await;
    let (((mut one, mut other), (mut third, mut fourth)), ()) = tokio::join!(
        within(TAKEN_OVER, "its keys", others),
        within(SILENCE, "the ends of its tunnels", ends),
    );
    within(TAKEN_OVER, "its lease", until("", async || cluster.redis.nodes().await == 2)).await;
    waits(&mut met_by).await;

    a.thaw();
    within(RECOVERED, "the endpoints of the node that woke up", async {
        // Others have this key now.
        lost.closed_with(1008).await;
        met.established().await;
        met_by.established().await;
        for (first, _) in &mut bridged {
            first.closed_with(1001).await;
        }
    })
    .await;
    talk(&mut met, &mut met_by).await;
    talk(&mut one, &mut other).await;
    talk(&mut third, &mut fourth).await;
    talk(&mut local, &mut local_other).await;
    waits(&mut kept).await;
    let mut kept_by = Endpoint::waiting(c, "kept").await;
    within(RECOVERED, "a partner for who waits", async {
        kept.established().await;
        kept_by.established().await;
    })
    .await;
    talk(&mut kept, &mut kept_by).await;
    within(RECOVERED, "new tunnels", pair(a, b, "new")).await;
}

#[tokio::test]
async fn a_short_freeze_is_only_a_delay() {
    let cluster = Cluster::<2>::start().await;
    let [a, b] = &cluster.nodes;
    let mut standing = Vec::new();
    for number in 0..4 {
        standing.push(tunnel_between(a, b, &format!("standing {number}")).await);
    }
    let mut left_alone = Endpoint::waiting(a, "left alone").await;
    let mut met = Endpoint::waiting(a, "met").await;

    a.freeze();
    let mut met_by = Endpoint::waiting(b, "met").await;
    // Requests its partner over an open connection, and does not wait for the answer.
    let mut gone = Endpoint::waiting(b, "left alone").await;
    waits(&mut gone).await;
    drop(gone);
    waits(&mut met_by).await;

    a.thaw();
    within(RECOVERED, "the two that have waited", async {
        met.established().await;
        met_by.established().await;
    })
    .await;
    talk(&mut met, &mut met_by).await;
    for (first, second) in &mut standing {
        talk(first, second).await;
    }
    waits(&mut left_alone).await;
    let mut partner = Endpoint::waiting(b, "left alone").await;
    left_alone.established().await;
    partner.established().await;
    talk(&mut left_alone, &mut partner).await;
}

#[tokio::test]
async fn redis_may_be_killed_and_come_back_empty() {
    let mut cluster = Cluster::<2>::start().await;
    let [a, b] = &cluster.nodes;
    let (mut first, mut second) = tunnel_between(a, b, "bridged").await;
    let (mut one, mut other) = tunnel(a, "local").await;
    let mut before = Endpoint::waiting(a, "before").await;

    cluster.redis.kill();
    let mut meanwhile = Endpoint::waiting(b, "meanwhile").await;
    let (mut left, mut right) =
        (Endpoint::waiting(a, "apart").await, Endpoint::waiting(b, "apart").await);
    talk(&mut first, &mut second).await;
    talk(&mut one, &mut other).await;
    within(AT_ONCE, "a tunnel of one node", pair(a, a, "together")).await;
    for endpoint in [&mut before, &mut meanwhile, &mut left, &mut right] {
        waits(endpoint).await;
    }

    cluster.redis.restart().await;
    within(RECOVERED, "the two that wait on two nodes", async {
        left.established().await;
        right.established().await;
    })
    .await;
    talk(&mut left, &mut right).await;
    within(RECOVERED, "partners for those that waited", async {
        let nodes = [(b, "before", &mut before), (a, "meanwhile", &mut meanwhile)];
        for (node, token, endpoint) in nodes {
            let mut partner = Endpoint::waiting(node, token).await;
            endpoint.established().await;
            partner.established().await;
            talk(endpoint, &mut partner).await;
        }
    })
    .await;
    for node in [a, b] {
        for token in ["bridged", "local", "apart"] {
            refused(node, token).await;
        }
    }
    talk(&mut first, &mut second).await;
    talk(&mut one, &mut other).await;
}

#[tokio::test]
async fn redis_may_be_frozen() {
    let cluster = Cluster::<2>::start().await;
    let [a, b] = &cluster.nodes;
    let (mut first, mut second) = tunnel_between(a, b, "bridged").await;
    let (mut one, mut other) = tunnel(a, "local").await;
    let mut before = Endpoint::waiting(a, "before").await;

    cluster.redis.freeze();
    let thaw_at = tokio::time::Instant::now() + LEASE;
    let (mut left, mut right) =
        (Endpoint::waiting(a, "apart").await, Endpoint::waiting(b, "apart").await);
    within(Duration::from_secs(5), "a tunnel of one node", pair(b, b, "together")).await;
    within(LEASE, "unready", async {
        for node in [a, b] {
            until("unready", async || !node.is_ready().await).await;
        }
    })
    .await;
    talk(&mut first, &mut second).await;
    talk(&mut one, &mut other).await;
    tokio::time::sleep_until(thaw_at).await;
    for endpoint in [&mut before, &mut left, &mut right] {
        waits(endpoint).await;
    }

    cluster.redis.thaw();
    let mut partner = Endpoint::waiting(b, "before").await;
    within(RECOVERED, "those that waited", async {
        left.established().await;
        right.established().await;
        before.established().await;
        partner.established().await;
        for node in [a, b] {
            until("ready", async || node.is_ready().await).await;
        }
    })
    .await;
    talk(&mut left, &mut right).await;
    talk(&mut before, &mut partner).await;
    talk(&mut first, &mut second).await;
    talk(&mut one, &mut other).await;
    for node in [a, b] {
        for token in ["bridged", "local", "apart", "before"] {
            refused(node, token).await;
        }
    }
}

#[tokio::test]
async fn redis_may_be_demoted_for_a_while() {
    let cluster = Cluster::<2>::start().await;
    let [a, b] = &cluster.nodes;
    let (mut first, mut second) = tunnel_between(a, b, "bridged").await;
    let mut before = Endpoint::waiting(a, "before").await;

    let other = Server::start().await;
    let port = other.port.to_string();
    cluster.redis.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    let (mut left, mut right) =
        (Endpoint::waiting(a, "apart").await, Endpoint::waiting(b, "apart").await);
    within(SILENCE, "unready", async {
        for node in [a, b] {
            until("unready", async || !node.is_ready().await).await;
        }
    })
    .await;
    within(AT_ONCE, "a tunnel of one node", pair(a, a, "together")).await;
    talk(&mut first, &mut second).await;
    for endpoint in [&mut before, &mut left, &mut right] {
        waits(endpoint).await;
    }

    cluster.redis.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    within(RECOVERED, "those that waited", async {
        left.established().await;
        right.established().await;
        let mut partner = Endpoint::waiting(b, "before").await;
        before.established().await;
        partner.established().await;
        for node in [a, b] {
            until("ready", async || node.is_ready().await).await;
        }
    })
    .await;
    talk(&mut left, &mut right).await;
    talk(&mut first, &mut second).await;
    for node in [a, b] {
        for token in ["bridged", "apart"] {
            refused(node, token).await;
        }
    }
}

#[tokio::test]
async fn sentinels_may_choose_another_redis() {
    let mut master = Server::start().await;
    let replica = Server::replica(master.port).await;
    let sentinel = Server::sentinel(master.port).await;
    let settings = [("SENTINELS", sentinel.url()), ("SENTINEL_MASTER", "main".into())];
    let certificates = Certificates::new();
    let [a, b] = &cluster::members(&certificates, &settings);
    for node in [a, b] {
        until("the node is ready", async || node.is_ready().await).await;
    }
    let (mut first, mut second) = tunnel_between(a, b, "bridged").await;
    let mut before = Endpoint::waiting(a, "before").await;

    master.kill();
    let (mut left, mut right) =
        (Endpoint::waiting(a, "apart").await, Endpoint::waiting(b, "apart").await);
    within(SILENCE, "those that came meanwhile", async {
        left.established().await;
        right.established().await;
    })
    .await;
    assert_eq!(replica.nodes().await, 2);
    within(RECOVERED, "a partner for the one that waited", async {
        let mut partner = Endpoint::waiting(b, "before").await;
        before.established().await;
        partner.established().await;
        talk(&mut before, &mut partner).await;
    })
    .await;
    talk(&mut left, &mut right).await;
    talk(&mut first, &mut second).await;
    for node in [a, b] {
        refused(node, "bridged").await;
        assert!(node.is_ready().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_costs_two_nodes_bounded_memory() {
    const MESSAGE: usize = 64 * 1024;
    const LIMIT: u64 = 32 * 1024;
    let cluster = Cluster::<2>::start().await;
    let [a, b] = &cluster.nodes;
    let (mut writer, mut reader) = tunnel_between(a, b, "stalled").await;
    talk(&mut writer, &mut reader).await;
    let before = [a.process.resident(), b.process.resident()];
    let numbered = |number| Message::binary(cluster::endpoints::pattern(number, MESSAGE));
    let mut sent = 0;
    while let Ok(done) = tokio::time::timeout(AT_ONCE / 3, writer.ws.send(numbered(sent))).await {
        done.expect("open");
        sent += 1;
        assert!(sent < 4096, "256 MiB were taken for a reader that reads nothing");
    }
    for (node, before) in [a, b].into_iter().zip(before) {
        let grown = node.process.resident().saturating_sub(before);
        assert!(grown < LIMIT, "{grown} KiB more for {sent} messages of 64 KiB");
    }
    let rest = tokio::spawn(async move {
        writer.ws.flush().await.expect("open");
        writer
    });
    for number in 0..=sent {
        assert!(reader.message().await == numbered(number), "message {number}");
    }
    let mut writer = rest.await.expect("no panic");
    talk(&mut writer, &mut reader).await;
}
