//! A Redis that answers and yet refuses what the lease needs, for whatever reason, is as good as
//! away: the node records it once, its own endpoints still meet, and all returns afterwards.

mod support;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nymea_remoteproxy::config::{self, Secret};
use nymea_remoteproxy::observability::{EventKind, Telemetry};
use nymea_remoteproxy::rendezvous::redis::{Health, RedisRendezvous};
use nymea_remoteproxy::rendezvous::{Answer, Rendezvous};
use support::cluster::Cluster;
use support::delay::SlowReplies;
use support::redis::{
    Server, ask, asking, away, cluster, events, join_observed, offer, quick, quick_settings,
    settings, until, up,
};
use support::soon;
use tokio::time::sleep;

/// A node and what it has recorded.
struct Observed {
    node: Arc<RedisRendezvous>,
    telemetry: Telemetry,
}

impl Observed {
    async fn join(settings: &config::Redis) -> Self {
        let (node, telemetry) = join_observed(settings, "a");
        up(&node).await;
        Self { node, telemetry }
    }

    /// What it has recorded about outages.
    fn outages(&self) -> Vec<String> {
        let mut events = events(&self.telemetry, EventKind::Trouble);
        events.retain(|event| event.starts_with("Redis is away"));
        events
    }

    /// Two endpoints of this node meet.
    async fn pairs(&self, token: &str) {
        let asked = [offer(token), offer(token)].map(|offer| asking(&self.node, offer));
        let [one, other] = asked.map(|asked| soon("an answer", asked));
        let answers = [one.await.expect("no panic"), other.await.expect("no panic")];
        let claims = answers.iter().filter(|answer| matches!(answer, Answer::Claimed(_))).count();
        assert!(claims == 1 && answers.contains(&Answer::Wait), "{answers:?}");
    }

    fn is_up(&self) -> bool {
        *self.node.health().borrow() == Health::Up
    }
}

/// A node lives through a time in which Redis refuses what it needs.
async fn outlives(
    server: &Server,
    settings: &config::Redis,
    reason: &str,
    refuse: impl AsyncFnOnce(),
    allow: impl AsyncFnOnce(),
) {
    let at = Observed::join(settings).await;
    let waiting = offer("waiting");
    assert_eq!(ask(&at.node, waiting).await, Answer::Wait);
    at.pairs("established").await;
    let mut epoch = at.node.epoch();
    epoch.mark_unchanged();

    refuse().await;
    away(&at.node).await;
    at.pairs("alone").await;
    assert_eq!(ask(&at.node, offer("established")).await, Answer::Taken, "two have it");
    // Longer than the lease: what is left in Redis does not count any more.
    sleep(quick().lease).await;
    assert!(!at.is_up());
    let outages = at.outages();
    assert!(matches!(&outages[..], [only] if only.contains(reason)), "{outages:?}");

    allow().await;
    up(&at.node).await;
    soon("a new epoch", epoch.changed()).await.expect("a keeper");
    // As the session does.
    assert_eq!(ask(&at.node, waiting).await, Answer::Wait);
    until("all entries are there again", async || server.pairs().await.len() == 3).await;
    assert_eq!(at.outages().len(), 1);
}

async fn set(server: &Server, setting: &str, value: &str) {
    server.ask::<()>(&["CONFIG", "SET", setting, value]).await;
}

#[tokio::test]
async fn full_it_is_away() {
    let server = Server::start().await;
    outlives(
        &server,
        &settings(&server.url()),
        "OOM",
        async || set(&server, "maxmemory", "100kb").await,
        async || set(&server, "maxmemory", "0").await,
    )
    .await;
}

#[tokio::test]
async fn without_its_replicas_it_is_away() {
    let server = Server::start().await;
    outlives(
        &server,
        &settings(&server.url()),
        "NOREPLICAS",
        async || set(&server, "min-replicas-to-write", "1").await,
        async || set(&server, "min-replicas-to-write", "0").await,
    )
    .await;
}

#[tokio::test]
async fn unable_to_save_it_is_away() {
    let server = Server::start().await;
    outlives(
        &server,
        &settings(&server.url()),
        "MISCONF",
        async || {
            set(&server, "save", "3600 1").await;
            fs::remove_dir_all(server.dir()).expect("removed");
            server.ask::<String>(&["BGSAVE"]).await;
        },
        async || set(&server, "stop-writes-on-bgsave-error", "no").await,
    )
    .await;
}

#[tokio::test]
async fn busy_with_a_script_it_is_away() {
    let server = Server::start().await;
    set(&server, "busy-reply-threshold", "50").await;
    let mut other = server.connection().await.expect("a connection");
    let refuse = async || {
        let mut script = redis::cmd("EVAL");
        script.arg("while true do end").arg(0);
        let running = async move { script.query_async::<()>(&mut other).await };
        let running = tokio::spawn(running);
        until("it runs", async || server.try_ask::<String>(&["PING"]).await.is_none()).await;
        drop(running);
    };
    let allow = async || server.ask::<()>(&["SCRIPT", "KILL"]).await;
    // Silent at first, and "BUSY" only after a while.
    outlives(&server, &settings(&server.url()), "", refuse, allow).await;
}

