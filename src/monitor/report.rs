//! The report to a monitor, as it is on the wire (`src/protocol/README.md`, section 5). Monitors
//! read it with the same types, from this server and from the original, so reading is lenient: a
//! missing field is empty, an unknown one is ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The answer to a request to refresh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Report {
    /// How the server calls itself.
    pub server_name: String,
    /// Its version.
    pub server_version: String,
    /// The version of the protocol for clients.
    pub api_version: String,
    /// What the tunnel proxy is doing.
    #[serde(rename = "tunnelProxyStatistic")]
    pub tunnel_proxy: TunnelProxy,
}

/// What the tunnel proxy is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TunnelProxy {
    /// Connections of clients, whatever they are.
    #[serde(deserialize_with = "number")]
    pub total_client_count: u64,
    /// Gateways.
    #[serde(rename = "serverConnectionsCount", deserialize_with = "number")]
    pub gateway_count: u64,
    /// Apps.
    #[serde(rename = "clientConnectionsCount", deserialize_with = "number")]
    pub app_count: u64,
    /// Connections by their transport.
    #[serde(deserialize_with = "numbers")]
    pub transports: BTreeMap<String, u64>,
    /// Bytes that were relayed in the last second. The public releases wrote it like this.
    #[serde(rename = "troughput", deserialize_with = "number")]
    pub throughput: u64,
    /// The gateways, with the apps that are attached to them.
    #[serde(rename = "tunnelConnections")]
    pub gateways: Vec<Gateway>,
}

/// A gateway: called a server by the protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Gateway {
    /// The number of its connection.
    #[serde(deserialize_with = "text")]
    pub id: String,
    /// The IP address of the gateway.
    pub address: String,
    /// When it connected, in seconds since 1970.
    #[serde(deserialize_with = "number")]
    pub timestamp: u64,
    /// The name that the gateway gave.
    pub name: String,
    /// The UUID under which it is registered.
    #[serde(rename = "serverUuid")]
    pub uuid: String,
    /// Bytes received from the gateway, including frames.
    #[serde(rename = "rxDataCount", deserialize_with = "number")]
    pub received: u64,
    /// Bytes sent to the gateway, including frames.
    #[serde(rename = "txDataCount", deserialize_with = "number")]
    pub sent: u64,
    /// Its apps.
    #[serde(rename = "clientConnections")]
    pub apps: Vec<App>,
}

/// An app: called a client by the protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct App {
    /// The number of its connection.
    #[serde(deserialize_with = "text")]
    pub id: String,
    /// The IP address of the app.
    pub address: String,
    /// When it connected, in seconds since 1970.
    #[serde(deserialize_with = "number")]
    pub timestamp: u64,
    /// The name that the app gave.
    pub name: String,
    /// The UUID that the app gave.
    #[serde(rename = "clientUuid")]
    pub uuid: String,
    /// Bytes received from the app.
    #[serde(rename = "rxDataCount", deserialize_with = "number")]
    pub received: u64,
    /// Bytes sent to the app.
    #[serde(rename = "txDataCount", deserialize_with = "number")]
    pub sent: u64,
}

impl Report {
    /// The report as it is sent: JSON and a line feed.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("texts and numbers");
        line.push(b'\n');
        line
    }
}

/// A number, which some write as a floating one, and large ones with an exponent.
fn number<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    Ok(whole(&Value::deserialize(input)?))
}

fn numbers<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let values = BTreeMap::<String, Value>::deserialize(input)?;
    Ok(values.into_iter().map(|(name, value)| (name, whole(&value))).collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_f64().unwrap_or_default() as u64)
}

/// A text, or a number as one.
fn text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(input)? {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    })
}
