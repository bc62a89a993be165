//! Every metric of a node, defined once, for Prometheus and OTLP alike. Labels have few values:
//! words of this program, and the names of the cluster's nodes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider, UpDownCounter};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};
use tracing::warn;

use super::tunnels::Kind;
use super::{Gateways, Series, Tunnels};

/// Times of single steps, in seconds.
const STEPS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Times of waits and tunnels, in seconds.
const STAYS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0];
/// How long the last metrics may take at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// Where a connection is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TLS and the upgrade are under way.
    Handshake,
    /// It has not asked for anything yet, or is being closed.
    Greeting,
    /// Its token is being checked.
    Authenticating,
    /// The rendezvous is being asked for its partner.
    Offering,
    /// Its partner has not come yet.
    Waiting,
    /// Its partner is being fetched from another node.
    Bridging,
    /// Its UUID is being registered.
    Registering,
    /// It is a gateway.
    Gateway,
    /// It is one end of a tunnel.
    Tunnel,
}

impl Stage {
    const fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Greeting => "greeting",
            Self::Authenticating => "authenticating",
            Self::Offering => "offering",
            Self::Waiting => "waiting",
            Self::Bridging => "bridging",
            Self::Registering => "registering",
            Self::Gateway => "gateway",
            Self::Tunnel => "tunnel",
        }
    }
}

/// A step of a tunnel's set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// TLS and the upgrade.
    Handshake,
    /// From the request to the verdict.
    Authenticate,
    /// The rendezvous's answer to an offer.
    Claim,
    /// Fetching the partner from its node.
    Bridge,
    /// From the partner's arrival to the notifications.
    Introduce,
    /// All of the above, for the endpoint that comes second.
    Total,
}

impl Step {
    const fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Authenticate => "authenticate",
            Self::Claim => "claim",
            Self::Bridge => "bridge",
            Self::Introduce => "introduce",
            Self::Total => "total",
        }
    }
}

