//! An authentication server that accepts the tokens of the load.

use std::net::{Ipv4Addr, SocketAddr};

use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// What valid tokens begin with.
pub(crate) const VALID: &str = "soak-";

/// Starts the server; its address.
pub(super) async fn start(tasks: &TaskTracker) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/", post(decide));
    tasks.spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

async fn decide(Json(question): Json<Value>) -> Json<Value> {
    let is_valid = question["token"].as_str().is_some_and(|token| token.starts_with(VALID));
    Json(json!({ "isValid": is_valid }))
}
