//! What every directory of UUIDs does: one suite, for the one in memory and for the one in Redis;
//! and what the one in Redis does when nodes die or Redis is away.

#[macro_use]
#[path = "support/rules.rs"]
mod rules;
mod support;

use std::sync::Arc;

use nymea_remoteproxy::rendezvous::{
    Directory, Holder, Home, Registered, Registration, Role, Unavailable,
};
use support::redis::{Server, join, joined, remote, settings, until, up};
use support::soon;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

rules![
    the_first_has_it_and_the_second_does_not,
    asked_again_answers_are_the_same,
    both_roles_share_one_key_space,
    gateways_are_found_and_apps_are_not,
    only_the_owner_unregisters,
    an_unregistered_uuid_is_free_at_once,
    of_many_at_once_one_has_it,
];

fn gateway(uuid: u128) -> Registration {
    Registration::new(Uuid::from_u128(uuid), Role::Gateway)
}

fn app(uuid: u128) -> Registration {
    Registration::new(Uuid::from_u128(uuid), Role::App)
}

async fn try_register<D: Directory + 'static>(
    at: &Arc<D>,
    it: Registration,
) -> Result<Registered, Unavailable> {
    soon("an answer", Arc::clone(at).register(it)).await
}

/// Registers, which must succeed.
async fn register<D: Directory + 'static>(at: &Arc<D>, it: Registration) -> CancellationToken {
    match try_register(at, it).await {
        Ok(Registered::Yes { lost }) => lost,
        other => panic!("not registered: {other:?}"),
    }
}

/// Who is in the way.
async fn conflict<D: Directory + 'static>(at: &Arc<D>, it: Registration) -> Holder {
    match try_register(at, it).await {
        Ok(Registered::Conflict(holder)) => of_any_start(holder),
        other => panic!("no conflict: {other:?}"),
    }
}

async fn find<D: Directory + 'static>(at: &Arc<D>, uuid: Uuid) -> Option<Holder> {
    let found = soon("an answer", Arc::clone(at).find_gateway(uuid)).await;
    found.expect("Redis is there").map(of_any_start)
}

fn of_any_start(holder: Holder) -> Holder {
    Holder { home: support::redis::of_any_start(holder.home), ..holder }
}

fn here(it: Registration) -> Holder {
    Holder { id: it.id, role: it.role, home: Home::Here }
}

fn there(it: Registration, node: &str) -> Holder {
    let home = Home::There { node: remote(node), secret: it.secret, trace: None };
    Holder { id: it.id, role: it.role, home }
}

async fn the_first_has_it_and_the_second_does_not<D: Directory + 'static>(at: Arc<D>) {
    let (first, second) = (gateway(1), gateway(1));
    let lost = register(&at, first).await;
    assert_eq!(conflict(&at, second).await, here(first));
    register(&at, gateway(2)).await;
    assert!(!lost.is_cancelled());
}

async fn asked_again_answers_are_the_same<D: Directory + 'static>(at: Arc<D>) {
    let (first, second) = (app(1), app(1));
    register(&at, first).await;
    let lost = register(&at, first).await;
    assert_eq!(conflict(&at, second).await, here(first));
    assert_eq!(conflict(&at, second).await, here(first));
    assert!(!lost.is_cancelled());
}

async fn both_roles_share_one_key_space<D: Directory + 'static>(at: Arc<D>) {
    let (one, other) = (gateway(1), app(2));
    register(&at, one).await;
    register(&at, other).await;
    assert_eq!(conflict(&at, app(1)).await, here(one));
    assert_eq!(conflict(&at, gateway(2)).await, here(other));
}

async fn gateways_are_found_and_apps_are_not<D: Directory + 'static>(at: Arc<D>) {
    let (one, other) = (gateway(1), app(2));
    assert_eq!(find(&at, one.uuid).await, None);
    register(&at, one).await;
    register(&at, other).await;
    assert_eq!(find(&at, one.uuid).await, Some(here(one)));
    assert_eq!(find(&at, other.uuid).await, None);
    at.unregister(one.uuid, one.id);
    assert_eq!(find(&at, one.uuid).await, None);
}

async fn only_the_owner_unregisters<D: Directory + 'static>(at: Arc<D>) {
    let (first, second) = (gateway(1), gateway(1));
    register(&at, first).await;
    at.unregister(second.uuid, second.id);
    assert_eq!(conflict(&at, second).await, here(first));
    at.unregister(first.uuid, first.id);
    register(&at, second).await;
    at.unregister(first.uuid, first.id);
    assert_eq!(find(&at, first.uuid).await, Some(here(second)));
}

async fn an_unregistered_uuid_is_free_at_once<D: Directory + 'static>(at: Arc<D>) {
    for _ in 0..50 {
        let it = gateway(1);
        register(&at, it).await;
        at.unregister(it.uuid, it.id);
    }
}

