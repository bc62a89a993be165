//! Every metric of a node, defined once, for Prometheus and OTLP alike. Labels have few values:
//! words of this program, and the names of the cluster's nodes.
//!
//! `instruments` declares the metrics, `labels` their labels, and `gauges` has guards that count live
//! objects. Here are the methods that the rest of the node calls, and the export.

mod gauges;
mod instruments;
mod labels;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};
use tracing::warn;

pub(super) use self::gauges::TunnelGauge;
pub use self::gauges::{ConnectionGauge, StreamGauge};
use self::instruments::Instruments;
use self::labels::PeerNames;
pub use self::labels::{Stage, Step};
use super::invariants::{Level, Reported};
use super::tunnels::Kind;
use super::{Gateways, Invariant, Series, Tunnels};
use crate::printable::Printable;

/// A name that another node gave itself.
fn shown(peer: &str) -> String {
    Printable::name(peer).to_string()
}

/// The time to export the last metrics at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// The metrics of a node.
pub struct Metrics {
    registry: prometheus::Registry,
    provider: Option<SdkMeterProvider>,
    meter: Meter,
    instruments: Instruments,
    peers: Arc<PeerNames>,
    levels: Levels,
    pub(super) reported: Reported,
}

/// The levels that gauges show.
#[derive(Default)]
struct Levels {
    connections: Level,
    tunnels: Level,
    streams_in: Level,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All at zero. With an exporter they are also sent there from time to time; not `enabled`,
    /// nothing is counted.
    pub fn new(enabled: bool, exporter: Option<MetricExporter>, resource: &Resource) -> Arc<Self> {
        let registry = prometheus::Registry::new();
        let provider = enabled.then(|| {
            let prometheus = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
                .expect("the registry is empty");
            let mut provider =
                SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(prometheus);
            if let Some(exporter) = exporter {
                provider = provider.with_reader(PeriodicReader::builder(exporter).build());
            }
            provider.build()
        });
        let meter = match &provider {
            Some(provider) => provider.meter("nymea-remoteproxy"),
            None => NoopMeterProvider::new().meter("nymea-remoteproxy"),
        };
        let build = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        meter
            .u64_observable_gauge("remoteproxy.build.info")
            .with_description("Always 1; the version of the program is a label")
            .with_callback(move |observer| observer.observe(1, &build))
            .build();
        let instruments = Instruments::new(&meter);
        for invariant in Invariant::ALL {
            // The first violation is an increase, and no new series.
            instruments.violations.add(0, &[KeyValue::new("invariant", invariant.label())]);
        }
        let (levels, reported) = (Levels::default(), Reported::default());
        let peers = Arc::default();
        Arc::new(Self { registry, provider, meter, instruments, peers, levels, reported })
    }

    /// Counts nothing.
    pub fn off() -> Arc<Self> {
        Self::new(false, None, &Resource::builder_empty().build())
    }

    /// A connection came.
    pub fn connection(self: &Arc<Self>, transport: &'static str) -> ConnectionGauge {
        let label = KeyValue::new("transport", transport);
        self.instruments.accepted.add(1, &[label]);
        let gauge =
            ConnectionGauge { metrics: Arc::clone(self), transport, stage: Stage::Handshake };
        gauge.count(1);
        gauge
    }

