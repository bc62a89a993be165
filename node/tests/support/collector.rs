//! A collector that takes OTLP over gRPC and HTTP, as real ones do, and keeps what it gets.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A collector that accepts all exports, until it is dropped.
pub struct Collector {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    got: Got,
    /// Of its own, so that nothing of it outlives it, also no connection.
    runtime: Option<Runtime>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone, Default)]
struct Got(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    /// Spans with the resource they are from.
    spans: Vec<(HashMap<String, String>, Span)>,
    metrics: Vec<ExportMetricsServiceRequest>,
    bytes: Vec<u8>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// On this address for gRPC.
    pub async fn on(address: SocketAddr) -> Self {
        let got = Got::default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let binding = runtime.spawn(TcpListener::bind(address));
        let listener = binding.await.expect("no panic").expect("a port");
        let grpc = listener.local_addr().expect("bound");
        let (trace, metrics) =
            (TraceServiceServer::new(got.clone()), MetricsServiceServer::new(got.clone()));
        let serving = Server::builder()
            .add_service(trace.accept_compressed(CompressionEncoding::Gzip))
            .add_service(metrics.accept_compressed(CompressionEncoding::Gzip))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(async move { serving.await.expect("it serves") });
        let binding = runtime.spawn(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = binding.await.expect("no panic").expect("a port");
        let http = listener.local_addr().expect("bound");
        let router = axum::Router::new()
            .route("/v1/traces", post(traces_by_http))
            .route("/v1/metrics", post(metrics_by_http))
            .with_state(got.clone());
        runtime.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { grpc, http, got, runtime: Some(runtime) }
    }

    /// All spans so far, with their resources.
    pub fn spans(&self) -> Vec<(HashMap<String, String>, Span)> {
        self.got.taken().spans.clone()
    }

    /// The names of all metrics so far.
    pub fn metrics(&self) -> Vec<String> {
        let taken = self.got.taken();
        let resources = taken.metrics.iter().flat_map(|request| &request.resource_metrics);
        let scopes = resources.flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }

    /// Everything that came, as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.got.taken().bytes.clone()
    }
}

impl Got {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_spans(&self, request: ExportTraceServiceRequest) {
        let mut taken = self.taken();
        taken.bytes.extend(request.encode_to_vec());
        for resource in request.resource_spans {
            let of = resource.resource.map(|it| texts(&it.attributes)).unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            taken.spans.extend(spans.map(|span| (of.clone(), span)));
        }
    }

    fn take_metrics(&self, request: ExportMetricsServiceRequest) {
        let mut taken = self.taken();
        taken.bytes.extend(request.encode_to_vec());
        taken.metrics.push(request);
    }
}

/// Attributes as texts.
pub fn texts(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |it: &KeyValue| it.value.as_ref().and_then(|any| any.value.as_ref()).map(text);
    attributes.iter().filter_map(|it| Some((it.key.clone(), value(it)?))).collect()
}

#[tonic::async_trait]
impl TraceService for Got {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take_spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Got {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.take_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

async fn traces_by_http(State(got): State<Got>, body: Bytes) -> Vec<u8> {
    got.take_spans(ExportTraceServiceRequest::decode(body).expect("the protocol's own type"));
    ExportTraceServiceResponse::default().encode_to_vec()
}

async fn metrics_by_http(State(got): State<Got>, body: Bytes) -> Vec<u8> {
    got.take_metrics(ExportMetricsServiceRequest::decode(body).expect("the protocol's own type"));
    ExportMetricsServiceResponse::default().encode_to_vec()
}
