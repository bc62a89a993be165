//! Where traces and metrics go by OTLP, as the settings and the standard `OTEL_*` variables of the
//! environment say; the latter win. Also says, once, when the collector is away and when it is
//! back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, Protocol, SpanExporter, WithExportConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;
use thiserror::Error;
use tracing::{info, warn};

use super::Metrics;
use crate::config::{self, OtlpProtocol};
use crate::ids::NodeId;
use crate::trace_parent::TraceParent;

/// Why nothing can be exported.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The exporter cannot be made of these settings.
    #[error("telemetry (or OTEL_EXPORTER_OTLP_*) cannot be used")]
    Exporter(#[source] ExporterBuildError),
    /// A variable of the environment makes no sense.
    #[error("{0} must be {1}")]
    Variable(&'static str, &'static str),
}

/// The exporters, as far as an export is configured.
pub(super) struct Exporters {
    pub(super) spans: Option<SpanExporting>,
    pub(super) metrics: Option<MetricExporter>,
    pub(super) resource: Resource,
}

/// The export of spans.
pub(super) struct SpanExporting {
    pub(super) exporter: SpanExporter,
    pub(super) sampling: Sampling,
    pub(super) collector: Collector,
}

/// Which connections are traced; tunnels follow the connection that waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampling {
    /// The share of those without a client's wish, from 0 to 1.
    pub(super) ratio: f64,
    /// Whether clients may wish for it.
    pub(super) follow_clients: bool,
}

impl Sampling {
    /// Whether a connection is to be traced. The same for equal traces, on every node.
    pub(super) fn wants(&self, me: TraceParent, client_wishes: bool) -> bool {
        if self.follow_clients && client_wishes {
            return true;
        }
        // The random part of a trace id, as the samplers of the field take it.
        let random = me.trace & u128::from(u64::MAX >> 8);
        #[expect(clippy::cast_precision_loss, reason = "a share of 2^-53 more or less")]
        let place = random as f64 / (1_u64 << 56) as f64;
        place < self.ratio
    }
}

impl Exporters {
    /// Makes what the settings and the environment ask for.
    pub(super) fn new(
        settings: &config::Telemetry,
        node: &NodeId,
        name: &str,
    ) -> Result<Self, TelemetryError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let plan = Plan::new(settings, &env)?;
        let spans = plan.traces.map(|(signal, sampling)| {
            let exporter = build(|| span_exporter(&signal)).map_err(TelemetryError::Exporter)?;
            Ok(SpanExporting { exporter, sampling, collector: Collector::default() })
        });
        let metrics = plan
            .metrics
            .map(|signal| build(|| metric_exporter(&signal)).map_err(TelemetryError::Exporter));
        Ok(Self {
            spans: spans.transpose()?,
            metrics: metrics.transpose()?,
            resource: resource(&env, node, name),
        })
    }
}

/// The client for HTTP must not be made by a thread of the runtime, the one for gRPC within it.
fn build<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    let runtime = tokio::runtime::Handle::try_current();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _within = runtime.as_ref().ok().map(tokio::runtime::Handle::enter);
            make()
        });
        thread.join().expect("an exporter is made or refused")
    })
}

fn span_exporter(signal: &Signal) -> Result<SpanExporter, ExporterBuildError> {
    let exporter = SpanExporter::builder();
    match signal {
        Signal::Environment(None) => exporter.build(),
        Signal::Environment(Some(OtlpProtocol::Grpc)) => exporter.with_tonic().build(),
        Signal::Environment(Some(OtlpProtocol::Http)) => {
            exporter.with_http().with_protocol(Protocol::HttpBinary).build()
        }
        Signal::Settings(OtlpProtocol::Grpc, url) => {
            exporter.with_tonic().with_endpoint(url).build()
        }
        Signal::Settings(OtlpProtocol::Http, url) => {
            let exporter = exporter.with_http().with_protocol(Protocol::HttpBinary);
            exporter.with_endpoint(below(url, "v1/traces")).build()
        }
    }
}