    /// There was no room for a connection.
    pub fn connection_refused(&self, reason: &'static str) {
        self.instruments.refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A connection did not get through TLS or the upgrade.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.instruments.handshakes_failed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A connection ended without having had a tunnel.
    pub fn connection_closed(&self, reason: &'static str) {
        self.instruments.closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A step of a set-up is done.
    pub fn step(&self, step: Step, took: Duration) {
        let label = KeyValue::new("step", step.label());
        self.instruments.setup_duration.record(took.as_secs_f64(), &[label]);
    }

    /// An endpoint has got its partner.
    pub fn waited(&self, time: Duration) {
        self.instruments.wait_duration.record(time.as_secs_f64(), &[]);
    }

    /// A token was checked.
    pub fn authenticated(&self, result: &'static str, took: Duration) {
        let label = KeyValue::new("result", result);
        self.instruments.authentication_duration.record(took.as_secs_f64(), &[label]);
    }

    /// Records a command to Redis.
    pub fn redis(&self, command: &'static str, outcome: &'static str, took: Duration) {
        let labels = [KeyValue::new("command", command), KeyValue::new("outcome", outcome)];
        self.instruments.redis_duration.record(took.as_secs_f64(), &labels);
    }

    /// A gateway ended.
    pub fn gateway_ended(&self, reason: &'static str, stood: Duration) {
        self.instruments.gateway_duration.record(stood.as_secs_f64(), &[]);
        self.instruments.gateways_closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A gateway or an app has registered, or was refused.
    pub fn registration(&self, role: &'static str, outcome: &'static str) {
        let labels = [KeyValue::new("role", role), KeyValue::new("outcome", outcome)];
        self.instruments.registrations.add(1, &labels);
    }

    /// Records a probe of an endpoint.
    pub fn probed(&self, outcome: &'static str) {
        self.instruments.probes.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// An app took its data too slowly.
    pub fn backlog_full(&self) {
        self.instruments.backlogs_full.add(1, &[]);
    }

    /// A frame of a gateway made no sense.
    pub fn frame_broken(&self) {
        self.instruments.frames_broken.add(1, &[]);
    }

    /// Records a bridge call to another node.
    pub fn bridge_call(&self, outcome: &'static str) {
        self.instruments.bridge_calls.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Exports the reasons for which a connection to another node can fail: the first failure is an
    /// increase then, and no new series.
    pub fn bridge_connections_may_fail(&self, reasons: &[&'static str]) {
        for reason in reasons {
            self.instruments.bridge_failures.add(0, &[KeyValue::new("reason", *reason)]);
        }
    }

    /// A connection to another node has ended in no orderly way.
    pub fn bridge_connection_failed(&self, reason: &'static str) {
        self.instruments.bridge_failures.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A tunnel that the node of this name opened to this one begins.
    pub fn bridge_stream_in(self: &Arc<Self>, peer: &str) -> StreamGauge {
        let peer = self.peers.label(&shown(peer)).into();
        let gauge = StreamGauge { metrics: Arc::clone(self), peer };
        gauge.count(1);
        gauge
    }

    /// A node has answered.
    pub fn round_trip(&self, peer: &str, took: Duration) {
        let label = KeyValue::new("peer", self.peers.label(&shown(peer)));
        self.instruments.bridge_round_trip.record(took.as_secs_f64(), &[label]);
    }

    /// A timer was late.
    pub fn loop_lag(&self, lag: Duration) {
        self.instruments.loop_lag.record(lag.as_secs_f64(), &[]);
    }

    /// A span is to be sent.
    pub(super) fn span_recorded(&self) {
        self.instruments.spans_recorded.add(1, &[]);
    }

    /// Spans were sent, or could not be.
    pub fn spans_exported(&self, outcome: &'static str, count: usize) {
        self.instruments.spans_exported.add(count as u64, &[KeyValue::new("outcome", outcome)]);
    }

    pub(super) fn count_violation(&self, invariant: Invariant) {
        let label = KeyValue::new("invariant", invariant.label());
        self.instruments.violations.add(1, &[label]);
    }

    pub(super) fn tunnel(self: &Arc<Self>, kind: Kind, generation: &'static str) -> TunnelGauge {
        let gauge = TunnelGauge { metrics: Arc::clone(self), kind, generation };
        self.instruments.tunnels_established.add(1, &gauge.labels());
        gauge.count(1);
        gauge
    }

    pub(super) fn observe_tunnels(&self, tunnels: &Arc<Tunnels>) {
        let observed = |name, unit, text, value: fn(&super::tunnels::Traffic) -> u64| {
            let tunnels = Arc::downgrade(tunnels);
            let counter = self.meter.u64_observable_counter(name).with_description(text);
            counter
                .with_unit(unit)
                .with_callback(move |observer| {
                    let Some(tunnels) = tunnels.upgrade() else { return };
                    for (kind, traffic) in tunnels.traffic() {
                        for (direction, traffic) in ["forth", "back"].into_iter().zip(&traffic) {
                            let labels = [
                                KeyValue::new("kind", kind.label()),
                                KeyValue::new("direction", direction),
                            ];
                            observer.observe(value(traffic), &labels);
                        }
                    }
                })
                .build();
        };
        observed(
            "remoteproxy.tunnel.traffic",
            "By",
            "Payload bytes relayed, by direction: from the endpoint that waited (forth), or to it (back)",
            |traffic| traffic.bytes,
        );
        observed(
            "remoteproxy.tunnel.messages",
            "",
            "Messages relayed, by direction: from the endpoint that waited (forth), or to it (back)",
            |traffic| traffic.messages,
        );
    }

    pub(super) fn observe_gateways(&self, gateways: &Arc<Gateways>) {
        let observed = |name, text, value: fn(&Gateways) -> usize| {
            let gateways = Arc::downgrade(gateways);
            let gauge = self.meter.u64_observable_gauge(name).with_description(text);
            gauge
                .with_callback(move |observer| {
                    let Some(gateways) = gateways.upgrade() else { return };
                    observer.observe(value(&gateways) as u64, &[]);
                })
                .build();
        };
        observed("remoteproxy.gateways", "Gateways registered on this node", Gateways::len);
        observed(
            "remoteproxy.gateway.apps",
            "Apps attached to the gateways of this node",
            Gateways::app_count,
        );
    }

    /// Registers a gauge that is read at each export; `None`: it has no value now.
    pub fn observe(
        &self,
        (name, unit): (&'static str, &'static str),
        text: &'static str,
        value: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(text);
        gauge
            .with_callback(move |observer| {
                if let Some(value) = value() {
                    observer.observe(value, &[]);
                }
            })
            .build();
    }

    /// The same for a number that only grows.
    pub fn observe_total(
        &self,
        (name, unit): (&'static str, &'static str),
        text: &'static str,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let counter =
            self.meter.f64_observable_counter(name).with_unit(unit).with_description(text);
        counter.with_callback(move |observer| observer.observe(value(), &[])).build();
    }

    /// The same for a number for each of the other nodes.
    pub fn observe_peers(
        &self,
        name: &'static str,
        text: &'static str,
        values: impl Fn() -> Vec<(String, usize)> + Send + Sync + 'static,
    ) {
        let gauge = self.meter.u64_observable_gauge(name).with_description(text);
        let peers = Arc::clone(&self.peers);
        gauge
            .with_callback(move |observer| {
                // Two starts of a node may be known by two addresses.
                let mut sums = BTreeMap::<String, usize>::new();
                for (peer, value) in values() {
                    *sums.entry(peers.label(&shown(&peer))).or_default() += value;
                }
                for (peer, value) in sums {
                    observer.observe(value as u64, &[KeyValue::new("peer", peer)]);
                }
            })
            .build();
    }

    /// All metrics as they are now.
    pub fn series(&self) -> Vec<Series> {
        Series::all(&self.gather())
    }

    fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// The same in the text format of Prometheus, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.gather(), &mut text) {
            warn!(%error, "metrics cannot be written");
        }
        text
    }

    /// The content type of [`Metrics::text`].
    pub fn content_type() -> String {
        TextEncoder::new().format_type().to_owned()
    }

    pub(super) fn shutdown(&self) {
        if let Some(provider) = &self.provider {
            // The exporter has said what is wrong, if anything is.
            let _said = provider.shutdown_with_timeout(FLUSH);
        }
    }
}
