//! Several nodes on one Redis: who gets whom, what a dead or frozen node leaves, what it costs.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use nymea_remoteproxy::ids::OfferId;
use nymea_remoteproxy::protocol::{PairingKey, Token};
use nymea_remoteproxy::rendezvous::redis::RedisRendezvous;
use nymea_remoteproxy::rendezvous::{Answer, Home, Offer, Rendezvous, Waiting};
use support::redis::{
    Server, ask, asking, join, join_with, offer, quick, remote, settings, until, up,
};
use support::soon;
use tokio::runtime::Runtime;

/// Claimed from another node than its own.
fn there(offer: Offer, node: &str) -> Answer {
    let home = Home::There { node: remote(node), secret: offer.secret, trace: offer.trace };
    Answer::Claimed(Waiting { id: offer.id, home })
}

async fn node(server: &Server, name: &str) -> Arc<RedisRendezvous> {
    let node = join(&settings(&server.url()), name);
    up(&node).await;
    node
}

/// A node in a runtime of its own, with which it can be killed.
async fn mortal(server: &Server, name: &'static str) -> (Runtime, Arc<RedisRendezvous>) {
    let runtime = Runtime::new().expect("a runtime");
    let settings = settings(&server.url());
    let node = runtime.spawn(async move { join(&settings, name) }).await.expect("started");
    up(&node).await;
    (runtime, node)
}

/// Until nodes may be sure that one without a lease is dead.
async fn steady() {
    let pace = quick();
    tokio::time::sleep(pace.refresh + Duration::from_millis(600)).await;
}

#[tokio::test]
async fn the_claimer_learns_where_its_partner_is() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let (first, second, third) = (offer("t"), offer("t"), offer("t"));
    assert_eq!(ask(&a, first).await, Answer::Wait);
    assert_eq!(ask(&b, second).await, there(first, "a"));
    assert_eq!(ask(&b, second).await, there(first, "a"), "asked again");
    assert_eq!(ask(&b, third).await, Answer::Taken);
    assert_eq!(ask(&a, offer("t")).await, Answer::Taken);
    assert!(a.stands(first));
    b.release(second.key, second.id);
    assert_eq!(ask(&b, offer("t")).await, Answer::Taken, "a claimer does not free the key");
    a.release(first.key, first.id);
    until("the key is free", async || server.pairs().await.is_empty()).await;
}

#[tokio::test]
async fn a_partner_that_is_gone_is_replaced_by_whoever_did_not_find_it() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let (first, second, third) = (offer("t"), offer("t"), offer("t"));
    assert_eq!(ask(&a, first).await, Answer::Wait);
    assert_eq!(ask(&b, second).await, there(first, "a"));
    // The bridge finds no waiting endpoint.
    b.release(second.key, second.id);
    b.release(first.key, first.id);
    assert_eq!(ask(&b, third).await, Answer::Wait);
    // The late release of the owner removes nothing.
    a.release(first.key, first.id);
    assert_eq!(ask(&a, offer("t")).await, there(third, "b"));
}

