//! The types of the API, as JSON.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use crate::observability::{Endpoint, Event, Series, TunnelRecord};
use crate::printable::Printable;
use crate::protocol::{Generation, Profile};
use crate::rendezvous::{Load, NodeInfo};

/// Why a request was not carried out.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    /// The reason, and what to do.
    pub(super) error: String,
}

/// The state of this node.
#[derive(Serialize, ToSchema)]
pub(super) struct NodeState {
    /// The id of the node; new for each start.
    node: String,
    name: String,
    version: String,
    /// When it started (RFC 3339).
    started: String,
    uptime_seconds: u64,
    /// The URL for clients by WebSocket, if there is such a listener.
    url: String,
    /// The URLs of all listeners for clients.
    listeners: Vec<String>,
    /// The bridge address of the node; `null` if it has no cluster.
    bridge: Option<String>,
    state: State,
    ready: bool,
    /// Why the node accepts no new clients.
    unready_because: Vec<String>,
    connections: usize,
    connections_limit: usize,
    /// Open connections by stage.
    connections_by_stage: BTreeMap<String, u64>,
    tunnels: usize,
    /// Established tunnels by kind.
    tunnels_by_kind: BTreeMap<String, u64>,
}

/// What a node does with new clients.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum State {
    /// New clients are accepted.
    Running,
    /// New clients are refused until an operator ends the drain.
    Draining,
    /// New clients are refused, and the node ends.
    Ending,
}

impl NodeState {
    pub(super) fn of(admin: &Admin) -> Self {
        let Load { connections, tunnels, .. } = (admin.load)();
        let unready_because = (admin.unready)();
        let identity = &admin.identity;
        let state = if admin.lifecycle.is_ending() {
            State::Ending
        } else if admin.lifecycle.is_draining() {
            State::Draining
        } else {
            State::Running
        };
        let series = admin.telemetry.metrics.series();
        Self {
            node: identity.node.clone(),
            name: identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: time(identity.started),
            uptime_seconds: identity.since.elapsed().as_secs(),
            url: identity.url.clone(),
            listeners: identity.listeners.clone(),
            bridge: identity.bridge.map(|address| address.to_string()),
            state,
            ready: unready_because.is_empty(),
            unready_because,
            connections,
            connections_limit: identity.connections_limit,
            connections_by_stage: Series::sums(&series, "remoteproxy_connections", "stage"),
            tunnels,
            tunnels_by_kind: Series::sums(&series, "remoteproxy_tunnels", "kind"),
        }
    }
}

/// The nodes of the cluster.
#[derive(Serialize, ToSchema)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Member>,
}

/// A node of the cluster, as it was when it last refreshed its lease: a few seconds ago.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Member {
    node: String,
    name: String,
    /// The bridge address of the node.
    address: String,
    version: String,
    /// When it started (RFC 3339).
    started: String,
    connections: usize,
    tunnels: usize,
    draining: bool,
    /// Whether this is the node that answers the request.
    this: bool,
    /// What is wrong with the address of the node, and what to do.
    trouble: Option<String>,
}

impl Member {
    /// All nodes of the cluster of `admin`.
    pub(super) fn all(nodes: Vec<NodeInfo>, admin: &Admin) -> Vec<Self> {
        let mut at = BTreeMap::<String, Vec<String>>::new();
        for node in nodes.iter().filter(|node| !node.address.is_empty()) {
            at.entry(node.address.clone()).or_default().push(node.name.clone());
        }
        let member = |info: NodeInfo| {
            let names = at.get(&info.address).filter(|names| names.len() > 1);
            let shared = names.map(|names| shared_address(&info.address, names));
            let trouble = admin.cluster.trouble_with(&info.node).or(shared);
            Self::of(info, &admin.identity.node, trouble)
        };
        nodes.into_iter().map(member).collect()
    }

    fn of(info: NodeInfo, this: &str, trouble: Option<String>) -> Self {
        let NodeInfo { node, name, address, version, started, load } = info;
        let Load { connections, tunnels, draining } = load;
        let this = node == this;
        // As the other nodes have written it into Redis.
        let [node, name, address, version, started] =
            [node, name, address, version, started].map(|text| shown(&text));
        Self {
            node,
            name,
            address,
            version,
            started,
            connections,
            tunnels,
            draining,
            this,
            trouble,
        }
    }
}

fn shared_address(address: &str, names: &[String]) -> String {
    format!(
        "{address:?} is the address of {} nodes ({}): give each its own by bridge.advertise, unless \
         one of them has just been restarted",
        names.len(),
        names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    )
}

