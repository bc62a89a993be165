//! What monitors are told of a node.
//!
//! The report knows gateways and apps only. Endpoints of generations 1 and 2 are among the
//! connections that are counted, and what their tunnels relay is part of the throughput; the
//! tunnels themselves are listed for operators, on the status page.

use std::sync::{Arc, Weak};

use super::Node;
use crate::monitor::{Report, Statistics, TunnelProxy};
use crate::observability::{Series, Telemetry};
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

    fn tunnel_proxy(&self) -> TunnelProxy {
        let connections = self.sessions.upgrade().map(|sessions| sessions.connections().0);
        let series = self.telemetry.metrics.series();
        TunnelProxy {
            total_client_count: connections.unwrap_or_default() as u64,
            transports: Series::sums(&series, "remoteproxy_connections", "transport"),
            ..TunnelProxy::default()
        }
    }
}

impl Statistics for Monitored {
    fn report(&self, _print_all: bool) -> Report {
        Report {
            server_name: self.server.name.clone(),
            server_version: self.server.version.clone(),
            api_version: API_VERSION_TUNNEL_PROXY.into(),
            tunnel_proxy: self.tunnel_proxy(),
        }
    }

    fn relayed(&self) -> u64 {
        let traffic = self.telemetry.tunnels.traffic();
        traffic.iter().flat_map(|(_, directions)| directions).map(|traffic| traffic.bytes).sum()
    }
}
