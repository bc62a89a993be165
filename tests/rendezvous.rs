//! What every rendezvous does: one suite, for the one in memory and for the one in Redis.

#[macro_use]
#[path = "support/rules.rs"]
mod rules;
mod support;

use std::sync::Arc;

use nymea_remoteproxy::rendezvous::{Answer, Home, Offer, Rendezvous, Waiting};
use support::redis::{Server, ask, asking, joined, offer, until};
use support::soon;

rules![
    the_second_claims_and_the_third_is_turned_away,
    keys_do_not_touch_each_other,
    asked_again_answers_are_the_same,
    only_the_owner_releases,
    a_released_key_is_free_at_once,
    a_claim_can_be_given_back,
    joined_from_elsewhere_it_stands,
    of_many_at_once_two_are_paired,
];

fn claimed(offer: Offer) -> Answer {
    Answer::Claimed(Waiting { id: offer.id, home: Home::Here })
}

async fn the_second_claims_and_the_third_is_turned_away<R: Rendezvous + 'static>(at: Arc<R>) {
    let (first, second, third) = (offer("t"), offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, second).await, claimed(first));
    assert_eq!(ask(&at, third).await, Answer::Taken);
}

async fn keys_do_not_touch_each_other<R: Rendezvous + 'static>(at: Arc<R>) {
    assert_eq!(ask(&at, offer("t")).await, Answer::Wait);
    assert_eq!(ask(&at, offer("other")).await, Answer::Wait);
}

async fn asked_again_answers_are_the_same<R: Rendezvous + 'static>(at: Arc<R>) {
    let (first, second) = (offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, first).await, Answer::Wait);
    for _ in 0..2 {
        assert_eq!(ask(&at, second).await, claimed(first));
    }
    assert_eq!(ask(&at, first).await, Answer::Wait, "its partner is on the way");
}

async fn only_the_owner_releases<R: Rendezvous + 'static>(at: Arc<R>) {
    let (first, second) = (offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    at.release(second.key, second.id);
    assert_eq!(ask(&at, second).await, claimed(first));
    at.release(second.key, second.id);
    assert_eq!(ask(&at, offer("t")).await, Answer::Taken);
}

async fn a_released_key_is_free_at_once<R: Rendezvous + 'static>(at: Arc<R>) {
    for _ in 0..50 {
        let (first, second, third) = (offer("t"), offer("t"), offer("t"));
        assert_eq!(ask(&at, first).await, Answer::Wait);
        assert_eq!(ask(&at, second).await, claimed(first));
        at.release(second.key, second.id);
        at.release(first.key, first.id);
        assert_eq!(ask(&at, third).await, Answer::Wait);
        at.release(third.key, third.id);
    }
}

async fn a_claim_can_be_given_back<R: Rendezvous + 'static>(at: Arc<R>) {
    let (first, second, third) = (offer("t"), offer("t"), offer("t"));
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, second).await, claimed(first));
    at.give_back(first.key, first.id, third.id);
    assert_eq!(ask(&at, third).await, Answer::Taken, "only who has claimed gives back");
    at.give_back(first.key, first.id, second.id);
    at.release(second.key, second.id);
    let fourth = offer("t");
    assert_eq!(ask(&at, fourth).await, claimed(first));
}

async fn joined_from_elsewhere_it_stands<R: Rendezvous + 'static>(at: Arc<R>) {
    let first = offer("t");
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert!(at.stands(first));
    assert_eq!(ask(&at, offer("t")).await, Answer::Taken);
    at.release(first.key, first.id);
    assert_eq!(ask(&at, offer("t")).await, Answer::Wait);
}

async fn of_many_at_once_two_are_paired<R: Rendezvous + 'static>(at: Arc<R>) {
    for round in 0..20 {
        let offers: Vec<_> = (0..10).map(|_| offer(&format!("t{round}"))).collect();
        let asked: Vec<_> = offers.iter().map(|offer| asking(&at, *offer)).collect();
        let mut waits = Vec::new();
        let mut claims = Vec::new();
        for (offer, asked) in offers.iter().zip(asked) {
            match soon("an answer", asked).await.expect("no panic") {
                Answer::Wait => waits.push(offer.id),
                Answer::Claimed(waiting) => claims.push(waiting.id),
                Answer::Taken => {}
            }
        }
        assert_eq!(waits.len(), 1);
        assert_eq!(claims, waits);
    }
}

#[tokio::test]
async fn every_key_expires_and_none_is_left() {
    let server = Server::start().await;
    let at = joined(&server, "node").await;
    let (waiting, first, second) = (offer("waiting"), offer("t"), offer("t"));
    assert_eq!(ask(&at, waiting).await, Answer::Wait);
    assert_eq!(ask(&at, first).await, Answer::Wait);
    assert_eq!(ask(&at, second).await, claimed(first));
    // Two entries, the lease, and the list of nodes.
    until("all keys", async || server.keys().await.len() == 4).await;
    let keys = server.keys().await;
    for key in keys {
        assert!(key.starts_with("nymea-remoteproxy:"), "{key}");
        assert!(server.ask::<i64>(&["PTTL", &key]).await > 0, "{key}");
    }
    for offer in [second, first, waiting] {
        at.release(offer.key, offer.id);
    }
    until("no entry", async || server.pairs().await.is_empty()).await;
    at.close().await;
    assert!(server.keys().await.is_empty());
}

#[tokio::test]
async fn the_nodes_with_a_lease_are_listed() {
    let server = Server::start().await;
    let (one, other) = (joined(&server, "one").await, joined(&server, "two").await);
    let names = async || {
        let nodes = one.nodes().await.expect("Redis answers");
        nodes.into_iter().map(|node| node.name).collect::<Vec<_>>()
    };
    until("both nodes", async || names().await == ["one", "two"]).await;
    // One that died without a word: its facts are there, its lease is not.
    let facts = r#"{"node":"dead-1","name":"dead","address":"a:1","version":"1","started":"s"}"#;
    server.ask::<i64>(&["HSET", "nymea-remoteproxy:nodes", "dead-1", facts]).await;
    assert_eq!(names().await, ["one", "two"]);
    assert_eq!(server.ask::<i64>(&["HLEN", "nymea-remoteproxy:nodes"]).await, 2);
    other.close().await;
    assert_eq!(names().await, ["one"]);
}
