//! Redis away, empty, frozen, demoted or moved: no endpoint is stuck, and afterwards pairing works as
//! before.

mod support;

use std::time::Duration;

use nymea_remoteproxy::config::{self, Secret};
use nymea_remoteproxy::rendezvous::{Answer, Home, Offer, Rendezvous, Waiting};
use support::redis::{
    Server, ask, asking, away, free_port, join, offer, quick_settings, settings, until, up,
};
use support::soon;

fn claimed(offer: Offer) -> Answer {
    Answer::Claimed(Waiting { id: offer.id, home: Home::Here })
}

/// Whether the only entry has been claimed.
async fn stands(server: &Server) -> bool {
    let pairs = server.try_ask::<Vec<String>>(&["KEYS", "*pair:*"]).await.unwrap_or_default();
    match &pairs[..] {
        [pair] => server.ask::<bool>(&["HEXISTS", pair, "claimer"]).await,
        _ => false,
    }
}

#[tokio::test]
async fn a_node_starts_without_redis_and_waits_for_it() {
    let mut server = Server::start().await;
    server.kill();
    let at = join(&settings(&server.url()), "a");
    let waiting = offer("waiting");
    let asked = asking(&at, waiting);
    let (first, second) = (offer("t"), offer("t"));
    let (one, other) = (asking(&at, first), asking(&at, second));
    let one = soon("a pair of this node", one).await.expect("no panic");
    let other = soon("a pair of this node", other).await.expect("no panic");
    assert!(
        (one == Answer::Wait && other == claimed(first))
            || (one == claimed(second) && other == Answer::Wait)
    );
    assert!(!asked.is_finished());
    server.restart().await;
    up(&at).await;
    assert_eq!(soon("an answer", asked).await.expect("no panic"), Answer::Wait);
    until("both entries are there", async || server.pairs().await.len() == 2).await;
}

#[tokio::test]
async fn restarted_empty_it_gets_everything_again() {
    let mut server = Server::start().await;
    let (a, b) = (join(&settings(&server.url()), "a"), join(&settings(&server.url()), "b"));
    up(&a).await;
    up(&b).await;
    let (waiting, first, second) = (offer("waiting"), offer("t"), offer("t"));
    assert_eq!(ask(&a, waiting).await, Answer::Wait);
    assert_eq!(ask(&a, first).await, Answer::Wait);
    assert_eq!(ask(&a, second).await, claimed(first));
    let mut epoch = a.epoch();
    epoch.mark_unchanged();
    server.kill();
    away(&a).await;
    assert_eq!(ask(&a, offer("t")).await, Answer::Taken, "its tunnel stands");
    server.restart().await;
    soon("a new epoch", epoch.changed()).await.expect("a keeper");
    // As the session does, for the offer that waits.
    assert_eq!(ask(&a, waiting).await, Answer::Wait);
    until("the tunnel is told again", async || server.pairs().await.len() == 2).await;
    assert_eq!(ask(&b, offer("t")).await, Answer::Taken);
    let claim = ask(&b, offer("waiting")).await;
    assert!(matches!(claim, Answer::Claimed(Waiting { id, .. }) if id == waiting.id), "{claim:?}");
}

#[tokio::test]
async fn frozen_it_is_waited_for_and_pairs_of_one_node_are_made() {
    let server = Server::start().await;
    let at = join(&settings(&server.url()), "a");
    up(&at).await;
    let (stored, partner) = (offer("t"), offer("t"));
    assert_eq!(ask(&at, stored).await, Answer::Wait);
    server.freeze();
    let waiting = asking(&at, offer("waiting"));
    assert_eq!(ask(&at, partner).await, claimed(stored));
    away(&at).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished());
    server.thaw();
    up(&at).await;
    assert_eq!(soon("an answer", waiting).await.expect("no panic"), Answer::Wait);
    until("the tunnel is told", async || {
        let pairs = server.pairs().await;
        let mut claimed = 0;
        for pair in &pairs {
            claimed += usize::from(server.ask::<bool>(&["HEXISTS", pair, "claimer"]).await);
        }
        (pairs.len(), claimed) == (2, 1)
    })
    .await;
}

#[tokio::test]
async fn what_is_released_meanwhile_is_removed_afterwards() {
    let server = Server::start().await;
    let at = join(&settings(&server.url()), "a");
    up(&at).await;
    let (waiting, first, second) = (offer("waiting"), offer("t"), offer("t"));
    assert_eq!(ask(&at, waiting).await, Answer::Wait);
    assert_eq!(ask(&at, first).await, Answer::Wait);
    server.freeze();
    assert_eq!(ask(&at, second).await, claimed(first));
    for offer in [second, first, waiting] {
        at.release(offer.key, offer.id);
    }
    away(&at).await;
    server.thaw();
    until("no entry", async || server.pairs().await.is_empty()).await;
}

#[tokio::test]
async fn demoted_it_is_left_and_taken_again_when_promoted() {
    let (server, other) = (Server::start().await, Server::start().await);
    let at = join(&settings(&server.url()), "a");
    up(&at).await;
    server.ask::<()>(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    away(&at).await;
    let asked = asking(&at, offer("t"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!asked.is_finished());
    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    up(&at).await;
    assert_eq!(soon("an answer", asked).await.expect("no panic"), Answer::Wait);
    until("the entry", async || server.pairs().await.len() == 1).await;
}

#[tokio::test]
async fn a_flush_is_noticed() {
    let server = Server::start().await;
    let at = join(&settings(&server.url()), "a");
    up(&at).await;
    let (first, second) = (offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, second).await, claimed(first));
    let mut epoch = at.epoch();
    epoch.mark_unchanged();
    server.ask::<()>(&["FLUSHALL"]).await;
    soon("a new epoch", epoch.changed()).await.expect("a keeper");
    until("the tunnel is told again", async || stands(&server).await).await;
}

#[tokio::test]
async fn a_failover_of_sentinels_is_followed() {
    let mut master = Server::start().await;
    let replica = Server::replica(master.port).await;
    let sentinel = Server::sentinel(master.port).await;
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let settings = config::Redis {
        sentinels: vec![Secret::new(nobody), Secret::new(sentinel.url())],
        sentinel_master: Some("main".into()),
        ..quick_settings()
    };
    let at = join(&settings, "a");
    up(&at).await;
    let (first, second) = (offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, second).await, claimed(first));
    let mut epoch = at.epoch();
    epoch.mark_unchanged();
    master.kill();
    soon("the other server", epoch.changed()).await.expect("a keeper");
    up(&at).await;
    until("the tunnel is told there", async || stands(&replica).await).await;
    assert_eq!(ask(&at, offer("new")).await, Answer::Wait);
}
