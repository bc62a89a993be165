//! The connection to Redis as everybody uses it: every command has a deadline, and what speaks
//! against the connection takes it out of use until the keeper has made a new one.
//!
//! A server that refuses a command may do so for the sake of this one command, or because it takes
//! no writes at all. Only the lease can tell: after a refusal it is refreshed at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use redis::{ErrorKind, FromRedisValue, RedisError};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::fence::Trail;
use super::server::Identity;
use super::target::Connection;
use crate::lock::lock;
use crate::observability::{EventKind, Journal, Metrics, Occurrence, Telemetry};

/// Whether Redis serves this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The lease of the node can be refreshed.
    Up,
    /// Redis does not answer, or refuses to refresh the lease.
    Away {
        /// When it was last up.
        since: Instant,
        /// The reason, in a few words that may be shown to strangers.
        reason: Arc<str>,
    },
}

/// A command without an answer. Whether it was carried out is unknown.
#[derive(Debug, Error)]
pub enum Unanswered {
    /// There is no connection.
    #[error("not connected")]
    Away,
    /// Redis is silent.
    #[error("no answer in time")]
    Timeout,
    /// Redis refuses, or the connection broke.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// Why Redis counts as away.
#[derive(Debug)]
pub(super) struct Reason {
    /// The code of the error, or its kind. Details may name users and keys.
    short: Arc<str>,
    /// The reason for the log.
    full: String,
}

impl Reason {
    /// Redis is silent.
    pub(super) fn no_answer() -> Self {
        Self::from("no answer in time")
    }

    /// An error that may have come from Redis.
    pub(super) fn of(error: &dyn std::error::Error, redis: Option<&RedisError>) -> Self {
        let full = error.to_string();
        let short = redis.map_or(full.as_str(), |redis| redis.code().unwrap_or(redis.category()));
        Self { short: short.into(), full }
    }
}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        Self { short: text.into(), full: text.into() }
    }
}

impl From<&RedisError> for Reason {
    fn from(error: &RedisError) -> Self {
        Self::of(error, Some(error))
    }
}

impl Unanswered {
    /// Whether the server has refused the command, so that it has certainly not been carried out.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Redis(error) => is_refusal(error),
            Self::Away | Self::Timeout => false,
        }
    }
}

/// The servers connected to so far.
#[derive(Default)]
struct History {
    /// The server over which the lease was written last.
    server: Option<Identity>,
    /// The connection that was opened last.
    trail: Trail,
}

/// See the module.
pub(super) struct Link {
    patience: Duration,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    telemetry: Option<Telemetry>,
    current: watch::Sender<Option<Wire>>,
    health: watch::Sender<Health>,
    last_answer: Mutex<Instant>,
    wires: AtomicU64,
    /// An outage is logged once, however often connecting fails.
    told: AtomicBool,
    /// When the last trouble ended.
    steady_since: Mutex<Instant>,
    /// A command was refused: the lease should be refreshed now.
    doubt: Notify,
    history: Mutex<History>,
}

#[derive(Clone)]
struct Wire {
    number: u64,
    connection: Connection,
    /// The link is closed.
    over: CancellationToken,
}

impl Link {
    pub(super) fn new(patience: Duration, telemetry: Option<&Telemetry>) -> Self {
        let now = Instant::now();
        Self {
            patience,
            metrics: telemetry.map_or_else(Metrics::off, |it| Arc::clone(&it.metrics)),
            journal: telemetry.map(|it| Arc::clone(&it.journal)).unwrap_or_default(),
            telemetry: telemetry.cloned(),
            current: watch::Sender::new(None),
            health: watch::Sender::new(Health::Away { since: now, reason: "starting".into() }),
            last_answer: Mutex::new(now),
            wires: AtomicU64::new(0),
            told: AtomicBool::new(false),
            steady_since: Mutex::new(now),
            doubt: Notify::new(),
            history: Mutex::default(),
        }
    }

    /// Asks Redis something, over the connection of the moment.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        command: &'static str,
        call: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, Unanswered> {
        let Some(Wire { number, mut connection, over }) = self.wire().await else {
            self.metrics.redis(command, "away", Duration::ZERO);
            return Err(Unanswered::Away);
        };
        let is_cluster = matches!(connection, Connection::Cluster(_));
        let asked_at = Instant::now();
        let answered = timeout(self.patience, call(&mut connection));
        // A command must not be tried again on a connection that has been replaced.
        let Some(answered) = over.run_until_cancelled(answered).await else {
            self.metrics.redis(command, "away", asked_at.elapsed());
            return Err(Unanswered::Away);
        };
        let outcome = match &answered {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "error",
            Err(_) => "timeout",
        };
        self.metrics.redis(command, outcome, asked_at.elapsed());
        match answered {
            Ok(Ok(answer)) => {
                set_to_now(&self.last_answer);
                Ok(answer)
            }
            Ok(Err(error)) => {
                // In a cluster, it may be one of several servers that is in trouble.
                let is_odd = error.kind() == ErrorKind::UnexpectedReturnType;
                if is_refusal(&error) || is_odd || is_cluster {
                    debug!(%error, "Redis refuses a command");
                    self.doubt.notify_one();
                } else {
                    set_to_now(&self.steady_since);
                    self.down(number, &Reason::from(&error));
                }
                Err(error.into())
            }
            Err(_) => {
                set_to_now(&self.steady_since);
                // Slow is not silent: other commands may have been answered since.
                if get(&self.last_answer) < asked_at {
                    self.down(number, &Reason::no_answer());
                }
                Err(Unanswered::Timeout)
            }
        }
    }

