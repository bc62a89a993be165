//! The server changes below a connection that stays: another master, a master that has lost its
//! data, a connection that has a successor.

mod support;

use std::time::{Duration, Instant};

use nymea_remoteproxy::config::{self, Secret};
use nymea_remoteproxy::observability::EventKind;
use nymea_remoteproxy::rendezvous::{Answer, Home, Rendezvous, Waiting};
use support::delay::SlowReplies;
use support::held_back::HeldBack;
use support::redis::{
    Server, ask, away, cluster, events, join, join_observed, offer, quick, quick_settings,
    settings, until, up,
};
use support::soon;
use tokio::time::sleep;

fn watched(sentinel: &Server) -> config::Redis {
    config::Redis {
        sentinels: vec![Secret::new(sentinel.url())],
        sentinel_master: Some("main".into()),
        ..quick_settings()
    }
}

#[tokio::test]
async fn nodes_follow_a_planned_failover_at_once() {
    let master = Server::start().await;
    let replica = Server::replica(master.port).await;
    let sentinel = Server::sentinel(master.port).await;
    let (at, telemetry) = join_observed(&watched(&sentinel), "a");
    up(&at).await;
    let waiting = offer("waiting");
    assert_eq!(ask(&at, waiting).await, Answer::Wait);
    let mut epoch = at.epoch();
    epoch.mark_unchanged();

    let failover = ["SENTINEL", "FAILOVER", "main"];
    until("a failover", async || sentinel.try_ask::<()>(&failover).await.is_some()).await;
    until("another master", async || {
        let place: (String, u16) =
            sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]).await;
        place.1 == replica.port
    })
    .await;
    let named = Instant::now();
    // A node that starts now is on the new master, and so must be the other one.
    let newcomer = join(&watched(&sentinel), "b");
    up(&newcomer).await;
    soon("a new epoch", epoch.changed()).await.expect("a keeper");
    assert_eq!(ask(&at, waiting).await, Answer::Wait);
    let met = ask(&newcomer, offer("waiting")).await;
    assert!(matches!(met, Answer::Claimed(Waiting { id, .. }) if id == waiting.id), "{met:?}");
    let after = named.elapsed();
    // Sentinel demotes the old master up to ten seconds later, which does not matter any more.
    assert!(after < Duration::from_secs(4), "{after:?}");
    assert_eq!(events(&telemetry, EventKind::Trouble), [""; 0]);
}

#[tokio::test]
async fn another_address_of_the_same_master_is_no_failover() {
    let master = Server::start().await;
    let by_another_way = SlowReplies::start(master.port, Duration::ZERO).await;
    let sentinel = Server::stray_sentinel(master.port).await;
    let (at, telemetry) = join_observed(&watched(&sentinel), "a");
    up(&at).await;
    assert_eq!(ask(&at, offer("t")).await, Answer::Wait);
    let mut epoch = at.epoch();
    epoch.mark_unchanged();
    let port = by_another_way.address.port().to_string();
    sentinel.ask::<()>(&["SENTINEL", "REMOVE", "main"]).await;
    sentinel.ask::<()>(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]).await;
    sleep(quick().refresh * 4).await;
    assert_eq!(events(&telemetry, EventKind::Trouble), [""; 0]);
    assert!(!epoch.has_changed().expect("a keeper"), "nothing is lost");
    assert!(matches!(ask(&at, offer("t")).await, Answer::Claimed(_)));
}

#[tokio::test]
async fn most_sentinels_are_believed() {
    let master = Server::start().await;
    let replica = Server::replica(master.port).await;
    let sentinel = Server::sentinel(master.port).await;
    let other = Server::start().await;
    // Cut off from the rest, the first one knows another master.
    let stale = Server::stray_sentinel(other.port).await;
    let mut settings = watched(&stale);
    settings.sentinels.extend([&sentinel, &sentinel].map(|it| Secret::new(it.url())));
    let at = join(&settings, "a");
    up(&at).await;
    assert_eq!(ask(&at, offer("t")).await, Answer::Wait);
    sleep(quick().refresh * 3).await;
    assert_eq!(master.pairs().await.len(), 1);
    assert!(other.keys().await.is_empty());
    drop(replica);
}

