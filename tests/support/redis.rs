//! Real Redis servers for the tests: one process each, in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nymea_remoteproxy::config::{self, Secret};
use nymea_remoteproxy::ids::NodeId;
use nymea_remoteproxy::observability::{EventKind, Telemetry};
use nymea_remoteproxy::protocol::{PairingKey, Token};
use nymea_remoteproxy::rendezvous::redis::{Health, NodeFacts, Pace, RedisRendezvous};
use nymea_remoteproxy::rendezvous::{Answer, Home, Offer, RemoteNode, Rendezvous, Waiting};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{DEADLINE, soon};

/// A `redis-server` process, ended when dropped.
pub struct Server {
    pub port: u16,
    dir: TempDir,
    config: String,
    program: &'static str,
    child: Child,
}

impl Server {
    /// A server that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a server with further lines in its configuration; `DIR` is replaced by its directory.
    pub async fn with(config: &str) -> Self {
        let port = free_port();
        let server = Self::spawn("redis-server", port, &format!("port {port}\n{config}"));
        server.ready().await;
        server
    }

    /// A replica, in sync with its master.
    pub async fn replica(master: u16) -> Self {
        let replica = Self::with(&format!("replicaof 127.0.0.1 {master}")).await;
        until("the replica", async || {
            let info: String = replica.ask(&["INFO", "replication"]).await;
            info.contains("master_link_status:up")
        })
        .await;
        replica
    }

    /// A sentinel that watches a master, and knows its one replica.
    pub async fn sentinel(master: u16) -> Self {
        let server = Self::stray_sentinel(master).await;
        until("the sentinel knows the replica", async || {
            let known: Vec<Vec<String>> = server.ask(&["SENTINEL", "REPLICAS", "main"]).await;
            known.len() == 1
        })
        .await;
        server
    }

    /// A sentinel that watches a master without replicas.
    pub async fn stray_sentinel(master: u16) -> Self {
        let port = free_port();
        let config = format!(
            "port {port}\nsentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        );
        let server = Self::spawn("redis-sentinel", port, &config);
        server.ready().await;
        server
    }

    /// Like [`Server::with`], where port 0 is the plain one and cannot be waited for.
    pub fn spawn(program: &'static str, port: u16, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config.replace("DIR", &dir.path().display().to_string());
        let config = if program == "redis-server" {
            format!("{config}\nsave \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n")
        } else {
            config
        };
        let child = run(program, dir.path(), &config);
        Self { port, dir, config, program, child }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Starts it again after [`Server::kill`], on the same port, with nothing in it.
    pub async fn restart(&mut self) {
        self.child = run(self.program, self.dir.path(), &self.config);
        self.ready().await;
    }

    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill").success());
    }

    async fn ready(&self) {
        until("the server", async || self.try_ask::<String>(&["PING"]).await.is_some()).await;
    }

    pub async fn connection(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.url()).expect("a URL");
        let connecting = client.get_multiplexed_async_connection();
        timeout(Duration::from_secs(1), connecting).await.ok()?.ok()
    }

    pub async fn try_ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> Option<T> {
        let mut connection = self.connection().await?;
        let mut asked = redis::cmd(command[0]);
        asked.arg(&command[1..]);
        timeout(Duration::from_secs(2), asked.query_async(&mut connection)).await.ok()?.ok()
    }

    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let answer = self.try_ask(command).await;
        answer.unwrap_or_else(|| panic!("{command:?} failed"))
    }

    /// All keys, in order.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", "*"]).await;
        keys.sort();
        keys
    }

    /// How many nodes have a lease.
    pub async fn nodes(&self) -> usize {
        self.keys().await.iter().filter(|key| key.contains("node:")).count()
    }

    /// Keys of entries.
    pub async fn pairs(&self) -> Vec<String> {
        self.keys().await.into_iter().filter(|key| key.contains("pair:")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str, dir: &Path, config: &str) -> Child {
    let file = dir.join("redis.conf");
    fs::write(&file, config).expect("written");
    Command::new(program)
        .arg(file)
        .args(["--bind", "127.0.0.1", "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run {program} ({error}): install redis-server, redis-sentinel and \
                    redis-tools, or use tests/run, which does"
            )
        })
}

pub fn free_port() -> u16 {
    // Below the ports that the system gives to outgoing connections.
    loop {
        let port = rand::random_range(10_000..22_000);
        // A node of a cluster uses another one, 10000 above.
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok()
        {
            return port;
        }
    }
}

