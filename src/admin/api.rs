//! The answers: every path of the admin listener, and the document that describes them.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tracing::info;
use utoipa::OpenApi;

use super::Admin;
use super::gateways::{close_gateway, gateways};
use super::history::History;
use super::model::{
    Accepted, Cluster, EventQuery, Events, Happened, LogLevel, Member, NodeState, Problem, Tunnel,
    TunnelList, TunnelQuery,
};
use super::server::{BUSY, BUSY_PER_NETWORK, Connection};
use crate::accept::Room;
use crate::ids::{ClientAddr, OfferId};
use crate::observability::{Endpoint, EventKind, Metrics, TunnelRecord};

/// The largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// The time for a response.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams at once.
const STREAMS: usize = 16;
/// Tunnels in a response, unless requested otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

const STATUS_PAGE: &str = include_str!("status.html");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "nymea-remoteproxy, admin",
        description = "The state of a node, and changes to it, for operators. Where admin.token is \
                       set, all paths except /healthz and /readyz require \"Authorization: Bearer \
                       <token>\".",
        license(name = "GPL-3.0-only")
    ),
    paths(
        healthz,
        readyz,
        metrics,
        node,
        drain,
        undrain,
        cluster,
        tunnels,
        tunnel,
        close_tunnel,
        super::gateways::gateways,
        super::gateways::close_gateway,
        log_level,
        set_log_level,
        events,
        follow,
        document
    )
)]
struct Document;

/// The state shared by all handlers.
pub(super) struct App {
    pub(super) admin: Arc<Admin>,
    history: Arc<History>,
    streams: Arc<Semaphore>,
    /// For connections that have requested more than health.
    busy: Arc<Room>,
    looked: Mutex<Looked>,
    /// The description of the paths, and their list: created once.
    document: String,
    paths: String,
}

/// The metrics of one moment. Gathering them keeps a processor busy, so one request does it for all
/// requests that arrived before it began.
struct Looked {
    since: Instant,
    text: Bytes,
}

pub(super) type Shared = State<Arc<App>>;

/// All paths.
pub(super) fn router(admin: Arc<Admin>, history: Arc<History>) -> Router {
    let described = Document::openapi();
    let app = Arc::new(App {
        admin,
        history,
        streams: Arc::new(Semaphore::new(STREAMS)),
        busy: Room::new(BUSY, BUSY_PER_NETWORK),
        looked: Mutex::new(Looked { since: Instant::now(), text: Bytes::new() }),
        paths: described.paths.paths.keys().cloned().collect::<Vec<_>>().join(", "),
        document: described.to_json().expect("the document has only texts for keys"),
    });
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/node", get(node))
        .route("/api/v1/node/drain", post(drain))
        .route("/api/v1/node/undrain", post(undrain))
        .route("/api/v1/cluster", get(cluster))
        .route("/api/v1/tunnels", get(tunnels))
        .route("/api/v1/tunnels/{id}", get(tunnel).delete(close_tunnel))
        .route("/api/v1/gateways", get(gateways))
        .route("/api/v1/gateways/{id}", delete(close_gateway))
        .route("/api/v1/log-level", get(log_level).put(set_log_level))
        .route("/api/v1/events", get(events))
        .route("/api/v1/stream", get(follow))
        .route("/api/v1/openapi.json", get(document))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// Refuses requests without access, and bounds the time of a response.
async fn guard(
    State(app): Shared,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let checked = app.admin.access.check(method, path, request.headers(), connection.peer);
    if !matches!(path, "/healthz" | "/readyz") {
        connection.is_busy(&app.busy);
    }
    let mut response = match checked {
        Ok(()) => match timeout(ANSWER_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "this took too long"),
        },
        Err(denied) => {
            let mut response = problem(denied.status, denied.why);
            if denied.status == StatusCode::UNAUTHORIZED {
                let challenge = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Problem { error: error.into() })).into_response()
}

async fn unknown(State(app): Shared) -> Response {
    problem(StatusCode::NOT_FOUND, format!("there are / and {}", app.paths))
}

async fn wrong_method() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods, see the header Allow")
}

