//! One node of the cluster: a process that is started, ended, frozen, and watched.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::process::signal;
use crate::world::World;

/// How long a load balancer takes to notice that a node does not answer.
const NOTICED: Duration = Duration::from_secs(2);
/// How long established tunnels may last after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// The ports of a node, the same after each start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) websocket: u16,
    pub(crate) secure_websocket: u16,
    pub(crate) tcp: u16,
    pub(crate) tls: u16,
    pub(crate) bridge: u16,
    /// The relay that leads to the bridge.
    pub(crate) advertised: u16,
    /// The relay that leads to Redis.
    pub(crate) redis: u16,
    pub(crate) admin: u16,
}

/// A value of a node.
pub(crate) struct Metric {
    pub(crate) name: String,
    /// The name with all labels.
    pub(crate) series: String,
    pub(crate) value: f64,
}

impl Metric {
    fn read((series, value): (&str, &str)) -> Option<Self> {
        let name = series.split('{').next()?.to_owned();
        Some(Self { name, series: series.to_owned(), value: value.parse().ok()? })
    }
}

/// A node of the cluster.
pub(crate) struct Member {
    pub(crate) index: usize,
    pub(crate) ports: Ports,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    settings: Vec<(&'static str, String)>,
    state: Mutex<State>,
}

enum State {
    Down,
    Running {
        pid: u32,
        frozen: Option<Instant>,
        /// It is meant to end.
        ending: bool,
        ended: watch::Receiver<Process>,
    },
}

/// Whether a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Alive,
    /// With this exit code, unless a signal ended it.
    Ended(Option<i32>),
}