    /// The connection of the moment. One that has just been lost, or is about to be made for the
    /// first time, is waited for: until an outage has lasted for a while it is none.
    async fn wire(&self) -> Option<Wire> {
        let health = self.health.borrow().clone();
        if let Health::Away { since, .. } = health {
            let left = self.patience.saturating_sub(since.elapsed());
            let _or_not = timeout(left, self.is_up()).await;
        }
        self.current.borrow().clone()
    }

    /// A new connection is there. One that is still in use gives way to it.
    pub(super) fn up(&self, connection: Connection) {
        set_to_now(&self.last_answer);
        set_to_now(&self.steady_since);
        self.told.store(false, Ordering::Relaxed);
        let number = self.wires.fetch_add(1, Ordering::Relaxed) + 1;
        let wire = Wire { number, connection, over: CancellationToken::new() };
        if let Some(before) = self.current.send_replace(Some(wire)) {
            before.over.cancel();
        }
        match self.health.send_replace(Health::Up) {
            Health::Away { since, .. } => {
                self.journal.note(EventKind::State, "Redis answers");
                info!(after = ?since.elapsed(), "Redis answers");
            }
            Health::Up => {
                self.journal.note(EventKind::State, "another Redis server is the master");
                info!("another Redis server is the master");
            }
        }
    }

    /// There is no connection, and none could be made.
    pub(super) fn cannot_connect(&self, reason: &Reason) {
        if self.told.swap(true, Ordering::Relaxed) {
            debug!(reason = reason.full, "cannot connect to Redis");
        } else {
            self.tell(reason);
        }
        self.health.send_if_modified(|health| match health {
            Health::Away { reason: before, .. } if *before != reason.short => {
                *before = Arc::clone(&reason.short);
                true
            }
            Health::Away { .. } | Health::Up => false,
        });
    }

    fn tell(&self, reason: &Reason) {
        self.trouble(&format!("Redis is away: {}", reason.full));
    }

    /// Something that an operator should look at.
    pub(super) fn trouble(&self, what: &str) {
        self.journal.note(EventKind::Trouble, what);
        warn!("{what}");
    }

    /// Records what may concern many endpoints at once. True if the caller logs it.
    pub(super) fn recurs(&self, occurrence: &Occurrence) -> bool {
        self.telemetry.as_ref().is_none_or(|telemetry| telemetry.recurs(occurrence))
    }

    /// The connection of the moment.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.current.borrow().as_ref().map(|wire| wire.connection.clone())
    }

    /// The lease was written to this server, or it has been looked at again. Whether it may have
    /// lost what was there before.
    pub(super) fn server_is(&self, mut server: Identity) -> bool {
        let mut history = self.history();
        let Some(before) = history.server.take() else {
            history.server = Some(server);
            return false;
        };
        let lost = server.may_have_lost(&before);
        server.remember(&before);
        history.server = Some(server);
        lost
    }

    /// Whether the lease has ever been written.
    pub(super) fn knows_a_server(&self) -> bool {
        self.history().server.is_some()
    }

    /// Whether this is the server over which the lease was written last.
    pub(super) fn is_server(&self, server: &Identity) -> bool {
        self.history().server.as_ref().is_some_and(|before| !server.may_have_lost(before))
    }

    /// The connection that was opened last.
    pub(super) fn trail(&self) -> Trail {
        self.history().trail.clone()
    }

    pub(super) fn set_trail(&self, trail: Trail) {
        self.history().trail = trail;
    }

    fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    /// The connection of the moment is no good.
    pub(super) fn give_up(&self, reason: &Reason) {
        let number = self.current.borrow().as_ref().map(|wire| wire.number);
        if let Some(number) = number {
            self.down(number, reason);
        }
    }

    /// The node ends, and needs no connection any more.
    pub(super) fn close(&self) {
        if let Some(wire) = self.current.send_replace(None) {
            wire.over.cancel();
        }
        self.health
            .send_replace(Health::Away { since: Instant::now(), reason: "the node ends".into() });
    }

    /// Done when a command has been refused since the last time.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Done when there is no connection.
    pub(super) async fn is_down(&self) {
        // Fails only without a sender, and that is here.
        let _ = self.current.subscribe().wait_for(Option::is_none).await;
    }

    /// Done when there is a connection.
    pub(super) async fn is_up(&self) {
        let _ = self.current.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether Redis answers.
    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// How long there has been no trouble.
    pub(super) fn steady_for(&self) -> Duration {
        get(&self.steady_since).elapsed()
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    fn down(&self, number: u64, reason: &Reason) {
        let mut gone = None;
        self.current.send_if_modified(|current| {
            gone = current.take_if(|wire| wire.number == number);
            gone.is_some()
        });
        if let Some(wire) = gone {
            wire.over.cancel();
            self.told.store(true, Ordering::Relaxed);
            self.tell(reason);
            let reason = Arc::clone(&reason.short);
            self.health.send_replace(Health::Away { since: Instant::now(), reason });
        }
    }
}

fn get(instant: &Mutex<Instant>) -> Instant {
    *lock(instant)
}

fn set_to_now(instant: &Mutex<Instant>) {
    *lock(instant) = Instant::now();
}

/// Whether the server has answered that it does not do this.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}
