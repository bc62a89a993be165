//! Ends connections that were given up. What is still under way on one of them would otherwise be
//! carried out after the commands of its successor: a tunnel that has ended would be put back.
//!
//! The server is asked to close the old connection before the new one is used. Where the rights of
//! the user do not allow that (`CLIENT ID`, `CLIENT KILL`), or a client of a Redis Cluster has
//! reconnected on its own since it was last looked at, a late command can leave an entry of an
//! offer that is gone; no endpoint is refused for such an entry, as its node is asked first.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{RedisError, Value};
use tokio::time::timeout;
use tracing::debug;

use super::server::Identity;
use super::target::Connection;

/// The ids by which servers know a connection. An id is never used again by the same process.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail {
    /// The ids of connections, by the addresses of the servers.
    clients: BTreeMap<String, i64>,
    /// Which processes gave these ids.
    servers: Identity,
}

impl Trail {
    /// The ids of this connection on the servers; none for a server that does not report it.
    pub(super) async fn of(
        connection: &mut Connection,
        servers: &Identity,
        patience: Duration,
    ) -> Self {
        let clients = match timeout(patience, client_ids(connection)).await {
            Ok(Ok(clients)) => clients,
            Ok(Err(error)) => {
                debug!(%error, "Redis does not name this connection");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        Self { clients, servers: servers.clone() }
    }

    /// Ends the connections of this trail, from another one to the same processes.
    pub(super) async fn end(&self, from: &mut Connection, servers: &Identity, patience: Duration) {
        let all = async {
            for (address, client) in &self.clients {
                let process = self.servers.processes.get(address);
                if process.is_none() || process != servers.processes.get(address) {
                    continue;
                }
                if let Err(error) = kill(from, address, *client).await {
                    debug!(%error, "an old connection to Redis cannot be closed");
                }
            }
        };
        if timeout(patience, all).await.is_err() {
            debug!("old connections to Redis could not be closed in time");
        }
    }
}

async fn client_ids(connection: &mut Connection) -> Result<BTreeMap<String, i64>, RedisError> {
    let mut command = redis::cmd("CLIENT");
    command.arg("ID");
    match connection {
        Connection::Server { connection, .. } => {
            let id = command.query_async(connection).await?;
            Ok([(String::new(), id)].into())
        }
        Connection::Cluster(connection) => {
            let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            let answers = connection.route_command(command, masters).await?;
            let answers: BTreeMap<String, Value> = redis::from_redis_value(answers)?;
            let id = |answer| match answer {
                Value::Int(id) => Some(id),
                _ => None,
            };
            Ok(answers.into_iter().filter_map(|(at, answer)| Some((at, id(answer)?))).collect())
        }
    }
}

async fn kill(from: &mut Connection, address: &str, client: i64) -> Result<(), RedisError> {
    let mut command = redis::cmd("CLIENT");
    command.arg("KILL").arg("ID").arg(client);
    let ended: Value = match from {
        Connection::Server { connection, .. } => command.query_async(connection).await?,
        Connection::Cluster(connection) => {
            let Some(server) = at(address) else { return Ok(()) };
            connection.route_command(command, RoutingInfo::SingleNode(server)).await?
        }
    };
    if ended != Value::Int(0) {
        debug!("an old connection to Redis was still open");
    }
    Ok(())
}

fn at(address: &str) -> Option<SingleNodeRoutingInfo> {
    let (host, port) = address.rsplit_once(':')?;
    Some(SingleNodeRoutingInfo::ByAddress { host: host.into(), port: port.parse().ok()? })
}