#[tokio::test]
async fn a_claim_is_given_back_across_nodes() {
    let server = Server::start().await;
    let (a, b) = (node(&server, "a").await, node(&server, "b").await);
    let (first, second, third) = (offer("t"), offer("t"), offer("t"));
    assert_eq!(ask(&a, first).await, Answer::Wait);
    assert_eq!(ask(&b, second).await, there(first, "a"));
    b.give_back(first.key, first.id, second.id);
    b.release(second.key, second.id);
    assert_eq!(ask(&b, third).await, there(first, "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_race_each_key_makes_one_pair() {
    let server = Server::start().await;
    let nodes = [node(&server, "a").await, node(&server, "b").await, node(&server, "c").await];
    for round in 0..3 {
        let mut asked = Vec::new();
        for number in 0..600 {
            let key = number % 100;
            let offer = offer(&format!("{round} {key}"));
            asked.push((key, offer.id, asking(&nodes[number / 100 % 3], offer)));
        }
        let mut waits: HashMap<usize, OfferId> = HashMap::new();
        let mut claims: HashMap<usize, OfferId> = HashMap::new();
        for (key, id, asked) in asked {
            match soon("an answer", asked).await.expect("no panic") {
                Answer::Wait => assert_eq!(waits.insert(key, id), None),
                Answer::Claimed(waiting) => assert_eq!(claims.insert(key, waiting.id), None),
                Answer::Taken => {}
            }
        }
        assert_eq!(waits.len(), 100);
        assert_eq!(claims, waits);
    }
}

#[tokio::test]
async fn entries_of_a_dead_node_are_free_when_its_lease_is_over() {
    let server = Server::start().await;
    let b = node(&server, "b").await;
    let (runtime, a) = mortal(&server, "a").await;
    let (waiting, standing) = (offer("waiting"), offer("standing"));
    for offer in [waiting, standing] {
        assert_eq!(ask(&a, offer).await, Answer::Wait);
    }
    assert_eq!(ask(&a, offer("standing")).await, Answer::Claimed(here(standing)));
    assert_eq!(ask(&b, offer("standing")).await, Answer::Taken);
    runtime.shutdown_background();
    until("the lease is over", async || {
        !server.keys().await.iter().any(|key| key.contains("node:a-"))
    })
    .await;
    assert_eq!(ask(&b, offer("waiting")).await, Answer::Wait);
    assert_eq!(ask(&b, offer("standing")).await, Answer::Wait);
}

fn here(offer: Offer) -> Waiting {
    Waiting { id: offer.id, home: Home::Here }
}

#[tokio::test]
async fn a_claim_of_a_dead_node_does_not_hold() {
    let server = Server::start().await;
    let a = node(&server, "a").await;
    let b = node(&server, "b").await;
    let (runtime, c) = mortal(&server, "c").await;
    let first = offer("t");
    assert_eq!(ask(&a, first).await, Answer::Wait);
    assert_eq!(ask(&c, offer("t")).await, there(first, "a"));
    assert_eq!(ask(&b, offer("t")).await, Answer::Taken);
    runtime.shutdown_background();
    until("the lease is over", async || {
        !server.keys().await.iter().any(|key| key.contains("node:c-"))
    })
    .await;
    assert_eq!(ask(&b, offer("t")).await, there(first, "a"));
}

#[tokio::test]
async fn a_node_that_was_frozen_does_not_believe_its_entries() {
    let server = Server::start().await;
    let b = node(&server, "b").await;
    let settings = settings(&server.url());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
    let a = runtime.spawn(async move { join(&settings, "a") }).await.expect("started");
    up(&a).await;
    let (first, second) = (offer("t"), offer("t"));
    assert_eq!(ask(&a, first).await, Answer::Wait);
    let mut epoch = a.epoch();
    epoch.mark_unchanged();
    // Nothing else runs in its only thread until it is woken.
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let frozen = runtime.spawn(async move { woken.recv().expect("woken") });
    until("the lease is over", async || {
        !server.keys().await.iter().any(|key| key.contains("node:a-"))
    })
    .await;
    steady().await;
    assert_eq!(ask(&b, second).await, Answer::Wait);
    wake.send(()).expect("frozen");
    soon("it wakes", frozen).await.expect("woken");
    soon("it notices", epoch.changed()).await.expect("a keeper");
    assert_eq!(ask(&a, first).await, there(second, "b"));
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_tunnel_costs_four_commands_at_most_and_shows_no_secret() {
    let server = Server::start().await;
    let calm = nymea_remoteproxy::rendezvous::redis::Pace {
        lease: Duration::from_mins(1),
        refresh: Duration::from_mins(1),
        ..quick()
    };
    let settings = settings(&server.url());
    let (a, b) = (join_with(&settings, "a", calm), join_with(&settings, "b", calm));
    up(&a).await;
    up(&b).await;
    // The first tunnel loads the scripts.
    across(&a, &b, "warm up").await;
    until("released", async || server.pairs().await.is_empty()).await;

    let client = ::redis::Client::open(server.url()).expect("a URL");
    let monitor = client.get_async_monitor().await.expect("monitor");
    let mut seen = monitor.into_on_message::<String>();
    for number in 0..10 {
        across(&a, &b, &format!("geheim-{number}")).await;
    }
    let mut commands = Vec::new();
    let mut own_offers = 0;
    let releases = |commands: &[String]| commands.iter().filter(|c| c.contains("either")).count();
    while releases(&commands) < 10 {
        let line = soon("a command", seen.next()).await.expect("a command");
        // What a script does is no command of ours.
        if !line.contains(" lua]") {
            own_offers += usize::from(line.contains("geheim") || line.contains("noncense"));
            commands.push(line);
        }
    }
    assert!(commands.len() <= 40, "{}: {commands:#?}", commands.len());
    assert_eq!(own_offers, 0, "{commands:#?}");
}

/// A tunnel from its first offer to its end, as sessions on two nodes make it.
async fn across(a: &Arc<RedisRendezvous>, b: &Arc<RedisRendezvous>, token: &str) {
    let key = PairingKey::new(&Token::new(token), Some("noncense"));
    let (first, second) = (Offer::new(key, None), Offer::new(key, None));
    assert_eq!(ask(a, first).await, Answer::Wait);
    assert_eq!(ask(b, second).await, there(first, "a"));
    b.release(second.key, second.id);
    assert!(a.stands(first));
    a.release(first.key, first.id);
}

#[tokio::test]
async fn long_tunnels_keep_their_keys() {
    let server = Server::start().await;
    let pace = nymea_remoteproxy::rendezvous::redis::Pace {
        standing: Duration::from_millis(1500),
        ..quick()
    };
    let at = join_with(&settings(&server.url()), "a", pace);
    up(&at).await;
    let first = offer("t");
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, offer("t")).await, Answer::Claimed(here(first)));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(server.pairs().await.len(), 1);
}
