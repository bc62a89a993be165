//! Resources of the process, with the names of the OpenTelemetry semantic conventions.

use std::time::{Duration, Instant};

use procfs::process::{LimitValue, Process};
use tokio::runtime::Handle;

use super::Metrics;

/// The interval of measurements of the runtime.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Adds the process's own metrics.
pub(super) fn observe(metrics: &Metrics) {
    let started = Instant::now();
    metrics.observe(("process.memory.usage", "By"), "Resident memory", || {
        let pages = Process::myself().ok()?.statm().ok()?.resident;
        Some(float(pages * procfs::page_size()))
    });
    metrics.observe_total(("process.cpu.time", "s"), "Time on the processors", || {
        let stat = Process::myself().and_then(|process| process.stat());
        stat.map_or(0.0, |stat| float(stat.utime + stat.stime) / float(procfs::ticks_per_second()))
    });
    // By a name of our own: Prometheus keeps those that end with "count" for histograms.
    metrics.observe(("remoteproxy.file_descriptors.open", ""), "Open file descriptors", || {
        Some(float(Process::myself().ok()?.fd_count().ok()? as u64))
    });
    metrics.observe(
        ("remoteproxy.file_descriptors.limit", ""),
        "Most file descriptors that may be open",
        || match Process::myself().ok()?.limits().ok()?.max_open_files.soft_limit {
            LimitValue::Value(limit) => Some(float(limit)),
            LimitValue::Unlimited => None,
        },
    );
    if let Ok(runtime) = Handle::try_current() {
        let runtime = runtime.metrics();
        metrics.observe(
            ("remoteproxy.tasks", ""),
            "Tasks of the runtime that are alive",
            move || Some(float(runtime.num_alive_tasks() as u64)),
        );
    }
    metrics.observe(("process.uptime", "s"), "Time since the start", move || {
        Some(started.elapsed().as_secs_f64())
    });
}

/// Looks at the runtime as long as it is polled, and does `each_second` besides.
pub(super) async fn watch_loop(metrics: &Metrics, mut each_second: impl FnMut()) {
    loop {
        let due = Instant::now() + LOOK_EVERY;
        tokio::time::sleep_until(due.into()).await;
        metrics.loop_lag(due.elapsed());
        each_second();
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are enough for everybody")]
fn float(value: u64) -> f64 {
    value as f64
}
