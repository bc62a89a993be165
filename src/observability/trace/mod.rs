//! Spans. None is open while its step lasts: the caller keeps a [`TraceParent`] and the start time,
//! and records the span as a whole at the end. So a connection that waits for hours costs no more than
//! these two, and one that is not sampled costs nothing.
//!
//! Three traces make a tunnel: one of each connection (or the client's own, if it says so), and
//! one of the tunnel, on all nodes it touches, linked to both. See `steps` for what is in them.

mod steps;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use tracing::debug;

use super::Metrics;
use super::otlp::{Sampling, SpanExporting, Watched};
use crate::lock::lock;
use crate::trace_parent::TraceParent;

pub use self::steps::{Attaching, Bridging, ConnectionTrace, Ended, Setup};

/// The time to export the last spans at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// Tells a collector of spans, if there is one. Cheap to clone.
#[derive(Clone)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    /// Its queue is bounded; spans that do not fit are dropped.
    batch: BatchSpanProcessor,
    scope: InstrumentationScope,
    sampling: Sampling,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Tells what time it was, the same for the same moment, so that spans that meet do not overlap.
struct Clock {
    known: Mutex<(Instant, SystemTime)>,
}

impl Clock {
    /// The system's time is believed again when it has moved this far by itself.
    const TOLERANCE: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self { known: Mutex::new((Instant::now(), SystemTime::now())) }
    }

    fn time_of(&self, moment: Instant) -> SystemTime {
        let mut known = lock(&self.known);
        let (now, time) = (Instant::now(), SystemTime::now());
        let expected = known.1 + now.saturating_duration_since(known.0);
        let off = time.duration_since(expected).unwrap_or_else(|before| before.duration());
        if off > Self::TOLERANCE {
            *known = (now, time);
        }
        match moment.checked_duration_since(known.0) {
            Some(since) => known.1 + since,
            None => known.1 - known.0.saturating_duration_since(moment),
        }
    }
}

/// Something that was done.
struct Span {
    me: TraceParent,
    parent: Option<TraceParent>,
    name: &'static str,
    kind: SpanKind,
    began: Instant,
    ended: Instant,
    links: Vec<TraceParent>,
    facts: Vec<KeyValue>,
    /// The class of what went wrong, if anything did.
    error: Option<&'static str>,
}

impl Tracer {
    pub(super) fn new(
        exporting: Option<SpanExporting>,
        resource: &Resource,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(exporting.map(|SpanExporting { exporter, sampling, collector }| {
            let exporter = Watched { exporter, collector, metrics: Arc::clone(&metrics) };
            let mut batch = BatchSpanProcessor::builder(exporter).build();
            batch.set_resource(resource);
            let scope = InstrumentationScope::builder("nymea-remoteproxy")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build();
            Arc::new(Inner { batch, scope, sampling, clock: Clock::new(), metrics })
        }))
    }

    /// A tracer that records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// The place of a new connection in its client's trace, or in one of its own.
    pub fn connection(&self, client: Option<TraceParent>) -> Option<TraceParent> {
        let Some(inner) = &self.0 else {
            return client.map(|client| TraceParent { sampled: false, ..client.child() });
        };
        let me = client.map_or_else(|| TraceParent::new(false), TraceParent::child);
        let sampled = inner.sampling.wants(me, client.is_some_and(|client| client.sampled));
        Some(TraceParent { sampled, ..me })
    }

    fn tell(&self, span: Span) {
        let Some(inner) = self.0.as_ref().filter(|_| span.me.sampled) else { return };
        inner.metrics.span_recorded();
        let mut links = SpanLinks::default();
        links.links =
            span.links.into_iter().map(|to| Link::new(context(to, true), Vec::new(), 0)).collect();
        inner.batch.on_end(SpanData {
            span_context: context(span.me, false),
            parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span)),
            parent_span_is_remote: false,
            span_kind: span.kind,
            name: span.name.into(),
            start_time: inner.clock.time_of(span.began),
            end_time: inner.clock.time_of(span.ended),
            attributes: span.facts,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: inner.scope.clone(),
        });
    }

    pub(super) fn shutdown(&self) {
        if let Some(inner) = &self.0
            && let Err(error) = inner.batch.shutdown_with_timeout(FLUSH)
        {
            debug!(%error, "the last spans were not sent");
        }
    }
}

fn context(of: TraceParent, is_remote: bool) -> SpanContext {
    let flags = if of.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, span) = (TraceId::from(of.trace), SpanId::from(of.span));
    SpanContext::new(trace, span, flags, is_remote, TraceState::NONE)
}