async fn of_many_at_once_one_has_it<D: Directory + 'static>(at: Arc<D>) {
    for round in 0..20 {
        let all: Vec<_> = (0..10).map(|_| gateway(round)).collect();
        let asked: Vec<_> =
            all.iter().map(|it| tokio::spawn(Arc::clone(&at).register(*it))).collect();
        let mut winners = Vec::new();
        let mut held_by = Vec::new();
        for (it, asked) in all.iter().zip(asked) {
            match soon("an answer", asked).await.expect("no panic").expect("Redis is there") {
                Registered::Yes { .. } => winners.push(it.id),
                Registered::Conflict(holder) => held_by.push(holder.id),
            }
        }
        assert_eq!(winners.len(), 1);
        assert!(held_by.iter().all(|id| *id == winners[0]), "{held_by:?} {winners:?}");
    }
}

#[tokio::test]
async fn other_nodes_learn_where_it_is() {
    let server = Server::start().await;
    let (a, b) = (joined(&server, "a").await, joined(&server, "b").await);
    let first = gateway(1);
    register(&a, first).await;
    assert_eq!(conflict(&b, app(1)).await, there(first, "a"));
    assert_eq!(find(&b, first.uuid).await, Some(there(first, "a")));
    // Who did not find it there may say so; its owner then takes nothing away.
    let second = gateway(1);
    b.unregister(first.uuid, first.id);
    register(&b, second).await;
    a.unregister(first.uuid, first.id);
    assert_eq!(find(&a, first.uuid).await, Some(there(second, "b")));
}

#[tokio::test]
async fn no_uuid_is_to_be_read_in_redis_and_every_key_expires() {
    let server = Server::start().await;
    let at = joined(&server, "node").await;
    let it = gateway(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    register(&at, it).await;
    let keys = server.keys().await;
    let key = keys.iter().find(|key| key.contains("uuid:")).expect("an entry");
    assert!(server.ask::<i64>(&["PTTL", key]).await > 0);
    let values: Vec<String> = server.ask(&["HGETALL", key]).await;
    let shown = format!("{keys:?} {values:?}").to_lowercase();
    for written in [it.uuid.hyphenated().to_string(), it.uuid.simple().to_string()] {
        assert!(!shown.contains(&written), "{shown}");
    }
}

#[tokio::test]
async fn what_a_dead_node_had_is_free_once_its_lease_is_over() {
    let server = Server::start().await;
    let a = joined(&server, "a").await;
    let runtime = Runtime::new().expect("a runtime");
    let settings = settings(&server.url());
    let dying = runtime.spawn(async move { join(&settings, "dying") }).await.expect("started");
    up(&dying).await;
    let (first, second) = (gateway(1), gateway(1));
    register(&dying, first).await;
    assert_eq!(conflict(&a, second).await, there(first, "dying"));
    runtime.shutdown_background();
    until("its lease is over", async || server.nodes().await == 2).await;
    until("it is not found", async || find(&a, first.uuid).await.is_none()).await;
    register(&a, second).await;
}

#[tokio::test]
async fn restarted_empty_redis_gets_everything_again() {
    let mut server = Server::start().await;
    let (a, b) = (joined(&server, "a").await, joined(&server, "b").await);
    let (one, other) = (gateway(1), app(2));
    let lost = register(&a, one).await;
    register(&a, other).await;
    server.kill();
    server.restart().await;
    up(&a).await;
    up(&b).await;
    until("it is there again", async || find(&b, one.uuid).await.is_some()).await;
    assert_eq!(find(&b, one.uuid).await, Some(there(one, "a")));
    until("the other one, too", async || {
        matches!(try_register(&b, app(2)).await, Ok(Registered::Conflict(it)) if it.id == other.id)
    })
    .await;
    assert!(!lost.is_cancelled());
}

#[tokio::test]
async fn who_was_away_too_long_has_lost_it_and_hears_so() {
    let server = Server::start().await;
    let (a, b) = (joined(&server, "a").await, joined(&server, "b").await);
    let (first, second) = (gateway(1), gateway(1));
    let lost = register(&a, first).await;
    // As if the node had been frozen for longer than its lease, and its entry was freed.
    let keys = server.keys().await;
    let entry = keys.iter().find(|key| key.contains("uuid:")).expect("an entry");
    server.ask::<i64>(&["DEL", entry]).await;
    register(&b, second).await;
    assert!(!lost.is_cancelled());
    let lease = keys.iter().find(|key| key.contains("node:a-")).expect("a lease");
    server.ask::<i64>(&["DEL", lease]).await;
    soon("the loss", lost.cancelled()).await;
    assert_eq!(find(&a, first.uuid).await, Some(there(second, "b")));
}

#[tokio::test]
async fn while_redis_is_away_gateways_of_this_node_are_found_and_nobody_waits_forever() {
    let mut server = Server::start().await;
    let at = joined(&server, "a").await;
    let first = gateway(1);
    register(&at, first).await;
    server.kill();
    assert_eq!(find(&at, first.uuid).await, Some(here(first)));
    assert_eq!(try_register(&at, gateway(2)).await.err(), Some(Unavailable));
    let found = soon("an answer", Arc::clone(&at).find_gateway(Uuid::from_u128(3))).await;
    assert_eq!(found, Err(Unavailable));
    server.restart().await;
    up(&at).await;
    register(&at, gateway(2)).await;
}