fn metric_exporter(signal: &Signal) -> Result<MetricExporter, ExporterBuildError> {
    let exporter = MetricExporter::builder();
    match signal {
        Signal::Environment(None) => exporter.build(),
        Signal::Environment(Some(OtlpProtocol::Grpc)) => exporter.with_tonic().build(),
        Signal::Environment(Some(OtlpProtocol::Http)) => {
            exporter.with_http().with_protocol(Protocol::HttpBinary).build()
        }
        Signal::Settings(OtlpProtocol::Grpc, url) => {
            exporter.with_tonic().with_endpoint(url).build()
        }
        Signal::Settings(OtlpProtocol::Http, url) => {
            let exporter = exporter.with_http().with_protocol(Protocol::HttpBinary);
            exporter.with_endpoint(below(url, "v1/metrics")).build()
        }
    }
}

fn below(url: &str, path: &str) -> String {
    format!("{}/{path}", url.trim_end_matches('/'))
}

fn resource(env: &dyn Fn(&str) -> Option<String>, node: &NodeId, name: &str) -> Resource {
    let given = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = env("OTEL_SERVICE_NAME").is_some() || given.contains("service.name=");
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_string()),
        KeyValue::new("host.name", gethostname::gethostname().to_string_lossy().into_owned()),
        KeyValue::new("nymea.node.name", name.to_owned()),
    ]);
    if !is_named {
        resource = resource.with_service_name("nymea-remoteproxy");
    }
    resource.build()
}

/// The target of one kind of data.
#[derive(Clone, Debug, PartialEq)]
enum Signal {
    /// The target of the environment; without a protocol here, also with its protocol.
    Environment(Option<OtlpProtocol>),
    /// The target of the settings.
    Settings(OtlpProtocol, String),
}

/// The targets of all data.
#[derive(Debug, PartialEq)]
struct Plan {
    traces: Option<(Signal, Sampling)>,
    metrics: Option<Signal>,
}

impl Plan {
    fn new(
        settings: &config::Telemetry,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, TelemetryError> {
        let is_off = env("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"));
        if is_off || !settings.enabled {
            return Ok(Self { traces: None, metrics: None });
        }
        let signal = |wanted: bool, switch: &'static str, own: [&str; 2]| {
            match env(switch).as_deref() {
                Some("none") => return Ok(None),
                Some("otlp") | None => {}
                Some(_) => return Err(TelemetryError::Variable(switch, "otlp or none")),
            }
            let given = |own: &str, common: &str| env(own).or_else(|| env(common)).is_some();
            let (protocol, [endpoint, its_protocol]) = (settings.protocol, own);
            let signal = if given(endpoint, "OTEL_EXPORTER_OTLP_ENDPOINT") {
                let says_how = given(its_protocol, "OTEL_EXPORTER_OTLP_PROTOCOL");
                Some(Signal::Environment((!says_how).then_some(protocol)))
            } else {
                settings.endpoint.clone().map(|url| Signal::Settings(protocol, url))
            };
            Ok(signal.filter(|_| wanted))
        };
        let traces = signal(
            settings.traces,
            "OTEL_TRACES_EXPORTER",
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"],
        )?;
        let metrics = signal(
            settings.metrics,
            "OTEL_METRICS_EXPORTER",
            ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"],
        )?;
        let sampling = sampling(settings, env)?;
        Ok(Self { traces: traces.map(|signal| (signal, sampling)), metrics })
    }
}

fn sampling(
    settings: &config::Telemetry,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Sampling, TelemetryError> {
    let by_settings = Sampling { ratio: settings.sample, follow_clients: settings.follow_clients };
    let Some(sampler) = env("OTEL_TRACES_SAMPLER") else { return Ok(by_settings) };
    let argument = env("OTEL_TRACES_SAMPLER_ARG").map(|text| text.parse::<f64>());
    let share = match argument {
        None => Ok(1.0),
        Some(Ok(share)) if (0.0..=1.0).contains(&share) => Ok(share),
        Some(_) => Err(TelemetryError::Variable("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1")),
    };
    let (follow_clients, kind) = match sampler.strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, sampler.as_str()),
    };
    let ratio = match kind {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => share?,
        _ => {
            return Err(TelemetryError::Variable(
                "OTEL_TRACES_SAMPLER",
                "always_on, always_off or traceidratio, with or without parentbased_ before it",
            ));
        }
    };
    Ok(Sampling { ratio, follow_clients })
}

