//! What the log of a node has about the death of another one, and about its own end.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use cluster::endpoints::Endpoint;
use cluster::endpoints::cluster::Certificates;
use cluster::endpoints::redis::{Server, until};
use cluster::{Member, within};
use support::command;
use tokio::time::sleep;

const ENDPOINTS: usize = 30;

fn node(name: &str, log: &Path, redis: &Server, certificates: &Certificates) -> Member {
    let mut command = command(&["-l", log.to_str().expect("UTF-8")]);
    command.env("REMOTEPROXY__NODE__NAME", name);
    Member::start(command, Ipv4Addr::LOCALHOST.into(), certificates, &[("URL", redis.url())])
}

#[tokio::test]
async fn the_death_of_a_node_is_one_warning_however_many_endpoints_return() {
    let (redis, certificates) = (Server::start().await, Certificates::new());
    let logs = tempfile::tempdir().expect("a directory");
    let [dead_log, log] = ["dead", "living"].map(|name| logs.path().join(name));
    let mut dead = node("dead", &dead_log, &redis, &certificates);
    let mut living = node("living", &log, &redis, &certificates);
    for node in [&dead, &living] {
        until("the node is ready", async || node.is_ready().await).await;
    }
    let mut waiting = Vec::new();
    for number in 0..ENDPOINTS {
        waiting.push(Endpoint::waiting(&dead, &format!("t{number}")).await);
    }
    until("they wait", async || redis.pairs().await.len() == ENDPOINTS).await;
    let before = fs::read_to_string(&log).expect("a log").len();
    dead.kill();
    let mut returned = Vec::new();
    for number in 0..ENDPOINTS {
        returned.push(Endpoint::waiting(&living, &format!("t{number}")).await);
    }
    within(Duration::from_secs(20), "entries of the living only", async {
        while !all_live(&redis).await {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let text = fs::read_to_string(&log).expect("a log");
    let warnings: Vec<_> = text[before..].lines().filter(|line| line.contains("WARN")).collect();
    assert!(
        matches!(warnings[..], [only] if only.contains("no bridge to another node")),
        "{} warnings: {warnings:#?}",
        warnings.len()
    );

    living.process.signal("TERM");
    living.process.child.wait().expect("ended");
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.contains("drained"), "{text}");
    assert!(!text.contains("Redis is away"), "{text}");
}

/// Whether all endpoints wait at the living node.
async fn all_live(redis: &Server) -> bool {
    for pair in redis.pairs().await {
        let node: Option<String> = redis.try_ask(&["HGET", &pair, "node"]).await;
        if node.is_none_or(|node| node.starts_with("dead-")) {
            return false;
        }
    }
    redis.pairs().await.len() == ENDPOINTS
}