#[tokio::test]
async fn pausing_writes_it_is_away() {
    let server = Server::start().await;
    outlives(
        &server,
        &settings(&server.url()),
        "",
        async || server.ask::<()>(&["CLIENT", "PAUSE", "60000", "WRITE"]).await,
        async || server.ask::<()>(&["CLIENT", "UNPAUSE"]).await,
    )
    .await;
}

#[tokio::test]
async fn forbidding_commands_or_keys_it_is_away() {
    for (forbid, permit) in [("-evalsha", "+evalsha"), ("-set", "+set"), ("resetkeys", "~*")] {
        let server = Server::start().await;
        let user = async |rule: &[&str]| {
            let command = [&["ACL", "SETUSER", "proxy"], rule].concat();
            server.ask::<()>(&command).await;
        };
        user(&["on", ">p", "~*", "+@all"]).await;
        let settings = settings(&format!("redis://proxy:p@127.0.0.1:{}", server.port));
        outlives(
            &server,
            &settings,
            "",
            async || user(&[forbid]).await,
            async || user(&[permit]).await,
        )
        .await;
    }
}

#[tokio::test]
async fn a_refusal_that_concerns_one_key_is_no_outage() {
    let server = Server::start().await;
    let at = Observed::join(&settings(&server.url())).await;
    let first = offer("t");
    assert_eq!(ask(&at.node, first).await, Answer::Wait);
    let key = server.pairs().await.remove(0);
    server.ask::<()>(&["SET", &key, "something else"]).await;
    let second = ask(&at.node, offer("t")).await;
    assert!(matches!(&second, Answer::Claimed(it) if it.id == first.id), "{second:?}");
    sleep(quick().refresh * 2).await;
    assert!(at.is_up());
    assert_eq!(ask(&at.node, offer("other")).await, Answer::Wait);
    assert!(at.outages().is_empty());
}

#[tokio::test]
async fn forgotten_scripts_are_no_outage() {
    let server = Server::start().await;
    let at = Observed::join(&settings(&server.url())).await;
    server.ask::<()>(&["SCRIPT", "FLUSH"]).await;
    at.pairs("t").await;
    sleep(quick().refresh * 2).await;
    assert!(at.is_up() && at.outages().is_empty());
}

#[tokio::test]
async fn errands_that_take_long_do_not_delay_the_lease() {
    let server = Server::start().await;
    let slow = SlowReplies::start(server.port, Duration::from_millis(100)).await;
    let at = Observed::join(&settings(&slow.redis_url())).await;
    // One after the other, these take four times as long as the lease lasts.
    let key = offer("t").key;
    for _ in 0..60 {
        at.node.release(key, offer("t").id);
    }
    let since = Instant::now();
    while since.elapsed() < quick().lease * 3 {
        assert_eq!(server.nodes().await, 1, "after {:?}", since.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(at.outages().is_empty());
}

#[tokio::test]
async fn one_master_of_a_redis_cluster_that_refuses_takes_its_own_keys_only() {
    let servers = cluster().await;
    let urls = servers.iter().map(|server| Secret::new(server.url())).collect();
    let at = Observed::join(&config::Redis { cluster: urls, ..quick_settings() }).await;
    let mut without_lease = Vec::new();
    for server in &servers {
        // Not the one with the lease, which is away for the whole node.
        if server.nodes().await == 0 {
            without_lease.push(server);
        }
    }
    let refusing = without_lease[0];
    set(refusing, "min-replicas-to-write", "1").await;
    for number in 0..20 {
        at.pairs(&format!("t{number}")).await;
    }
    sleep(quick().refresh * 2).await;
    assert!(at.is_up() && at.outages().is_empty(), "{:?}", at.outages());
    for server in &servers {
        assert_eq!(server.pairs().await.is_empty(), server.port == refusing.port);
    }
    set(refusing, "min-replicas-to-write", "0").await;
    until("its keys are there", async || !refusing.pairs().await.is_empty()).await;
}

#[tokio::test]
async fn a_node_whose_redis_is_full_is_not_ready_and_gives_the_reason() {
    let cluster = Cluster::start(1).await;
    let readyz = async || {
        let url = format!("http://{}/readyz", cluster.nodes[0].admin_addr().expect("admin"));
        let answer = reqwest::get(url).await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    until("ready", async || readyz().await.0 == 200).await;
    set(&cluster.redis, "maxmemory", "100kb").await;
    until("not ready", async || readyz().await.0 == 503).await;
    let (_, reasons) = readyz().await;
    // Everybody may ask this: the rest of what Redis answered is in the log.
    assert!(reasons.starts_with("Redis is away for") && reasons.ends_with("s: OOM\n"), "{reasons}");
    let metrics = cluster.nodes[0].telemetry().metrics.text();
    assert!(metrics.contains("remoteproxy_redis_up 0"), "{metrics}");
    set(&cluster.redis, "maxmemory", "0").await;
    until("ready again", async || readyz().await.0 == 200).await;
}
