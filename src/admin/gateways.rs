//! The gateways of a node and their apps, as the API says it.

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

/// Gateways in an answer, at most.
const MAX_GATEWAYS: usize = 1000;

/// The gateways of a node.
#[derive(Serialize, ToSchema)]
pub(super) struct GatewayList {
    /// Those with the most apps, up to 1000.
    gateways: Vec<Gateway>,
    /// All of this node.
    total: usize,
}

/// A gateway that is registered.
#[derive(Serialize, ToSchema)]
struct Gateway {
    id: String,
    uuid: String,
    name: String,
    /// Where it comes from.
    client: String,
    /// The number of its connection, as in the log.
    connection: String,
    /// Since when it is registered (RFC 3339).
    since: String,
    /// Bytes that came from it, with the framing.
    received: u64,
    /// Bytes that went to it, with the framing.
    sent: u64,
    /// On whichever node they are.
    apps: Vec<App>,
}

/// An app that is attached.
#[derive(Serialize, ToSchema)]
struct App {
    /// The id of its tunnel.
    id: String,
    uuid: String,
    name: String,
    /// Where it comes from, as its own node sees it.
    client: String,
    /// Its node, if that is another one.
    node: Option<String>,
    /// By which the gateway knows it.
    socket_address: u16,
    /// Since when it is attached (RFC 3339).
    since: String,
    /// Payload bytes that came from it.
    received: u64,
    /// Payload bytes that went to it.
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

/// The gateways that are registered on this node, with their apps.
#[utoipa::path(get, path = "/api/v1/gateways", tag = "gateways", responses(
    (status = 200, description = "Those with the most apps first.", body = GatewayList)
))]
pub(super) async fn gateways(State(app): Shared) -> Response {
    let mut records = app.admin.telemetry.gateways.list();
    let total = records.len();
    records.sort_by_key(|record| std::cmp::Reverse(record.app_count()));
    let gateways = records.iter().take(MAX_GATEWAYS).map(|record| Gateway::of(record)).collect();
    Json(GatewayList { gateways, total }).into_response()
}

/// Ends the connection of a gateway: it and its apps are closed with code 1001.
#[utoipa::path(delete, path = "/api/v1/gateways/{id}", tag = "gateways",
    params(("id" = String, Path, description = "The id of a gateway.")),
    responses(
        (status = 202, description = "It is being closed.", body = Accepted),
        (status = 404, description = "There is none on this node.", body = Problem)
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