/// The status page, which requests its data by itself.
async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, STATUS_PAGE.replace("{nonce}", &nonce)).into_response()
}

/// Liveness: whether the node runs.
#[utoipa::path(get, path = "/healthz", tag = "health", responses(
    (status = 200, description = "The node runs.", body = String, content_type = "text/plain")
))]
async fn healthz() -> &'static str {
    "alive\n"
}

/// Readiness: whether the node accepts new clients.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "The node accepts new clients.", body = String,
     content_type = "text/plain"),
    (status = 503, description = "The node accepts no new clients, for these reasons.",
     body = String, content_type = "text/plain")
))]
async fn readyz(State(app): Shared) -> (StatusCode, String) {
    let reasons = (app.admin.unready)();
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("; ") + "\n")
    }
}

/// Returns all metrics.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "Metrics in the text format of Prometheus.", body = String,
     content_type = "text/plain")
))]
async fn metrics(State(app): Shared) -> impl IntoResponse {
    let came = Instant::now();
    let mut looked = app.looked.lock().await;
    if looked.text.is_empty() || looked.since < came {
        let since = Instant::now();
        *looked = Looked { since, text: app.admin.telemetry.metrics.text().into() };
    }
    ([(header::CONTENT_TYPE, Metrics::content_type())], looked.text.clone())
}

/// Returns the state of this node.
#[utoipa::path(get, path = "/api/v1/node", tag = "node", responses(
    (status = 200, description = "The state of this node.", body = NodeState)
))]
async fn node(State(app): Shared) -> Json<NodeState> {
    Json(NodeState::of(&app.admin))
}

/// Drains the node: new and waiting clients are sent to other nodes, established tunnels continue.
#[utoipa::path(post, path = "/api/v1/node/drain", tag = "node", responses(
    (status = 200, description = "The node is draining.", body = NodeState)
))]
async fn drain(State(app): Shared) -> Json<NodeState> {
    if !app.admin.lifecycle.is_draining() {
        info!("an operator drains the node");
        app.admin.telemetry.journal.note(EventKind::State, "an operator drains the node");
    }
    app.admin.lifecycle.drain();
    Json(NodeState::of(&app.admin))
}

/// Ends a drain: the node accepts new clients again.
#[utoipa::path(post, path = "/api/v1/node/undrain", tag = "node", responses(
    (status = 200, description = "The node accepts new clients.", body = NodeState),
    (status = 409, description = "The node is shutting down and stays drained.", body = Problem)
))]
async fn undrain(State(app): Shared) -> Response {
    let was_draining = app.admin.lifecycle.is_draining();
    if !app.admin.lifecycle.undrain() {
        return problem(StatusCode::CONFLICT, "the node is shutting down, which cannot be undone");
    }
    if was_draining {
        info!("an operator lets the node serve again");
        let journal = &app.admin.telemetry.journal;
        journal.note(EventKind::State, "an operator lets the node serve again");
    }
    Json(NodeState::of(&app.admin)).into_response()
}

/// Lists all nodes of the cluster that have a lease.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster", responses(
    (status = 200, description = "The nodes of the cluster.", body = Cluster),
    (status = 503, description = "Redis does not answer; the nodes are not known.", body = Problem)
))]
async fn cluster(State(app): Shared) -> Response {
    match app.admin.cluster.nodes().await {
        Ok(nodes) => Json(Cluster { nodes: Member::all(nodes, &app.admin) }).into_response(),
        Err(why) => {
            let text = format!("the nodes cannot be read from Redis: {why}");
            problem(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// Lists the tunnels of this node, ordered by id.
#[utoipa::path(get, path = "/api/v1/tunnels", tag = "tunnels", params(TunnelQuery), responses(
    (status = 200, description = "A page of the tunnels that match.", body = TunnelList),
    (status = 400, description = "A parameter is not valid.", body = Problem)
))]
async fn tunnels(
    State(app): Shared,
    query: Result<Query<TunnelQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return problem(StatusCode::BAD_REQUEST, "limit must be a number from 1 to 1000");
    }
    let after = match query.after.as_deref().map(str::parse::<OfferId>) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return problem(StatusCode::BAD_REQUEST, "after must be a tunnel's id"),
    };
    let wanted = match Wanted::new(&query) {
        Ok(wanted) => wanted,
        Err(why) => return problem(StatusCode::BAD_REQUEST, why),
    };
    let all = &app.admin.telemetry.tunnels;
    let found = all.list(after, limit, |record| wanted.matches(record));
    let next = found.last().filter(|_| found.len() == limit);
    let next = next.map(|record| record.facts.id.to_string());
    let tunnels = found.iter().map(|record| Tunnel::of(record)).collect();
    Json(TunnelList { tunnels, next, total: all.len() }).into_response()
}

