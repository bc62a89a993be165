//! The counters and histograms, with names and descriptions.

use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};

/// Times of single steps, in seconds.
const STEPS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Times of waits and tunnels, in seconds.
const STAYS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0];

/// One of each.
pub(super) struct Instruments {
    pub(super) connections: UpDownCounter<i64>,
    pub(super) accepted: Counter<u64>,
    pub(super) refused: Counter<u64>,
    pub(super) handshakes_failed: Counter<u64>,
    pub(super) closed: Counter<u64>,
    pub(super) tunnels: UpDownCounter<i64>,
    pub(super) tunnels_established: Counter<u64>,
    pub(super) tunnels_closed: Counter<u64>,
    pub(super) tunnel_duration: Histogram<f64>,
    pub(super) setup_duration: Histogram<f64>,
    pub(super) wait_duration: Histogram<f64>,
    pub(super) authentication_duration: Histogram<f64>,
    pub(super) redis_duration: Histogram<f64>,
    pub(super) bridge_streams_in: UpDownCounter<i64>,
    pub(super) bridge_round_trip: Histogram<f64>,
    pub(super) bridge_calls: Counter<u64>,
    pub(super) bridge_failures: Counter<u64>,
    pub(super) gateways_closed: Counter<u64>,
    pub(super) gateway_duration: Histogram<f64>,
    pub(super) registrations: Counter<u64>,
    pub(super) probes: Counter<u64>,
    pub(super) backlogs_full: Counter<u64>,
    pub(super) frames_broken: Counter<u64>,
    pub(super) loop_lag: Histogram<f64>,
    pub(super) spans_recorded: Counter<u64>,
    pub(super) spans_exported: Counter<u64>,
    pub(super) violations: Counter<u64>,
}

impl Instruments {
    /// All at zero.
    pub(super) fn new(meter: &Meter) -> Self {
        let level = |name, text| meter.i64_up_down_counter(name).with_description(text).build();
        let count = |name, text| meter.u64_counter(name).with_description(text).build();
        let times = |name, text, bounds: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(text);
            histogram.with_boundaries(bounds.to_vec()).build()
        };
        Self {
            connections: level("remoteproxy.connections", "Open connections of clients, by stage"),
            accepted: count("remoteproxy.connections.accepted", "Connections accepted"),
            refused: count("remoteproxy.connections.refused", "Connections refused, by reason"),
            handshakes_failed: count(
                "remoteproxy.handshakes.failed",
                "Connections that failed before their first message, by reason",
            ),
            closed: count(
                "remoteproxy.connections.closed",
                "Connections that ended without a tunnel, by reason",
            ),
            tunnels: level("remoteproxy.tunnels", "Established tunnels"),
            tunnels_established: count("remoteproxy.tunnels.established", "Tunnels established"),
            tunnels_closed: count("remoteproxy.tunnels.closed", "Tunnels closed, by reason"),
            tunnel_duration: times("remoteproxy.tunnel.duration", "Lifetime of tunnels", &STAYS),
            setup_duration: times(
                "remoteproxy.setup.duration",
                "Time of each step in the set-up of a tunnel",
                &STEPS,
            ),
            wait_duration: times(
                "remoteproxy.wait.duration",
                "Time that endpoints waited for their partner",
                &STAYS,
            ),
            authentication_duration: times(
                "remoteproxy.authentication.duration",
                "Time to check a token, by result",
                &STEPS,
            ),
            redis_duration: times(
                "remoteproxy.redis.command.duration",
                "Time of commands to Redis, by result",
                &STEPS,
            ),
            bridge_streams_in: level(
                "remoteproxy.bridge.streams.in",
                "Bridge calls open from other nodes to this one",
            ),
            bridge_round_trip: times(
                "remoteproxy.bridge.round_trip",
                "Round-trip time of pings to other nodes",
                &STEPS,
            ),
            bridge_calls: count(
                "remoteproxy.bridge.calls",
                "Bridge calls to other nodes, by result",
            ),
            bridge_failures: count(
                "remoteproxy.bridge.connection.failures",
                "Bridge connections that failed or were lost",
            ),
            gateways_closed: count("remoteproxy.gateways.closed", "Gateways closed, by reason"),
            gateway_duration: times(
                "remoteproxy.gateway.duration",
                "Time that gateways were registered",
                &STAYS,
            ),
            registrations: count(
                "remoteproxy.registrations",
                "Registrations of gateways and apps, by result",
            ),
            probes: count(
                "remoteproxy.probes",
                "Probes of registered endpoints because another one requested their UUID, by result",
            ),
            backlogs_full: count(
                "remoteproxy.backlogs.full",
                "Apps closed because they read their data too slowly",
            ),
            frames_broken: count(
                "remoteproxy.frames.broken",
                "Malformed frames of gateways that were dropped",
            ),
            loop_lag: times(
                "remoteproxy.loop.lag",
                "Delay of a timer of the runtime, measured each second",
                &STEPS,
            ),
            spans_recorded: count(
                "remoteproxy.spans.recorded",
                "Spans recorded for the collector; those not exported are waiting or were dropped",
            ),
            spans_exported: count(
                "remoteproxy.spans.exported",
                "Spans sent to the collector, by result",
            ),
            violations: count(
                "remoteproxy.invariants.violated",
                "Faults of this program that it detected itself; each ends one tunnel at most",
            ),
        }
    }
}