impl Member {
    pub(crate) fn new(
        index: usize,
        ports: Ports,
        directory: &Path,
        mut settings: Vec<(&'static str, String)>,
    ) -> Self {
        let socket = directory.join(format!("node{}.socket", index + 1));
        let log = directory.join(format!("node{}.log", index + 1));
        let at = |port: u16| format!("127.0.0.1:{port}");
        let listen = serde_json::json!([
            { "kind": "websocket", "address": at(ports.websocket), "tls": false },
            { "kind": "websocket", "address": at(ports.secure_websocket) },
            { "kind": "tcp", "address": at(ports.tcp), "tls": false },
            { "kind": "tcp", "address": at(ports.tls) },
            { "kind": "unix", "path": socket },
        ]);
        settings.extend([
            ("LISTEN", listen.to_string()),
            ("NODE__NAME", format!("soak-{}", index + 1)),
            ("REDIS__URL", format!("redis://{}", at(ports.redis))),
            ("BRIDGE__LISTEN", at(ports.bridge)),
            ("BRIDGE__ADVERTISE", at(ports.advertised)),
            ("ADMIN__LISTEN", at(ports.admin)),
            ("DRAIN__GRACE", format!("{}s", GRACE.as_secs())),
            ("LOG__FORMAT", "human".into()),
        ]);
        Self { index, ports, socket, log, settings, state: Mutex::new(State::Down) }
    }

    /// Whether endpoints would be sent to this node.
    pub(crate) fn is_reachable(&self) -> bool {
        match &*self.state() {
            State::Down => false,
            State::Running { frozen, ending, .. } => {
                !ending && frozen.is_none_or(|since| since.elapsed() < NOTICED)
            }
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match &*self.state() {
            State::Down => None,
            State::Running { pid, .. } => Some(*pid),
        }
    }

    /// Starts the node and waits until it answers.
    pub(crate) async fn start(&self, world: &Arc<World>) -> anyhow::Result<()> {
        let program = world.options.programs.join("nymea-remoteproxy");
        let mut command = Command::new(&program);
        for (name, value) in &self.settings {
            command.env(format!("REMOTEPROXY__{name}"), value);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REMOTEPROXY") {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.settings {
            command.env(format!("REMOTEPROXY__{name}"), value);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (pid, stderr) = child.id().zip(child.stderr.take()).context("the node ended")?;
        let (sender, ended) = watch::channel(Process::Alive);
        *self.state() = State::Running { pid, frozen: None, ending: false, ended };
        world.tasks.spawn(read_log(Arc::clone(world), self.index, self.log.clone(), stderr));
        world.tasks.spawn(watch_end(Arc::clone(world), self.index, child, sender));
        world.cluster.bridges.refuse(self.index, false);
        let deadline = Instant::now() + world.options.within(20);
        while self.get("/healthz").await.is_err() {
            ensure!(Instant::now() < deadline, "node {} does not answer", self.index + 1);
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub(crate) async fn freeze(&self) -> anyhow::Result<()> {
        let pid = self.pid().context("the node is down")?;
        if let State::Running { frozen, .. } = &mut *self.state() {
            *frozen = Some(Instant::now());
        }
        signal(pid, "STOP").await
    }

    pub(crate) async fn thaw(&self) -> anyhow::Result<()> {
        let pid = self.pid().context("the node is down")?;
        signal(pid, "CONT").await?;
        if let State::Running { frozen, .. } = &mut *self.state() {
            *frozen = None;
        }
        Ok(())
    }

    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        let pid = self.mark_ending()?;
        signal(pid, "KILL").await?;
        self.ended(Duration::from_secs(10)).await.map(|_| ())
    }

    /// Ends the node in order; the exit code must be 0.
    pub(crate) async fn drain(&self, world: &World) -> anyhow::Result<()> {
        let pid = self.mark_ending()?;
        signal(pid, "TERM").await?;
        let code = self.ended(GRACE + world.options.within(15)).await?;
        ensure!(code == Some(0), "node {} ended with {code:?} after SIGTERM", self.index + 1);
        Ok(())
    }

    fn mark_ending(&self) -> anyhow::Result<u32> {
        match &mut *self.state() {
            State::Down => bail!("node {} is down", self.index + 1),
            State::Running { pid, ending, .. } => {
                *ending = true;
                Ok(*pid)
            }
        }
    }

    /// Waits until the process has ended; its exit code.
    async fn ended(&self, limit: Duration) -> anyhow::Result<Option<i32>> {
        let mut ended = match &*self.state() {
            State::Down => return Ok(None),
            State::Running { ended, .. } => ended.clone(),
        };
        let has_ended = |process: &Process| matches!(process, Process::Ended(_));
        let waiting = timeout(limit, ended.wait_for(has_ended)).await;
        let process = waiting.with_context(|| format!("node {} does not end", self.index + 1))?;
        *self.state() = State::Down;
        Ok(match process.as_deref() {
            Ok(Process::Ended(code)) => *code,
            Ok(Process::Alive) | Err(_) => None,
        })
    }

    /// Whether the node was meant to end.
    fn is_ending(&self) -> bool {
        match &*self.state() {
            State::Down => true,
            State::Running { ending, .. } => *ending,
        }
    }

    /// What the admin listener answers to a GET; `Err` unless the status is 200.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<String> {
        let asking = async {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.admin));
            let mut tcp = TcpStream::connect(address).await?;
            tcp.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            tcp.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(Duration::from_secs(5), asking).await??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        ensure!(head.split_whitespace().nth(1) == Some("200"), "{head}");
        Ok(body.to_owned())
    }

    /// All metrics.
    pub(crate) async fn metrics(&self) -> anyhow::Result<Vec<Metric>> {
        let text = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')).filter_map(Metric::read).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the log to its file, and looks for what must not be in it.
async fn read_log(world: Arc<World>, index: usize, path: PathBuf, stderr: ChildStderr) {
    let file = File::options().create(true).append(true).open(&path).await;
    let Ok(mut file) = file else {
        return world.journal.violation("log", format_args!("cannot write {}", path.display()));
    };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains(" ERROR ") || line.contains("panicked") {
            world.journal.violation("log", format_args!("node {}: {line}", index + 1));
        }
        let _full = file.write_all(format!("{line}\n").as_bytes()).await;
    }
    let _full = file.flush().await;
}

/// Waits for the end of the process, which must have been meant to end.
async fn watch_end(
    world: Arc<World>,
    index: usize,
    mut child: Child,
    ended: watch::Sender<Process>,
) {
    let status = child.wait().await;
    world.cluster.bridges.refuse(index, true);
    let member = &world.cluster.nodes[index];
    if !member.is_ending() {
        world.journal.violation("died", format_args!("node {} by itself: {status:?}", index + 1));
    }
    ended.send_replace(Process::Ended(status.ok().and_then(|status| status.code())));
}
