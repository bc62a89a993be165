//! The report to monitors: the gateways registered on this node with their apps, on any node of the
//! cluster. An app of this node with a gateway on another node is reported there.
//!
//! The report lists gateways and apps only. Endpoints of generations 1 and 2 are counted as
//! connections, and the data of their tunnels is part of the throughput; the tunnels themselves are
//! listed for operators, on the status page. Connections are counted by transport only if there are
//! metrics (`telemetry.enabled`).

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Node;
use crate::monitor::{App, Gateway, Report, Statistics, TunnelProxy};
use crate::observability::{AppRecord, GatewayRecord, Series, Telemetry};
use crate::protocol::{API_VERSION_TUNNEL_PROXY, ServerInfo};
use crate::session::Shared;

/// A node, which need not be there any more.
pub(super) struct Monitored {
    server: Arc<ServerInfo>,
    telemetry: Telemetry,
    sessions: Weak<Shared>,
}

impl Monitored {
    pub(super) fn new(node: &Node) -> Arc<Self> {
        Arc::new(Self {
            server: Arc::clone(&node.shared.server),
            telemetry: node.telemetry().clone(),
            sessions: Arc::downgrade(&node.shared),
        })
    }

    fn tunnel_proxy(&self, print_all: bool) -> TunnelProxy {
        let connections = self.sessions.upgrade().map(|sessions| sessions.connections().0);
        let series = self.telemetry.metrics.series();
        let records = self.telemetry.gateways.list();
        let gateways: Vec<_> = records.iter().map(|record| gateway(record)).collect();
        let app_count: usize = gateways.iter().map(|gateway| gateway.apps.len()).sum();
        TunnelProxy {
            total_client_count: connections.unwrap_or_default() as u64,
            gateway_count: gateways.len() as u64,
            app_count: app_count as u64,
            transports: Series::sums(&series, "remoteproxy_connections", "transport"),
            throughput: 0,
            gateways: gateways
                .into_iter()
                .filter(|gateway| print_all || !gateway.apps.is_empty())
                .collect(),
        }
    }
}

impl Statistics for Monitored {
    fn report(&self, print_all: bool) -> Report {
        Report {
            server_name: self.server.name.clone(),
            server_version: self.server.version.clone(),
            api_version: API_VERSION_TUNNEL_PROXY.into(),
            tunnel_proxy: self.tunnel_proxy(print_all),
        }
    }

    fn relayed(&self) -> u64 {
        let traffic = self.telemetry.tunnels.traffic();
        traffic.iter().flat_map(|(_, directions)| directions).map(|traffic| traffic.bytes).sum()
    }
}

fn gateway(record: &GatewayRecord) -> Gateway {
    Gateway {
        id: record.id.to_string(),
        address: record.client_addr.to_string(),
        timestamp: seconds(record.since),
        name: record.name.clone(),
        uuid: record.uuid.braced().to_string(),
        received: record.bytes.received(),
        sent: record.bytes.sent(),
        apps: record.apps().iter().map(|record| app(record)).collect(),
    }
}

fn app(record: &AppRecord) -> App {
    App {
        id: record.id.to_string(),
        address: record.peer_address.clone(),
        timestamp: seconds(record.since),
        name: record.name.clone(),
        uuid: record.uuid.braced().to_string(),
        received: record.bytes.received(),
        sent: record.bytes.sent(),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
