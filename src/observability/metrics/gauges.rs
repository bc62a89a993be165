//! Guards that count something as long as they live.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;

use super::{Metrics, Stage};
use crate::observability::tunnels::Kind;

/// Counts a connection in the stage that it is in.
pub struct ConnectionGauge {
    pub(super) metrics: Arc<Metrics>,
    pub(super) transport: &'static str,
    pub(super) stage: Stage,
}

impl ConnectionGauge {
    /// Moves the connection to this stage.
    pub fn enter(&mut self, stage: Stage) {
        if self.stage != stage {
            self.count(-1);
            self.stage = stage;
            self.count(1);
        }
    }

    pub(in crate::observability) fn count(&self, change: i64) {
        let labels = [
            KeyValue::new("transport", self.transport),
            KeyValue::new("stage", self.stage.label()),
        ];
        let Metrics { instruments, levels, .. } = &*self.metrics;
        if self.metrics.change(&levels.connections, change, "connections") {
            instruments.connections.add(change, &labels);
        }
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// Counts a tunnel.
pub(in crate::observability) struct TunnelGauge {
    pub(super) metrics: Arc<Metrics>,
    pub(super) kind: Kind,
    pub(super) generation: &'static str,
}

impl TunnelGauge {
    pub(super) fn labels(&self) -> [KeyValue; 2] {
        [KeyValue::new("kind", self.kind.label()), KeyValue::new("generation", self.generation)]
    }

    pub(super) fn count(&self, change: i64) {
        let Metrics { instruments, levels, .. } = &*self.metrics;
        if self.metrics.change(&levels.tunnels, change, "tunnels") {
            instruments.tunnels.add(change, &self.labels());
        }
    }

    pub(in crate::observability) fn ended(&self, reason: &'static str, stood: Duration) {
        let kind = KeyValue::new("kind", self.kind.label());
        self.metrics
            .instruments
            .tunnel_duration
            .record(stood.as_secs_f64(), std::slice::from_ref(&kind));
        self.metrics.instruments.tunnels_closed.add(1, &[kind, KeyValue::new("reason", reason)]);
    }
}

impl Drop for TunnelGauge {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// Counts a tunnel of another node.
pub struct StreamGauge {
    pub(super) metrics: Arc<Metrics>,
    pub(super) peer: Box<str>,
}

impl StreamGauge {
    pub(super) fn count(&self, change: i64) {
        let label = KeyValue::new("peer", String::from(&*self.peer));
        let Metrics { instruments, levels, .. } = &*self.metrics;
        if self.metrics.change(&levels.streams_in, change, "tunnels of other nodes") {
            instruments.bridge_streams_in.add(change, &[label]);
        }
    }
}

impl Drop for StreamGauge {
    fn drop(&mut self) {
        self.count(-1);
    }
}