/// Waits until something is so, at most [`DEADLINE`].
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    soon(what, async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A rhythm for tests: everything is quick.
pub fn quick() -> Pace {
    Pace {
        lease: Duration::from_millis(1500),
        refresh: Duration::from_millis(300),
        spread: Duration::from_millis(50),
        backoff: Duration::from_millis(200),
        ..Pace::default()
    }
}

pub fn settings(url: &str) -> config::Redis {
    config::Redis { url: Some(Secret::new(url)), ..quick_settings() }
}

pub fn quick_settings() -> config::Redis {
    config::Redis { timeout: Duration::from_millis(500), ..config::Redis::default() }
}

/// One node's rendezvous.
pub fn join(settings: &config::Redis, name: &str) -> Arc<RedisRendezvous> {
    join_with(settings, name, quick())
}

pub fn join_with(settings: &config::Redis, name: &str, pace: Pace) -> Arc<RedisRendezvous> {
    RedisRendezvous::start(settings, facts(name), pace).expect("good settings")
}

/// Joins, with the telemetry that records its metrics and events.
pub fn join_observed(settings: &config::Redis, name: &str) -> (Arc<RedisRendezvous>, Telemetry) {
    let id = NodeId::started(name);
    let telemetry = Telemetry::start(&config::Telemetry::default(), &id, name).expect("telemetry");
    let facts = NodeFacts { telemetry: Some(telemetry.clone()), ..facts(name) };
    (RedisRendezvous::start(settings, facts, quick()).expect("good settings"), telemetry)
}

fn facts(name: &str) -> NodeFacts {
    NodeFacts {
        load: None,
        telemetry: None,
        id: NodeId::started(name),
        name: name.into(),
        bridge_address: bridge(name),
        waiting: Duration::from_mins(1),
    }
}

/// The events of this kind, in words.
pub fn events(telemetry: &Telemetry, kind: EventKind) -> Vec<String> {
    let events = telemetry.journal.since(0).into_iter();
    events.filter(|event| event.kind == kind).map(|event| event.text).collect()
}

/// Three servers of a Redis Cluster that share the slots.
pub async fn cluster() -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let config = "cluster-enabled yes\ncluster-node-timeout 1000";
        servers.push(Server::with(config).await);
    }
    let addresses = servers.iter().map(|server| format!("127.0.0.1:{}", server.port));
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(addresses)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .expect("redis-cli runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    until("the cluster", async || {
        for server in &servers {
            if !server.ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok") {
                return false;
            }
        }
        true
    })
    .await;
    servers
}

pub fn bridge(name: &str) -> String {
    format!("{name}:1213")
}

pub async fn up(rendezvous: &RedisRendezvous) {
    let mut health = rendezvous.health();
    soon("Redis", health.wait_for(|health| *health == Health::Up)).await.expect("a keeper");
}

pub async fn away(rendezvous: &RedisRendezvous) {
    let mut health = rendezvous.health();
    let is_away = |health: &Health| matches!(health, Health::Away { .. });
    soon("an outage", health.wait_for(is_away)).await.expect("a keeper");
}

pub fn offer(token: &str) -> Offer {
    Offer::new(PairingKey::new(&Token::new(token), None), None)
}

/// Offers, and waits for the answer.
pub async fn ask<R: Rendezvous + 'static>(rendezvous: &Arc<R>, offer: Offer) -> Answer {
    let answer = Arc::clone(rendezvous).offer(offer);
    match timeout(DEADLINE, answer).await.expect("an answer in time") {
        Answer::Claimed(Waiting { id, home }) => {
            Answer::Claimed(Waiting { id, home: of_any_start(home) })
        }
        answer @ (Answer::Wait | Answer::Taken) => answer,
    }
}

/// The node of this name, whichever start of it.
pub fn remote(name: &str) -> RemoteNode {
    RemoteNode { id: name.into(), address: bridge(name) }
}

/// The same with a node like that of [`remote`].
pub fn of_any_start(home: Home) -> Home {
    match home {
        Home::Here => Home::Here,
        Home::There { node, secret, trace } => {
            let node = RemoteNode { id: node.id.name().into(), address: node.address };
            Home::There { node, secret, trace }
        }
    }
}

/// Offers, and gives what will be answered.
pub fn asking<R: Rendezvous + 'static>(
    rendezvous: &Arc<R>,
    offer: Offer,
) -> tokio::task::JoinHandle<Answer> {
    tokio::spawn(Arc::clone(rendezvous).offer(offer))
}

/// A node that has joined and reaches Redis.
pub async fn joined(server: &Server, name: &str) -> Arc<RedisRendezvous> {
    let node = join(&settings(&server.url()), name);
    up(&node).await;
    node
}
