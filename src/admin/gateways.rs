//! The gateways of a node and their apps, in the API.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::info;
use utoipa::ToSchema;

use super::api::{Shared, problem};
use super::model::{Accepted, Problem, shown, time};
use crate::ids::OfferId;
use crate::observability::{AppRecord, EventKind, GatewayRecord};

/// The most gateways in a response.
const MAX_GATEWAYS: usize = 1000;

/// The gateways of a node.
#[derive(Serialize, ToSchema)]
pub(super) struct GatewayList {
    /// The gateways with the most apps, at most 1000.
    gateways: Vec<Gateway>,
    /// The number of gateways on this node.
    total: usize,
}

/// A registered gateway.
#[derive(Serialize, ToSchema)]
struct Gateway {
    id: String,
    uuid: String,
    name: String,
    /// The address of the gateway.
    client: String,
    /// The number of its connection, as in the log.
    connection: String,
    /// When it registered (RFC 3339).
    since: String,
    /// Bytes received from the gateway, including framing.
    received: u64,
    /// Bytes sent to the gateway, including framing.
    sent: u64,
    /// The apps of this gateway, on all nodes.
    apps: Vec<App>,
}

/// An app attached to a gateway.
#[derive(Serialize, ToSchema)]
struct App {
    /// The id of its tunnel.
    id: String,
    uuid: String,
    name: String,
    /// The address of the app, as seen by the node it is connected to.
    client: String,
    /// The name of the app's node, if it is another one.
    node: Option<String>,
    /// The socket address of the app in frames of the gateway.
    socket_address: u16,
    /// When it was attached (RFC 3339).
    since: String,
    /// Payload bytes received from the app.
    received: u64,
    /// Payload bytes sent to the app.
    sent: u64,
}

impl Gateway {
    fn of(record: &GatewayRecord) -> Self {
        Self {
            id: record.id.to_string(),
            uuid: record.uuid.to_string(),
            name: shown(&record.name),
            client: record.client_addr.to_string(),
            connection: record.connection.to_string(),
            since: time(record.since),
            received: record.bytes.received(),
            sent: record.bytes.sent(),
            apps: record.apps().iter().map(|app| App::of(app)).collect(),
        }
    }
}

impl App {
    fn of(record: &AppRecord) -> Self {
        Self {
            id: record.id.to_string(),
            uuid: record.uuid.to_string(),
            name: shown(&record.name),
            client: shown(&record.peer_address),
            node: record.node.as_deref().map(shown),
            socket_address: record.socket_address,
            since: time(record.since),
            received: record.bytes.received(),
            sent: record.bytes.sent(),
        }
    }
}

/// Lists the gateways registered on this node, with their apps.
#[utoipa::path(get, path = "/api/v1/gateways", tag = "gateways", responses(
    (status = 200, description = "The gateways, those with the most apps first.", body = GatewayList)
))]
pub(super) async fn gateways(State(app): Shared) -> Response {
    let mut records = app.admin.telemetry.gateways.list();
    let total = records.len();
    records.sort_by_key(|record| std::cmp::Reverse(record.app_count()));
    let gateways = records.iter().take(MAX_GATEWAYS).map(|record| Gateway::of(record)).collect();
    Json(GatewayList { gateways, total }).into_response()
}

/// Closes a gateway and its apps with code 1001.
#[utoipa::path(delete, path = "/api/v1/gateways/{id}", tag = "gateways",
    params(("id" = String, Path, description = "The id of a gateway.")),
    responses(
        (status = 202, description = "The gateway is being closed.", body = Accepted),
        (status = 404, description = "No gateway with this id is registered on this node.", body = Problem)
    )
)]
pub(super) async fn close_gateway(State(app): Shared, Path(id): Path<String>) -> Response {
    let telemetry = &app.admin.telemetry;
    let Some(id) = id.parse::<OfferId>().ok().filter(|id| telemetry.gateways.close(*id)) else {
        return problem(StatusCode::NOT_FOUND, "no gateway with this id is registered here");
    };
    info!(gateway = %id, "an operator ends a gateway");
    telemetry.journal.note(EventKind::State, format!("an operator ends gateway {id}"));
    (StatusCode::ACCEPTED, Json(Accepted { closing: id.to_string() })).into_response()
}