/// The metrics of a node.
pub struct Metrics {
    registry: prometheus::Registry,
    provider: Option<SdkMeterProvider>,
    meter: Meter,
    connections: UpDownCounter<i64>,
    accepted: Counter<u64>,
    refused: Counter<u64>,
    handshakes_failed: Counter<u64>,
    closed: Counter<u64>,
    tunnels: UpDownCounter<i64>,
    tunnels_established: Counter<u64>,
    tunnels_closed: Counter<u64>,
    tunnel_duration: Histogram<f64>,
    setup_duration: Histogram<f64>,
    wait_duration: Histogram<f64>,
    authentication_duration: Histogram<f64>,
    redis_duration: Histogram<f64>,
    bridge_streams_in: UpDownCounter<i64>,
    bridge_round_trip: Histogram<f64>,
    bridge_calls: Counter<u64>,
    gateways_closed: Counter<u64>,
    gateway_duration: Histogram<f64>,
    registrations: Counter<u64>,
    probes: Counter<u64>,
    backlogs_full: Counter<u64>,
    frames_broken: Counter<u64>,
    loop_lag: Histogram<f64>,
    spans_recorded: Counter<u64>,
    spans_exported: Counter<u64>,
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
        Arc::new(Self::define(registry, provider, meter))
    }

    /// Counts nothing.
    pub fn off() -> Arc<Self> {
        Self::new(false, None, &Resource::builder_empty().build())
    }

    fn define(
        registry: prometheus::Registry,
        provider: Option<SdkMeterProvider>,
        meter: Meter,
    ) -> Self {
        let level = |name, text| meter.i64_up_down_counter(name).with_description(text).build();
        let count = |name, text| meter.u64_counter(name).with_description(text).build();
        let times = |name, text, bounds: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(text);
            histogram.with_boundaries(bounds.to_vec()).build()
        };
        let build = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        meter
            .u64_observable_gauge("remoteproxy.build.info")
            .with_description("1, with the version of the program")
            .with_callback(move |observer| observer.observe(1, &build))
            .build();
        Self {
            connections: level("remoteproxy.connections", "Connections of clients"),
            accepted: count("remoteproxy.connections.accepted", "Connections that came"),
            refused: count("remoteproxy.connections.refused", "Connections without room"),
            handshakes_failed: count(
                "remoteproxy.handshakes.failed",
                "Connections that did not get through TLS or the upgrade",
            ),
            closed: count(
                "remoteproxy.connections.closed",
                "Connections that ended without having had a tunnel",
            ),
            tunnels: level("remoteproxy.tunnels", "Tunnels that stand"),
            tunnels_established: count("remoteproxy.tunnels.established", "Tunnels that began"),
            tunnels_closed: count("remoteproxy.tunnels.closed", "Tunnels that ended"),
            tunnel_duration: times("remoteproxy.tunnel.duration", "How long tunnels stood", &STAYS),
            setup_duration: times(
                "remoteproxy.setup.duration",
                "The steps of a tunnel's set-up",
                &STEPS,
            ),
            wait_duration: times(
                "remoteproxy.wait.duration",
                "How long endpoints waited for their partner",
                &STAYS,
            ),
            authentication_duration: times(
                "remoteproxy.authentication.duration",
                "Checks of tokens, by what came of them",
                &STEPS,
            ),
            redis_duration: times(
                "remoteproxy.redis.command.duration",
                "Commands to Redis, by what came of them",
                &STEPS,
            ),
            bridge_streams_in: level(
                "remoteproxy.bridge.streams.in",
                "Tunnels that other nodes have opened to this one",
            ),
            bridge_round_trip: times(
                "remoteproxy.bridge.round_trip",
                "Round trips to other nodes",
                &STEPS,
            ),
            bridge_calls: count(
                "remoteproxy.bridge.calls",
                "Tunnels asked for at other nodes, by what came of it",
            ),
            gateways_closed: count("remoteproxy.gateways.closed", "Gateways that ended"),
            gateway_duration: times(
                "remoteproxy.gateway.duration",
                "How long gateways were registered",
                &STAYS,
            ),
            registrations: count(
                "remoteproxy.registrations",
                "Registrations of gateways and apps, by what came of them",
            ),
            probes: count(
                "remoteproxy.probes",
                "Signs of life asked for because another endpoint shows the same UUID",
            ),
            backlogs_full: count(
                "remoteproxy.backlogs.full",
                "Apps closed because they took their data too slowly",
            ),
            frames_broken: count(
                "remoteproxy.frames.broken",
                "Frames of gateways that were dropped because they made no sense",
            ),
            loop_lag: times(
                "remoteproxy.loop.lag",
                "How late the runtime's timers are, looked at each second",
                &STEPS,
            ),
            spans_recorded: count(
                "remoteproxy.spans.recorded",
                "Spans to be sent; those that are not exported have been dropped, or wait",
            ),
            spans_exported: count(
                "remoteproxy.spans.exported",
                "Spans sent to the collector, by what came of it",
            ),
            registry,
            provider,
            meter,
        }
    }

    /// A connection came.
    pub fn connection(self: &Arc<Self>, transport: &'static str) -> ConnectionGauge {
        let label = KeyValue::new("transport", transport);
        self.accepted.add(1, &[label]);
        let gauge =
            ConnectionGauge { metrics: Arc::clone(self), transport, stage: Stage::Handshake };
        gauge.count(1);
        gauge
    }

    /// There was no room for a connection.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A connection did not get through TLS or the upgrade.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshakes_failed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A connection ended without having had a tunnel.
    pub fn connection_closed(&self, reason: &'static str) {
        self.closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A step of a set-up is done.
    pub fn step(&self, step: Step, took: Duration) {
        let label = KeyValue::new("step", step.label());
        self.setup_duration.record(took.as_secs_f64(), &[label]);
    }

    /// An endpoint has got its partner.
    pub fn waited(&self, time: Duration) {
        self.wait_duration.record(time.as_secs_f64(), &[]);
    }

    /// A token was checked.
    pub fn authenticated(&self, result: &'static str, took: Duration) {
        let label = KeyValue::new("result", result);
        self.authentication_duration.record(took.as_secs_f64(), &[label]);
    }

    /// Redis was asked something.
    pub fn redis(&self, command: &'static str, outcome: &'static str, took: Duration) {
        let labels = [KeyValue::new("command", command), KeyValue::new("outcome", outcome)];
        self.redis_duration.record(took.as_secs_f64(), &labels);
    }

    /// A gateway ended.
    pub fn gateway_ended(&self, reason: &'static str, stood: Duration) {
        self.gateway_duration.record(stood.as_secs_f64(), &[]);
        self.gateways_closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A gateway or an app has registered, or was refused.
    pub fn registration(&self, role: &'static str, outcome: &'static str) {
        let labels = [KeyValue::new("role", role), KeyValue::new("outcome", outcome)];
        self.registrations.add(1, &labels);
    }

    /// An endpoint was asked for a sign of life.
    pub fn probed(&self, outcome: &'static str) {
        self.probes.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// An app took its data too slowly.
    pub fn backlog_full(&self) {
        self.backlogs_full.add(1, &[]);
    }

    /// A frame of a gateway made no sense.
    pub fn frame_broken(&self) {
        self.frames_broken.add(1, &[]);
    }

    /// Another node was asked for an endpoint.
    pub fn bridge_call(&self, outcome: &'static str) {
        self.bridge_calls.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A tunnel that the node of this name opened to this one begins.
    pub fn bridge_stream_in(self: &Arc<Self>, peer: &str) -> StreamGauge {
        let gauge = StreamGauge { metrics: Arc::clone(self), peer: peer.into() };
        gauge.count(1);
        gauge
    }

    /// A node has answered.
    pub fn round_trip(&self, peer: &str, took: Duration) {
        let label = KeyValue::new("peer", peer.to_owned());
        self.bridge_round_trip.record(took.as_secs_f64(), &[label]);
    }

    /// A timer was late.
    pub fn loop_lag(&self, lag: Duration) {
        self.loop_lag.record(lag.as_secs_f64(), &[]);
    }

    /// A span is to be sent.
    pub(super) fn span_recorded(&self) {
        self.spans_recorded.add(1, &[]);
    }

    /// Spans were sent, or could not be.
    pub fn spans_exported(&self, outcome: &'static str, count: usize) {
        self.spans_exported.add(count as u64, &[KeyValue::new("outcome", outcome)]);
    }

    pub(super) fn tunnel(self: &Arc<Self>, kind: Kind, generation: &'static str) -> TunnelGauge {
        let gauge = TunnelGauge { metrics: Arc::clone(self), kind, generation };
        self.tunnels_established.add(1, &gauge.labels());
        self.tunnels.add(1, &gauge.labels());
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
            "Payload from the endpoint that waited to the other one (forth), and back",
            |traffic| traffic.bytes,
        );
        observed(
            "remoteproxy.tunnel.messages",
            "",
            "Messages from the endpoint that waited to the other one (forth), and back",
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
        observed("remoteproxy.gateways", "Gateways that are registered", Gateways::len);
        observed(
            "remoteproxy.gateway.apps",
            "Apps that are attached to the gateways of this node",
            Gateways::app_count,
        );
    }

    /// A value that is looked up when somebody asks; `None`: there is none now.
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
        gauge
            .with_callback(move |observer| {
                for (peer, value) in values() {
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

/// Counts a connection in the stage that it is in.
pub struct ConnectionGauge {
    metrics: Arc<Metrics>,
    transport: &'static str,
    stage: Stage,
}

impl ConnectionGauge {
    /// It is in this stage now.
    pub fn enter(&mut self, stage: Stage) {
        if self.stage != stage {
            self.count(-1);
            self.stage = stage;
            self.count(1);
        }
    }

    fn count(&self, change: i64) {
        let labels = [
            KeyValue::new("transport", self.transport),
            KeyValue::new("stage", self.stage.label()),
        ];
        self.metrics.connections.add(change, &labels);
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// Counts a tunnel.
pub(super) struct TunnelGauge {
    metrics: Arc<Metrics>,
    kind: Kind,
    generation: &'static str,
}

impl TunnelGauge {
    fn labels(&self) -> [KeyValue; 2] {
        [KeyValue::new("kind", self.kind.label()), KeyValue::new("generation", self.generation)]
    }

    pub(super) fn ended(&self, reason: &'static str, stood: Duration) {
        let kind = KeyValue::new("kind", self.kind.label());
        self.metrics.tunnel_duration.record(stood.as_secs_f64(), std::slice::from_ref(&kind));
        self.metrics.tunnels_closed.add(1, &[kind, KeyValue::new("reason", reason)]);
    }
}

impl Drop for TunnelGauge {
    fn drop(&mut self) {
        self.metrics.tunnels.add(-1, &self.labels());
    }
}

/// Counts a tunnel of another node.
pub struct StreamGauge {
    metrics: Arc<Metrics>,
    peer: Box<str>,
}

impl StreamGauge {
    fn count(&self, change: i64) {
        let label = KeyValue::new("peer", String::from(&*self.peer));
        self.metrics.bridge_streams_in.add(change, &[label]);
    }
}

impl Drop for StreamGauge {
    fn drop(&mut self) {
        self.count(-1);
    }
}
