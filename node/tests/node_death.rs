//! A node process dies or freezes, and its endpoints reconnect at once to the other nodes. No endpoint
//! is refused because of what the dead node has left in Redis, its keys are free soon, and a node that
//! is only frozen loses nothing.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::time::{Duration, Instant};

use cluster::endpoints::redis::until;
use cluster::endpoints::tunnel_proxy::{Gateway, app, try_gateway};
use cluster::endpoints::{Endpoint, tunnel, tunnel_between};
use cluster::{Cluster, Member, talk, waits, within};
use futures_util::future::join_all;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

/// A lease is refreshed every 3 s, and one that is late is noticed within 1 s. The rest is for slow
/// machines.
const CERTAIN: Duration = Duration::from_secs(3 + 1 + 4);
/// What is left of a lease at least when its node freezes.
const LEASE_LEFT: Duration = Duration::from_secs(10 - 3);

/// Two endpoints connect once each, receive nothing before they are paired, and exchange data.
async fn meet(one: &Member, other: &Member, token: &str) {
    let since = Instant::now();
    let (mut first, mut second) =
        tokio::join!(Endpoint::waiting(one, token), Endpoint::waiting(other, token));
    tokio::join!(first.established(), second.established());
    talk(&mut first, &mut second).await;
    #[expect(clippy::print_stderr, reason = "tests show it when they fail, or are asked to")]
    {
        eprintln!("{token}: met after {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn endpoints_of_a_killed_node_wait_and_meet_elsewhere() {
    let mut cluster = Cluster::<3>::start().await;
    let [a, b, c] = &mut cluster.nodes;
    let mut of_a = Vec::new();
    for number in 0..5 {
        of_a.push(tunnel(a, &format!("local {number}")).await);
        of_a.push(tunnel_between(a, b, &format!("bridged {number}")).await);
    }
    let mut waiting = Vec::new();
    for number in 0..5 {
        waiting.push(Endpoint::waiting(a, &format!("waiting {number}")).await);
    }
    a.kill();
    let tokens = ["local", "bridged", "waiting"];
    let names = tokens.iter().flat_map(|kind| (0..5).map(move |number| format!("{kind} {number}")));
    let names: Vec<_> = names.collect();
    let (b, c) = (&*b, &*c);
    let all = names.iter().enumerate().map(|(number, token)| async move {
        let (one, other) = if number % 2 == 0 { (b, c) } else { (b, b) };
        meet(one, other, token).await;
    });
    within(CERTAIN, "all endpoints of the killed node", join_all(all)).await;
}

#[tokio::test]
async fn the_gateway_of_a_killed_node_registers_again_without_being_refused() {
    let mut cluster = Cluster::<2>::start().await;
    let [a, b] = &mut cluster.nodes;
    let _gateway = Gateway::register(a, 1).await;
    let _app = app(a, 2, 1).await;
    a.kill();
    let again = async {
        // It has the patience of the directory.
        let (mut endpoint, mut told) = try_gateway(b, 1).await;
        let mut refusals = 0;
        while told != "TunnelProxyErrorNoError" {
            refusals += 1;
            sleep(Duration::from_millis(100)).await;
            (endpoint, told) = try_gateway(b, 1).await;
        }
        drop(endpoint);
        refusals
    };
    assert_eq!(within(CERTAIN, "the gateway", again).await, 0);
}

#[tokio::test]
async fn a_frozen_node_loses_nothing_before_its_lease_is_over() {
    let cluster = Cluster::<3>::start().await;
    let [a, b, c] = &cluster.nodes;
    let (mut one, mut other) = tunnel(a, "local").await;
    let mut first = Endpoint::waiting(a, "waiting").await;
    let mut gateway = Gateway::register(a, 1).await;
    until("all entries", async || cluster.redis.keys().await.len() >= 7).await;

    a.freeze();
    let since = Instant::now();
    // One claims the endpoint that waits there, the other finds it claimed.
    let mut second = Endpoint::waiting(b, "waiting").await;
    let mut third = Endpoint::waiting(c, "waiting").await;
    let mut beside = Endpoint::waiting(b, "local").await;
    let ((_, told), ()) = tokio::join!(try_gateway(c, 1), async {
        for endpoint in [&mut second, &mut third, &mut beside] {
            waits(endpoint).await;
        }
    });
    assert_ne!(told, "TunnelProxyErrorNoError");
    a.thaw();
    assert!(since.elapsed() < LEASE_LEFT, "this machine is too slow: {:?}", since.elapsed());

    within(CERTAIN, "what waited for the frozen node", async {
        first.established().await;
        beside.closed_with(1008).await;
        // It has one partner, whichever connects first.
        let came = tokio::join!(second.message(), third.message());
        let refused = match &came {
            (Message::Text(_), Message::Close(Some(frame)))
            | (Message::Close(Some(frame)), Message::Text(_)) => u16::from(frame.code),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused, 1008);
    })
    .await;
    talk(&mut one, &mut other).await;
    let _app = app(b, 2, 1).await;
    gateway.connected().await;
}
