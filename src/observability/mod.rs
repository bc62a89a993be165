//! [`metrics`], [`trace`]s, the list of [`Tunnels`] and a [`Journal`] of recent events of a node. The
//! only user of OpenTelemetry.
//!
//! All of it belongs to one node, not to the process. No token, nonce or payload is ever passed to it;
//! names, UUIDs and addresses are in traces and in the list of tunnels, never in metrics.

mod facts;
mod gateways;
mod invariants;
mod journal;
mod log;
pub mod metrics;
mod otlp;
mod process;
mod recurring;
mod series;
pub mod trace;
mod tunnels;

use std::sync::Arc;
use std::time::Instant;

pub use self::facts::{Bridge, ConnectionEnd, Fact, TokenCheck, TunnelEnd};
pub use self::gateways::{AppRecord, Bytes, GatewayGuard, GatewayRecord, Gateways};
pub use self::invariants::Invariant;
pub use self::journal::{Event, EventKind, Journal};
pub use self::log::LogControl;
pub use self::metrics::Metrics;
use self::otlp::Exporters;
pub use self::otlp::TelemetryError;
pub use self::recurring::{Occurrence, Recurring, Severity};
pub use self::series::{Histogram, Series, Value};
pub use self::trace::Tracer;
pub use self::tunnels::{
    Endpoint, Kind, Meter, Traffic, TunnelFacts, TunnelGuard, TunnelRecord, Tunnels,
};

use crate::config;
use crate::ids::NodeId;

/// The telemetry of a node. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    /// Counts and times.
    pub metrics: Arc<Metrics>,
    /// Spans.
    pub tracer: Tracer,
    /// The established tunnels.
    pub tunnels: Arc<Tunnels>,
    /// The registered gateways and their apps.
    pub gateways: Arc<Gateways>,
    /// The recent events.
    pub journal: Arc<Journal>,
    /// The events that are summed up.
    pub recurring: Arc<Recurring>,
}

impl Telemetry {
    /// Creates the telemetry of a node. With an endpoint in the settings or in the environment,
    /// traces and metrics are exported from now on.
    pub fn start(
        settings: &config::Telemetry,
        node: &NodeId,
        name: &str,
    ) -> Result<Self, TelemetryError> {
        let tunnels = Arc::new(Tunnels::default());
        let exporters = Exporters::new(settings, node, name)?;
        let metrics = Metrics::new(settings.enabled, exporters.metrics, &exporters.resource);
        let gateways = Arc::<Gateways>::default();
        metrics.observe_tunnels(&tunnels);
        metrics.observe_gateways(&gateways);
        process::observe(&metrics);
        let tracer = Tracer::new(exporters.spans, &exporters.resource, Arc::clone(&metrics));
        let (journal, recurring) = (Arc::default(), Arc::default());
        Ok(Self { metrics, tracer, tunnels, gateways, journal, recurring })
    }

    /// Records an event that may happen very often. True if the caller logs it: it is the first one
    /// of its kind for a while. Further ones are summed up in lines of their own.
    #[must_use]
    pub fn recurs(&self, occurrence: &Occurrence) -> bool {
        let Occurrence { what, reason, kind, .. } = occurrence;
        self.journal.note(*kind, format!("{what}: {reason}"));
        self.recurring.count(occurrence, Instant::now())
    }

    /// Looks at the runtime and the log, and logs what has happened very often, as long as it is
    /// polled.
    pub async fn watch(&self, log: Option<Arc<dyn LogControl>>) {
        let mut lost = 0;
        let each_second = || {
            self.recurring.report(Instant::now());
            let lost_before = lost;
            lost = log.as_ref().map_or(0, |log| log.dropped());
            if lost > lost_before {
                self.journal.note(EventKind::Trouble, "lines of the log are lost");
            }
        };
        process::watch_loop(&self.metrics, each_second).await;
    }

    /// Sends what has not been sent yet, for a few seconds at most. Blocks.
    pub fn flush(&self) {
        self.recurring.report_all(Instant::now());
        self.tracer.shutdown();
        self.metrics.shutdown();
    }
}
