//! A node that is started for a measurement.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const START: Duration = Duration::from_secs(30);
const ANNOUNCEMENT: &str = "listening on ";
/// The setting of the listener, in place of a port.
pub(crate) const LISTENERS: &str = "REMOTEPROXY__LISTEN";

/// A node that lives as long as this value.
pub(crate) struct Started {
    pub(crate) url: String,
    pub(crate) pid: u32,
    _child: Child,
}

impl Started {
    /// Starts a node on a free port, with default settings, from the program beside this one.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        Self::start(&[]).await
    }

    /// Starts a node of a cluster. The bridge is on loopback, and its TLS is not what is measured.
    /// Endpoints that read nothing, and so answer no ping, are kept.
    pub(crate) async fn member(redis: &str, name: &str) -> anyhow::Result<Self> {
        Self::start(&[
            ("REMOTEPROXY__REDIS__URL", redis),
            ("REMOTEPROXY__NODE__NAME", name),
            ("REMOTEPROXY__BRIDGE__LISTEN", "127.0.0.1:0"),
            ("REMOTEPROXY__BRIDGE__INSECURE", "true"),
            ("REMOTEPROXY__KEEPALIVE__INTERVAL", "1h"),
            ("REMOTEPROXY__TIMEOUTS__STALLED", "1h"),
        ])
        .await
    }

    /// The same with other settings.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start(settings).await
    }

    async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("nymea-remoteproxy");
        let has_listeners = settings.iter().any(|(key, _)| *key == LISTENERS);
        let port = if has_listeners { &[][..] } else { &["--port", "0"] };
        let mut child = Command::new(&program)
            .args(port)
            // With its defaults, whatever the settings of this shell are.
            .env_clear()
            .env("REMOTEPROXY__LOG__FORMAT", "human")
            .env("REMOTEPROXY__ADMIN__LISTEN", "127.0.0.1:0")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (pid, stderr) = child.id().zip(child.stderr.take()).context("the node ended")?;
        let mut log = BufReader::new(stderr).lines();
        let url = timeout(START, async {
            while let Some(line) = log.next_line().await? {
                if let Some(url) = announced(&line) {
                    return Ok(url);
                }
            }
            bail!("the node ended without listening")
        })
        .await
        .context("the node did not start in time")??;
        // Ends with the node. Unread, the full pipe would drop lines of the log.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Ok(Self { url, pid, _child: child })
    }
}

fn announced(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(ANNOUNCEMENT)?;
    let end = rest.find(|c: char| c.is_whitespace() || c.is_control()).unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_found_in_the_log() {
        let line = "2026-01-01T00:00:00Z  INFO listening on wss://127.0.0.1:4711 name=\"n\"";
        assert_eq!(announced(line).as_deref(), Some("wss://127.0.0.1:4711"));
        assert_eq!(announced("something else"), None);
    }
}