/// Whether a collector takes what it is sent.
#[derive(Debug, Default)]
pub(super) struct Collector {
    is_away: AtomicBool,
}

impl Collector {
    fn heard(&self, result: &OTelSdkResult) {
        match result {
            Ok(()) => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    info!("the collector takes spans again");
                }
            }
            Err(error) => {
                if !self.is_away.swap(true, Ordering::Relaxed) {
                    warn!(%error, "the collector takes no spans; they are dropped until it does");
                }
            }
        }
    }
}

/// Exports spans, and notices if that fails.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) exporter: SpanExporter,
    pub(super) collector: Collector,
    pub(super) metrics: Arc<Metrics>,
}

impl opentelemetry_sdk::trace::SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.collector.heard(&result);
        self.metrics.spans_exported(if result.is_ok() { "ok" } else { "failed" }, count);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(settings: &config::Telemetry, env: &[(&str, &str)]) -> Result<Plan, TelemetryError> {
        Plan::new(settings, &|name| {
            env.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_is_sent_unless_asked_for() {
        let nothing = Plan { traces: None, metrics: None };
        assert_eq!(plan(&config::Telemetry::default(), &[]).ok(), Some(nothing));
    }

    #[test]
    fn the_environment_wins_over_the_settings() {
        let settings = config::Telemetry {
            endpoint: Some("http://settings:4317".into()),
            sample: 0.5,
            ..config::Telemetry::default()
        };
        let of_settings = Signal::Settings(OtlpProtocol::Grpc, "http://settings:4317".into());
        let by = |env: &[(&str, &str)]| plan(&settings, env).expect("a plan");
        let half = Sampling { ratio: 0.5, follow_clients: true };
        assert_eq!(by(&[]).traces, Some((of_settings.clone(), half)));
        let endpoint = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://environment:4317");
        let of_environment = Signal::Environment(Some(OtlpProtocol::Grpc));
        assert_eq!(by(&[endpoint]).traces, Some((of_environment, half)));
        let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(by(&[endpoint, protocol]).traces, Some((Signal::Environment(None), half)));
        assert_eq!(by(&[endpoint]).metrics, Some(of_settings));
        assert_eq!(by(&[("OTEL_TRACES_EXPORTER", "none")]).traces, None);
        assert_eq!(by(&[("OTEL_SDK_DISABLED", "true")]).metrics, None);
        let sampler =
            [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        let quarter = Sampling { ratio: 0.25, follow_clients: false };
        assert_eq!(by(&sampler).traces.map(|(_, sampling)| sampling), Some(quarter));
        for wrong in [("OTEL_TRACES_SAMPLER", "jaeger_remote"), ("OTEL_TRACES_EXPORTER", "zipkin")]
        {
            let error = plan(&settings, &[wrong]).expect_err("it makes no sense");
            assert!(error.to_string().starts_with(wrong.0), "{error}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_sampled_and_clients_may_wish() {
        let sampling = Sampling { ratio: 0.25, follow_clients: true };
        let wanted = (0..4000).filter(|_| sampling.wants(TraceParent::new(false), false)).count();
        assert!((800..1200).contains(&wanted), "{wanted} of 4000");
        assert!((0..100).all(|_| sampling.wants(TraceParent::new(false), true)));
        let strict = Sampling { ratio: 0.0, follow_clients: false };
        assert!(!(0..100).any(|_| strict.wants(TraceParent::new(true), true)));
        let all = Sampling { ratio: 1.0, follow_clients: false };
        assert!((0..100).all(|_| all.wants(TraceParent::new(false), false)));
    }
}