/// The filter of a query.
struct Wanted {
    kind: Option<String>,
    client: Option<(IpAddr, Option<u16>)>,
    name: Option<String>,
}

impl Wanted {
    fn new(query: &TunnelQuery) -> Result<Self, &'static str> {
        if query.kind.as_deref().is_some_and(|kind| !matches!(kind, "local" | "bridged")) {
            return Err("kind must be local or bridged");
        }
        let client = |text: &str| match (text.parse(), text.parse()) {
            (Ok(ip), _) => Ok((ip, None)),
            (_, Ok(std::net::SocketAddr::V4(it))) => Ok((IpAddr::V4(*it.ip()), Some(it.port()))),
            (_, Ok(std::net::SocketAddr::V6(it))) => Ok((IpAddr::V6(*it.ip()), Some(it.port()))),
            _ => Err("client must be an IP address, with or without a port"),
        };
        Ok(Self {
            kind: query.kind.clone(),
            client: query.client.as_deref().map(client).transpose()?,
            name: query.name.as_ref().map(|name| name.to_lowercase()),
        })
    }

    fn matches(&self, record: &TunnelRecord) -> bool {
        let facts = &record.facts;
        let ends = [&facts.first, &facts.second];
        let is_client = |end: &&Endpoint| match (end, self.client) {
            (Endpoint::Here { client_addr, .. }, Some((ip, port))) => {
                let ClientAddr::Ip(address) = client_addr else { return false };
                address.ip().to_canonical() == ip.to_canonical()
                    && port.is_none_or(|port| address.port() == port)
            }
            (Endpoint::There { .. }, Some(_)) => false,
            (_, None) => true,
        };
        let is_named = |end: &&Endpoint| {
            let identity = &end.profile().identity;
            let has = |part: &str| {
                [&identity.name, &identity.uuid].iter().any(|it| it.to_lowercase().contains(part))
            };
            self.name.as_deref().is_none_or(has)
        };
        self.kind.as_deref().is_none_or(|kind| kind == facts.kind.label())
            && ends.iter().any(is_client)
            && ends.iter().any(is_named)
    }
}

/// Returns one tunnel.
#[utoipa::path(get, path = "/api/v1/tunnels/{id}", tag = "tunnels",
    params(("id" = String, Path, description = "The id of a tunnel.")),
    responses(
        (status = 200, description = "The tunnel.", body = Tunnel),
        (status = 404, description = "No tunnel with this id is on this node.", body = Problem)
    )
)]
async fn tunnel(State(app): Shared, Path(id): Path<String>) -> Response {
    let record = id.parse().ok().and_then(|id| app.admin.telemetry.tunnels.get(id));
    match record {
        Some(record) => Json(Tunnel::of(&record)).into_response(),
        None => no_tunnel(),
    }
}

/// Closes both endpoints of a tunnel with code 1001.
#[utoipa::path(delete, path = "/api/v1/tunnels/{id}", tag = "tunnels",
    params(("id" = String, Path, description = "The id of a tunnel.")),
    responses(
        (status = 202, description = "The tunnel is being closed.", body = Accepted),
        (status = 404, description = "No tunnel with this id is on this node.", body = Problem)
    )
)]
async fn close_tunnel(State(app): Shared, Path(id): Path<String>) -> Response {
    let Some(id) = id.parse::<OfferId>().ok().filter(|id| app.admin.telemetry.tunnels.close(*id))
    else {
        return no_tunnel();
    };
    info!(tunnel = %id, "an operator ends a tunnel");
    let text = format!("an operator ends tunnel {id}");
    app.admin.telemetry.journal.note(EventKind::State, text);
    (StatusCode::ACCEPTED, Json(Accepted { closing: id.to_string() })).into_response()
}

