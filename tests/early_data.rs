//! An endpoint that sends data before its tunnel is established is closed; its partner, which did
//! nothing wrong, gets its answer and waits for another one.

mod support;

use std::time::Duration;

use nymea_remoteproxy::node::Node;
use support::cluster::Cluster;
use support::node_with;
use support::stream::{Client, Stream, Way, authenticate, everywhere};
use tempfile::TempDir;

const SUCCESS: &str = "{\"id\":0,\"status\":\"success\"}\n";
const ESTABLISHED: &str = "{\"id\":1,\"notification\":\"Tunnel.Established\"}\n";
/// Partners that arrive while the first endpoint sends too early.
const TRIES: usize = 2000;
const AT_ONCE: usize = 50;

fn node() -> (Node, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    (node_with(|config| everywhere(config, &folder)), folder)
}

#[tokio::test]
async fn an_endpoint_that_sends_data_with_its_request_gets_no_partner() {
    let (node, _folder) = node();
    let params = r#""token":"t""#;
    for way in Way::STREAMS {
        let mut waiting = Client::waiting(&node, way, params).await;
        let mut early = Stream::connect(&node, way).await;
        early.send((authenticate(params) + "data").as_bytes()).await;
        let seen = early.rest().await.unwrap_or_default();
        assert!(!String::from_utf8_lossy(&seen).contains("Established"), "{way:?}: {seen:?}");
        // The other one has heard nothing of it.
        let mut partner = Client::waiting(&node, way, params).await;
        waiting.established().await;
        partner.established().await;
    }
}

#[tokio::test]
async fn across_nodes_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start_with(2, |config| everywhere(config, &folder)).await;
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    let params = r#""token":"t""#;
    let mut waiting = Client::waiting(a, Way::Tcp, params).await;
    let mut early = Stream::connect(b, Way::Tcp).await;
    early.send((authenticate(params) + "data").as_bytes()).await;
    let seen = early.rest().await.unwrap_or_default();
    assert!(!String::from_utf8_lossy(&seen).contains("Established"), "{seen:?}");
    let mut partner = Client::waiting(b, Way::Tcp, params).await;
    waiting.established().await;
    partner.established().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partner_that_arrives_with_early_data_is_answered_and_waits() {
    let (node, _folder) = node();
    let node = std::sync::Arc::new(node);
    for round in 0..TRIES / AT_ONCE {
        let mut tries = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let node = std::sync::Arc::clone(&node);
            tries.spawn(async move { meet(&node, &format!("{round} {number}")).await });
        }
        while let Some(tried) = tries.join_next().await {
            tried.expect("as it should be");
        }
    }
}

/// One endpoint sends data in the moment in which its partner arrives.
async fn meet(node: &Node, token: &str) {
    let params = format!(r#""token":"{token}""#);
    let mut first = Client::waiting(node, Way::Tcp, &params).await.stream();
    let mut second = Stream::connect(node, Way::Tcp).await;
    let request = authenticate(&params);
    tokio::join!(first.send(b"early"), second.send(request.as_bytes()));
    assert_eq!(second.line().await.as_deref(), Some(SUCCESS), "the innocent one is answered");
    let first_sees = first.line();
    // It came in time or too early, nothing else.
    match first_sees.await.as_deref() {
        Some(ESTABLISHED) => {
            assert_eq!(second.line().await.as_deref(), Some(ESTABLISHED));
            assert_eq!(second.exactly(5).await, b"early");
        }
        None => {
            let mut third = Client::waiting(node, Way::Tcp, &params).await;
            let established = second.line();
            let established = tokio::time::timeout(Duration::from_secs(10), established).await;
            assert_eq!(established.expect("in time").as_deref(), Some(ESTABLISHED));
            third.established().await;
        }
        other => panic!("{other:?}"),
    }
}
