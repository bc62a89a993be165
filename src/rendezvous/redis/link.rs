//! The connection to Redis as everybody uses it: every command has a deadline, and what speaks
//! against the connection takes it out of use until the keeper has made a new one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::target::Connection;
use crate::observability::{EventKind, Journal, Metrics, Telemetry};

/// Whether Redis answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Up,
    /// It does not.
    Away {
        /// Since then.
        since: Instant,
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

/// See the module.
pub(super) struct Link {
    patience: Duration,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    current: watch::Sender<Option<Wire>>,
    health: watch::Sender<Health>,
    last_answer: Mutex<Instant>,
    wires: AtomicU64,
    /// An outage is logged once, however often connecting fails.
    told: AtomicBool,
    /// Since when there has been no trouble at all.
    steady_since: Mutex<Instant>,
}

#[derive(Clone)]
struct Wire {
    number: u64,
    connection: Connection,
}

impl Link {
    pub(super) fn new(patience: Duration, telemetry: Option<&Telemetry>) -> Self {
        let now = Instant::now();
        Self {
            patience,
            metrics: telemetry.map_or_else(Metrics::off, |it| Arc::clone(&it.metrics)),
            journal: telemetry.map(|it| Arc::clone(&it.journal)).unwrap_or_default(),
            current: watch::Sender::new(None),
            health: watch::Sender::new(Health::Away { since: now }),
            last_answer: Mutex::new(now),
            wires: AtomicU64::new(0),
            told: AtomicBool::new(false),
            steady_since: Mutex::new(now),
        }
    }

    /// Asks Redis something, over the connection of the moment.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        command: &'static str,
        call: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, Unanswered> {
        let Some(Wire { number, mut connection }) = self.wire().await else {
            self.metrics.redis(command, "away", Duration::ZERO);
            return Err(Unanswered::Away);
        };
        let asked_at = Instant::now();
        let answered = timeout(self.patience, call(&mut connection)).await;
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
                set_to_now(&self.steady_since);
                if speaks_against_the_connection(&error) {
                    self.down(number, &error.to_string());
                } else {
                    debug!(%error, "Redis refuses a command");
                }
                Err(error.into())
            }
            Err(_) => {
                set_to_now(&self.steady_since);
                // Slow is not silent: others may have had their answers meanwhile.
                if get(&self.last_answer) < asked_at {
                    self.down(number, "no answer in time");
                }
                Err(Unanswered::Timeout)
            }
        }
    }

    /// The connection of the moment. One that has just been lost, or is about to be made for the
    /// first time, is waited for: until an outage has lasted for a while it is none.
    async fn wire(&self) -> Option<Wire> {
        let health = *self.health.borrow();
        if let Health::Away { since } = health {
            let left = self.patience.saturating_sub(since.elapsed());
            let _or_not = timeout(left, self.is_up()).await;
        }
        self.current.borrow().clone()
    }

    /// A new connection is there.
    pub(super) fn up(&self, connection: Connection) {
        set_to_now(&self.last_answer);
        set_to_now(&self.steady_since);
        self.told.store(false, Ordering::Relaxed);
        let number = self.wires.fetch_add(1, Ordering::Relaxed) + 1;
        self.current.send_replace(Some(Wire { number, connection }));
        match self.health.send_replace(Health::Up) {
            Health::Away { since } => {
                self.journal.note(EventKind::State, "Redis answers");
                info!(after = ?since.elapsed(), "Redis answers");
            }
            Health::Up => {}
        }
    }

    /// There is no connection, and none could be made.
    pub(super) fn cannot_connect(&self, reason: &str) {
        if self.told.swap(true, Ordering::Relaxed) {
            debug!(reason, "cannot connect to Redis");
        } else {
            self.journal.note(EventKind::Trouble, "Redis is away");
            warn!(reason, "Redis is away");
        }
    }

    /// The masters of the cluster, if they can be told.
    pub(super) async fn masters(&self, patience: Duration) -> Option<String> {
        let mut wire = self.current.borrow().clone()?;
        wire.connection.server(patience).await.ok()
    }

    /// The connection of the moment is no good.
    pub(super) fn give_up(&self, reason: &str) {
        let number = self.current.borrow().as_ref().map(|wire| wire.number);
        if let Some(number) = number {
            self.down(number, reason);
        }
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

    fn down(&self, number: u64, reason: &str) {
        let gone = self.current.send_if_modified(|current| {
            let is_it = current.as_ref().is_some_and(|wire| wire.number == number);
            if is_it {
                *current = None;
            }
            is_it
        });
        if gone {
            self.told.store(true, Ordering::Relaxed);
            self.journal.note(EventKind::Trouble, "Redis is away");
            warn!(reason, "Redis is away");
            self.health.send_replace(Health::Away { since: Instant::now() });
        }
    }
}

fn get(instant: &Mutex<Instant>) -> Instant {
    *instant.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_to_now(instant: &Mutex<Instant>) {
    *instant.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Whether another connection might do better.
fn speaks_against_the_connection(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
        ),
        // An answer that is none of ours, or a command the server does not know.
        ErrorKind::Extension | ErrorKind::UnexpectedReturnType => false,
        _ => true,
    }
}