fn no_tunnel() -> Response {
    problem(StatusCode::NOT_FOUND, "no tunnel with this id is on this node")
}

/// Returns the filter of the log.
#[utoipa::path(get, path = "/api/v1/log-level", tag = "node", responses(
    (status = 200, description = "The filter in force.", body = LogLevel),
    (status = 501, description = "This program has no log to change.", body = Problem)
))]
async fn log_level(State(app): Shared) -> Response {
    match &app.admin.log {
        Some(log) => Json(LogLevel { filter: log.filter() }).into_response(),
        None => no_log(),
    }
}

/// Changes the filter of the log until the node ends.
#[utoipa::path(put, path = "/api/v1/log-level", tag = "node", request_body = LogLevel, responses(
    (status = 200, description = "The filter in force now.", body = LogLevel),
    (status = 400, description = "The filter is not valid.", body = Problem),
    (status = 501, description = "This program has no log to change.", body = Problem)
))]
async fn set_log_level(
    State(app): Shared,
    body: Result<Json<LogLevel>, JsonRejection>,
) -> Response {
    let Some(log) = &app.admin.log else { return no_log() };
    let Json(LogLevel { filter }) = match body {
        Ok(body) => body,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if let Err(why) = log.set_filter(&filter) {
        return problem(StatusCode::BAD_REQUEST, why);
    }
    info!(filter, "an operator changes what is logged");
    let text = format!("an operator changes what is logged: {filter}");
    app.admin.telemetry.journal.note(EventKind::State, text);
    Json(LogLevel { filter: log.filter() }).into_response()
}

fn no_log() -> Response {
    problem(StatusCode::NOT_IMPLEMENTED, "this program has no log that could be changed")
}

/// Lists recent events; older ones are in the log.
#[utoipa::path(get, path = "/api/v1/events", tag = "node", params(EventQuery), responses(
    (status = 200, description = "At most the last 100 events of each kind.", body = Events),
    (status = 400, description = "A parameter is not valid.", body = Problem)
))]
async fn events(State(app): Shared, query: Result<Query<EventQuery>, QueryRejection>) -> Response {
    let since = match query {
        Ok(Query(EventQuery { since })) => since.unwrap_or(0),
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let events: Vec<_> =
        app.admin.telemetry.journal.since(since).into_iter().map(Happened::of).collect();
    let next = events.last().map_or(since, |event| event.number + 1);
    Json(Events { events, next }).into_response()
}

/// Streams the data of the status page as server-sent events: a `history` event with the last five
/// minutes, then a `status` event every two seconds.
#[utoipa::path(get, path = "/api/v1/stream", tag = "node", responses(
    (status = 200, description = "Events without end.", body = String,
     content_type = "text/event-stream"),
    (status = 503, description = "Too many streams are open.", body = Problem)
))]
async fn follow(State(app): Shared, Extension(connection): Extension<Connection>) -> Response {
    let Ok(place) = Arc::clone(&app.streams).try_acquire_owned() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "16 streams are open already; close one");
    };
    connection.is_stream();
    let (samples, status) = app.history.follow();
    let first = stream::once(async move { Sent::default().event("history").json_data(samples) });
    let rest = stream::unfold((status, place), |(mut status, place)| async {
        // Fails when the node is gone, and with it this.
        status.changed().await.ok()?;
        let current = status.borrow_and_update().clone()?;
        let sent = Sent::default().event("status").json_data(&*current);
        Some((sent, (status, place)))
    });
    Sse::new(infallible(first.chain(rest))).keep_alive(KeepAlive::default()).into_response()
}

fn infallible(
    events: impl Stream<Item = Result<Sent, axum::Error>>,
) -> impl Stream<Item = Result<Sent, Infallible>> {
    // What cannot be written as JSON is not shown.
    events.map(|event| Ok(event.unwrap_or_else(|error| Sent::default().comment(error.to_string()))))
}

/// Returns this document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "node", responses(
    (status = 200, description = "OpenAPI 3.1.", body = Object)
))]
async fn document(State(app): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], app.document.clone())
}
