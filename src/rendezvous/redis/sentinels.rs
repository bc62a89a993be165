//! Which server is the master, as the sentinels have agreed. A connection to each is kept open, as
//! they are asked again at every refresh of the lease.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo};
use tracing::debug;

use super::server::ask;
use super::target::{ConnectError, open};

use crate::lock::lock;

/// The sentinels of one master.
pub(super) struct Sentinels {
    all: Vec<Sentinel>,
    master_name: String,
    /// How to connect to the master, except for the address, which the sentinels provide.
    master: ConnectionInfo,
}

struct Sentinel {
    client: Client,
    kept: Mutex<Option<MultiplexedConnection>>,
}

/// The address of a master.
pub(super) type Place = (String, u16);

impl Sentinels {
    pub(super) fn new(clients: Vec<Client>, master_name: &str, master: ConnectionInfo) -> Self {
        let all = clients.into_iter().map(|client| Sentinel { client, kept: Mutex::default() });
        Self { all: all.collect(), master_name: master_name.into(), master }
    }

    /// The address that most of the sentinels name. One of them may be cut off from the others, and
    /// name a master of the past. Takes at most `patience`, and no longer than half of them need.
    pub(super) async fn place(&self, patience: Duration) -> Result<Place, ConnectError> {
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(&self.master_name);
        let mut asked: FuturesUnordered<_> =
            self.all.iter().map(|sentinel| sentinel.ask(&command, patience)).collect();
        let mut votes = BTreeMap::<Place, usize>::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(place)) => {
                    let count = votes.entry(place.clone()).or_default();
                    *count += 1;
                    if *count * 2 > self.all.len() {
                        return Ok(place);
                    }
                }
                Ok(None) => debug!("a sentinel does not know this master"),
                Err(error) => debug!(%error, "a sentinel does not answer"),
            }
        }
        let most = votes.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(place, _)| place).ok_or(ConnectError::NoMaster)
    }

    /// How to connect to the master at this place.
    pub(super) fn master(&self, (host, port): Place) -> ConnectionInfo {
        self.master.clone().set_addr(match self.master.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_) | _ => {
                ConnectionAddr::Tcp(host, port)
            }
        })
    }
}

impl Sentinel {
    /// Asks over the connection that is kept, and over a new one if there is none or it is broken.
    async fn ask(&self, command: &Cmd, patience: Duration) -> Result<Option<Place>, ConnectError> {
        let kept = self.kept().take();
        if let Some(mut connection) = kept {
            match ask(&mut connection, command, patience).await {
                Ok(place) => {
                    *self.kept() = Some(connection);
                    return Ok(place);
                }
                // The next time it is a new one.
                Err(ConnectError::Timeout) => return Err(ConnectError::Timeout),
                Err(error) => debug!(%error, "the connection to a sentinel is lost"),
            }
        }
        let mut connection = open(&self.client, patience).await?;
        let place = ask(&mut connection, command, patience).await?;
        *self.kept() = Some(connection);
        Ok(place)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<MultiplexedConnection>> {
        lock(&self.kept)
    }
}