#[tokio::test]
async fn a_master_of_a_redis_cluster_that_restarts_empty_gets_its_entries_again() {
    let mut servers = cluster().await;
    let urls = servers.iter().map(|server| Secret::new(server.url())).collect();
    let at = join(&config::Redis { cluster: urls, ..quick_settings() }, "a");
    up(&at).await;
    for number in 0..20 {
        let (first, second) = (offer(&format!("t{number}")), offer(&format!("t{number}")));
        assert_eq!(ask(&at, first).await, Answer::Wait);
        let met = ask(&at, second).await;
        let here = Waiting { id: first.id, home: Home::Here };
        assert_eq!(met, Answer::Claimed(here));
    }
    sleep(quick().refresh * 2).await;
    let mut without_lease = None;
    for (index, server) in servers.iter().enumerate() {
        if server.nodes().await == 0 {
            without_lease = Some(index);
        }
    }
    let server = &mut servers[without_lease.expect("one of three has the lease")];
    let before = server.pairs().await.len();
    assert!(before > 0);
    server.kill();
    server.restart().await;
    until("its tunnels are there again", async || server.pairs().await.len() == before).await;
}

#[tokio::test]
async fn what_an_old_connection_still_had_under_way_does_not_happen() {
    let server = Server::start().await;
    let network = HeldBack::to(server.port).await;
    let at = join(&settings(&network.url()), "a");
    up(&at).await;
    let kept = offer("kept");
    assert_eq!(ask(&at, kept).await, Answer::Wait);
    // The connection of now is stuck with a question in it; later ones are not.
    network.hold();
    let late = offer("late");
    let asked = support::redis::asking(&at, late);
    away(&at).await;
    network.pass_new();
    up(&at).await;
    assert_eq!(soon("an answer", asked).await.expect("no panic"), Answer::Wait);
    at.release(late.key, late.id);
    until("it is released", async || server.pairs().await.len() == 1).await;
    // What had been stuck arrives.
    network.deliver().await;
    assert_eq!(server.pairs().await.len(), 1, "of an offer that is gone");
}

#[tokio::test]
async fn a_server_that_may_evict_entries_is_warned_of_once() {
    let server = Server::start().await;
    let (at, telemetry) = join_observed(&settings(&server.url()), "a");
    up(&at).await;
    sleep(quick().refresh * 2).await;
    assert_eq!(events(&telemetry, EventKind::Trouble), [""; 0]);
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", "100mb"]).await;
    server.ask::<()>(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]).await;
    until("a warning", async || !events(&telemetry, EventKind::Trouble).is_empty()).await;
    sleep(quick().refresh * 3).await;
    let warnings = events(&telemetry, EventKind::Trouble);
    assert!(matches!(&warnings[..], [only] if only.contains("volatile-ttl")), "{warnings:?}");
}

#[tokio::test]
async fn killed_nodes_are_taken_off_the_list_without_anybody_looking() {
    let server = Server::start().await;
    for number in 0..40 {
        let facts = "x".repeat(100);
        server.ask::<()>(&["HSET", "nymea-remoteproxy:nodes", &number.to_string(), &facts]).await;
    }
    let at = join(&settings(&server.url()), "a");
    up(&at).await;
    until("the list has the living only", async || {
        server.ask::<usize>(&["HLEN", "nymea-remoteproxy:nodes"]).await == 1
    })
    .await;
}

#[tokio::test]
async fn an_orderly_end_is_no_outage() {
    let server = Server::start().await;
    let (at, telemetry) = join_observed(&settings(&server.url()), "a");
    up(&at).await;
    at.close().await;
    assert!(server.keys().await.is_empty());
    assert_eq!(events(&telemetry, EventKind::Trouble), [""; 0]);
}
