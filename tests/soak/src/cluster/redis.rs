//! The Redis of the cluster.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use redis::FromRedisValue;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::process::signal;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A `redis-server` process.
pub(crate) struct Redis {
    port: u16,
    directory: PathBuf,
    child: Mutex<Option<Child>>,
}

/// An entry that is left in Redis.
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The id of the node that made it.
    pub(crate) node: String,
}

impl Redis {
    pub(crate) async fn new(port: u16, directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.join("redis");
        fs::create_dir_all(&directory)?;
        let redis = Self { port, directory, child: Mutex::default() };
        redis.start().await?;
        Ok(redis)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Starts it with the data that it has on disk.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run redis-server; tests/run installs it")?;
        *self.child.lock().await = Some(child);
        let deadline = Instant::now() + ANSWER;
        while self.ask::<String>(&["PING"]).await.is_err() {
            if Instant::now() > deadline {
                bail!("redis-server does not answer");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.lock().await.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Deletes what is on disk.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.directory.join("dump.rdb")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(crate) async fn freeze(&self) -> anyhow::Result<()> {
        self.signal("STOP").await
    }

    pub(crate) async fn thaw(&self) -> anyhow::Result<()> {
        self.signal("CONT").await
    }

    async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.child.lock().await.as_ref().and_then(Child::id);
        signal(pid.context("redis-server has ended")?, name).await
    }

    /// Sends a command, and returns an error if it fails.
    pub(crate) async fn command(&self, command: &[&str]) -> anyhow::Result<()> {
        self.ask::<redis::Value>(command).await.map(|_| ())
    }

    /// Sends a command and returns the answer.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &[&str]) -> anyhow::Result<T> {
        let client = redis::Client::open(format!("redis://{}", self.address()))?;
        let asking = async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await
        };
        let answer = timeout(ANSWER, asking).await.context("no answer of Redis")?;
        answer.with_context(|| format!("{command:?}"))
    }

    /// Deletes one key.
    pub(crate) async fn lose_a_key(&self) -> anyhow::Result<String> {
        let Some(key) = self.ask::<Option<String>>(&["RANDOMKEY"]).await? else {
            return Ok("nothing".into());
        };
        self.command(&["DEL", &key]).await?;
        Ok(key)
    }

    /// All entries of endpoints, gateways and apps.
    pub(crate) async fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for key in self.ask::<Vec<String>>(&["KEYS", "*"]).await? {
            if key.contains("pair:") || key.contains("uuid:") {
                // Gone in between, perhaps.
                let node: Option<String> = self.ask(&["HGET", &key, "node"]).await?;
                entries.push(Entry { key, node: node.unwrap_or_default() });
            }
        }
        Ok(entries)
    }

    /// The ids of the nodes that have a lease.
    pub(crate) async fn leases(&self) -> anyhow::Result<Vec<String>> {
        let keys: Vec<String> = self.ask(&["KEYS", "*node:*"]).await?;
        let ids = keys.iter().filter_map(|key| key.split_once("node:"));
        Ok(ids.map(|(_, id)| id.to_owned()).collect())
    }
}
