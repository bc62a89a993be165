//! The last minutes of a node, and what the status page shows of it every other second.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Admin;
use super::model::{Happened, Member, NodeState, Tunnel};
use crate::lock::lock;
use crate::observability::{Histogram, Series, Value};

/// The time between two samples.
const STEP: Duration = Duration::from_secs(2);
/// The number of samples that are kept: five minutes.
const SAMPLES: usize = 150;
/// Of the times of set-ups, one in so many samples is remembered.
const SETUPS_EVERY: usize = 15;
/// Tunnels that are shown.
const TUNNELS: usize = 20;
/// Tunnels that are looked at to find those.
const LOOKED_AT: usize = 10_000;

/// See the module.
pub(super) struct History {
    samples: Mutex<VecDeque<Sample>>,
    /// The latest status; `None` before the first sample.
    status: watch::Sender<Option<Arc<Status>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { samples: Mutex::default(), status: watch::Sender::new(None) }
    }
}

/// A sample of a node's state.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    connections: usize,
    tunnels: usize,
    /// Payload per second, both ways.
    bytes_per_second: u64,
}

/// The data of the status page.
#[derive(Serialize)]
pub(super) struct Status {
    node: NodeState,
    sample: Sample,
    /// All nodes of the cluster; `null` if Redis does not answer.
    cluster: Option<Vec<Member>>,
    setup: Vec<SetUp>,
    refused: BTreeMap<String, u64>,
    closed: BTreeMap<String, u64>,
    /// The tunnels through which most has gone.
    tunnels: Vec<Tunnel>,
    events: Vec<Happened>,
}

/// The times of a step of set-ups in the last minutes.
#[derive(Serialize)]
struct SetUp {
    step: String,
    count: u64,
    /// In seconds; `null` if there was none.
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

impl History {
    /// Looks at a node as long as it is polled.
    pub(super) async fn keep(&self, admin: &Admin) {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut before, mut setups) = ((Instant::now(), 0), VecDeque::new());
        for round in 0_usize.. {
            ticks.tick().await;
            let bytes = bytes(admin);
            let seconds = before.0.elapsed().as_secs_f64().max(0.001);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a rate needs no more"
            )]
            let bytes_per_second =
                if round == 0 { 0 } else { ((bytes - before.1) as f64 / seconds) as u64 };
            before = (Instant::now(), bytes);
            let load = (admin.load)();
            let (connections, tunnels) = (load.connections, load.tunnels);
            let sample = Sample { connections, tunnels, bytes_per_second };
            self.remember(sample);
            let series = admin.telemetry.metrics.series();
            if round % SETUPS_EVERY == 0 {
                if setups.len() == SAMPLES / SETUPS_EVERY {
                    setups.pop_front();
                }
                setups.push_back(times(&series));
            }
            // Without a reader, no status is put together.
            if self.status.receiver_count() > 0 {
                let status = status(admin, sample, &series, setups.front()).await;
                self.status.send_replace(Some(Arc::new(status)));
            }
        }
    }

    /// Returns the samples so far, oldest first, and the channel of those to follow.
    pub(super) fn follow(&self) -> (Vec<Sample>, watch::Receiver<Option<Arc<Status>>>) {
        let mut status = self.status.subscribe();
        // The value in the channel may be old; the reader waits for the next one.
        status.mark_unchanged();
        (self.samples().iter().copied().collect(), status)
    }

    fn remember(&self, sample: Sample) {
        let mut samples = self.samples();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        lock(&self.samples)
    }
}

fn bytes(admin: &Admin) -> u64 {
    let traffic = admin.telemetry.tunnels.traffic();
    traffic.iter().flat_map(|(_, directions)| directions).map(|traffic| traffic.bytes).sum()
}

type Times = BTreeMap<String, Histogram>;

/// The times of set-ups by step.
fn times(series: &[Series]) -> Times {
    let of_setups = series.iter().filter(|it| it.name == "remoteproxy_setup_duration_seconds");
    let of_setups = of_setups.filter_map(|series| match &series.value {
        Value::Histogram(times) => Some((series.label("step")?.to_owned(), times.clone())),
        Value::Number(_) => None,
    });
    of_setups.collect()
}

async fn status(
    admin: &Admin,
    sample: Sample,
    series: &[Series],
    earlier: Option<&Times>,
) -> Status {
    let nodes = tokio::time::timeout(STEP / 2, admin.cluster.nodes()).await;
    let cluster = nodes.ok().and_then(Result::ok);
    let mut tunnels: Vec<_> = admin
        .telemetry
        .tunnels
        .list(None, LOOKED_AT, |_| true)
        .iter()
        .map(|record| Tunnel::of(record))
        .collect();
    tunnels.sort_by_key(|tunnel| std::cmp::Reverse(tunnel.bytes()));
    tunnels.truncate(TUNNELS);
    Status {
        node: NodeState::of(admin),
        sample,
        cluster: cluster.map(|nodes| Member::all(nodes, admin)),
        setup: setup(times(series), earlier),
        refused: Series::sums(series, "remoteproxy_connections_refused_total", "reason"),
        closed: Series::sums(series, "remoteproxy_connections_closed_total", "reason"),
        tunnels,
        events: admin.telemetry.journal.since(0).into_iter().map(Happened::of).collect(),
    }
}

fn setup(now: Times, earlier: Option<&Times>) -> Vec<SetUp> {
    let none = Histogram::default();
    let of = |(step, times): (String, Histogram)| {
        let before = earlier.and_then(|earlier| earlier.get(&step)).unwrap_or(&none);
        let times = times.since(before);
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| times.quantile(share));
        SetUp { step, count: times.count, p50, p95, p99 }
    };
    now.into_iter().map(of).collect()
}