/// Which tunnels to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TunnelQuery {
    /// The most tunnels to return, from 1 to 1000 (default 100).
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
    /// Return tunnels after this id: the `next` of the previous page.
    pub(super) after: Option<String>,
    /// `local` or `bridged`.
    pub(super) kind: Option<String>,
    /// An IP address, or IP address and port, of a client.
    pub(super) client: Option<String>,
    /// A part of a client's name or UUID.
    pub(super) name: Option<String>,
}

/// A page of tunnels.
#[derive(Serialize, ToSchema)]
pub(super) struct TunnelList {
    pub(super) tunnels: Vec<Tunnel>,
    /// The value of `after` for the next page; `null` on the last one.
    pub(super) next: Option<String>,
    /// The number of tunnels on this node, whether they match or not.
    pub(super) total: usize,
}

/// An established tunnel.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Tunnel {
    /// The id of the tunnel; the same on both nodes.
    pub(super) id: String,
    /// `local`, or `bridged` if an endpoint is on another node.
    kind: String,
    /// The generation of both endpoints: `1`, `2`, or `mixed`.
    generation: String,
    /// When it was established (RFC 3339).
    since: String,
    duration_seconds: u64,
    /// The endpoint that waited.
    first: End,
    /// The endpoint that claimed the offer of the first one.
    second: End,
    /// Traffic from the first endpoint to the second one.
    bytes_forth: u64,
    /// Traffic from the second endpoint to the first one.
    bytes_back: u64,
    messages_forth: u64,
    messages_back: u64,
}

/// One end of a tunnel.
#[derive(Clone, Serialize, ToSchema)]
struct End {
    /// The number of the endpoint's connection, if it is on this node.
    connection: Option<String>,
    /// The address of the endpoint, if it is on this node.
    client_address: Option<String>,
    /// The name of the endpoint's node, if it is another one.
    node: Option<String>,
    /// The protocol generation of the endpoint: 1 or 2.
    generation: u8,
    /// The name that the endpoint gave.
    name: String,
    uuid: String,
}

impl Tunnel {
    pub(super) fn of(record: &TunnelRecord) -> Self {
        let [forth, back] = record.meter.get();
        let facts = &record.facts;
        Self {
            id: facts.id.to_string(),
            kind: facts.kind.label().into(),
            generation: facts.generation().into(),
            since: time(record.since),
            duration_seconds: record.stands_for().as_secs(),
            first: End::of(&facts.first),
            second: End::of(&facts.second),
            bytes_forth: forth.bytes,
            bytes_back: back.bytes,
            messages_forth: forth.messages,
            messages_back: back.messages,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_forth + self.bytes_back
    }
}

impl End {
    fn of(endpoint: &Endpoint) -> Self {
        let Profile { generation, identity } = endpoint.profile();
        let (connection, client_address, node) = match endpoint {
            Endpoint::Here { connection, client_addr, .. } => {
                (Some(connection.to_string()), Some(client_addr.to_string()), None)
            }
            Endpoint::There { node, .. } => (None, None, Some(shown(node))),
        };
        let generation = match generation {
            Generation::One => 1,
            Generation::Two => 2,
            Generation::Three => 3,
        };
        let (name, uuid) = (shown(&identity.name), shown(&identity.uuid));
        Self { connection, client_address, node, generation, name, uuid }
    }
}

/// What the node has begun to do.
#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    pub(super) closing: String,
}

/// The filter of the log.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevel {
    /// A list of directives, such as `info,nymea_remoteproxy=debug`.
    pub(super) filter: String,
}

/// Which events to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Return events with this number and later ones.
    pub(super) since: Option<u64>,
}

/// Recent events.
#[derive(Serialize, ToSchema)]
pub(super) struct Events {
    pub(super) events: Vec<Happened>,
    /// The value of `since` for the next request.
    pub(super) next: u64,
}

/// An event of interest to an operator.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Happened {
    /// The number of the event, counting up. A repeated event gets a new number.
    pub(super) number: u64,
    /// When the event happened last (RFC 3339).
    at: String,
    /// `tunnel`, `gateway`, `refused`, `trouble` or `state`.
    kind: String,
    text: String,
    /// How often the event happened; counted for the kinds `refused` and `trouble` only.
    count: u64,
}

impl Happened {
    pub(super) fn of(event: Event) -> Self {
        let Event { number, at, kind, text, count } = event;
        Self { number, at: time(at), kind: kind.label().into(), text, count }
    }
}

/// A name chosen by a client or another node, safe to display.
pub(super) fn shown(name: &str) -> String {
    Printable::name(name).to_string()
}

pub(super) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
