//! What a Redis server reports about itself: whether it takes writes, which process it is, and
//! whether it may evict keys.

use std::collections::BTreeMap;
use std::time::Duration;

use memchr::memmem;
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Value};
use tokio::time::timeout;

use super::target::{ConnectError, Connection};

/// See the module.
pub(super) struct Server {
    pub(super) identity: Identity,
    /// The maxmemory-policy, if keys may be evicted by it.
    pub(super) evicts_by: Option<String>,
}

/// Changes when data may have been lost: another process, or another master for some slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// The slots of a cluster and their masters, or the address of a server that hides the rest.
    pub(super) masters: String,
    /// The id of each server's process by its address, as far as the servers report it.
    pub(super) processes: BTreeMap<String, String>,
}

impl Identity {
    /// Whether data that was there `before` may be gone.
    pub(super) fn may_have_lost(&self, before: &Self) -> bool {
        self.masters != before.masters
            || self.processes.iter().any(|(address, process)| {
                before.processes.get(address).is_some_and(|known| known != process)
            })
    }

    /// Keeps the processes of servers that do not answer at the moment.
    pub(super) fn remember(&mut self, before: &Self) {
        for (address, process) in &before.processes {
            self.processes.entry(address.clone()).or_insert_with(|| process.clone());
        }
    }
}

impl Server {
    /// Asks the server, or each master of a cluster. A server that takes no writes is an error.
    pub(super) async fn ask(
        connection: &mut Connection,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        let mut command = redis::cmd("INFO");
        match connection {
            Connection::Server { connection, address } => {
                let answer = ask::<String>(connection, command.arg("default"), patience).await;
                let info = match answer {
                    // Users of restricted rights may not ask; the first write shows the rest.
                    Err(ConnectError::Redis(error)) if error.code() == Some("NOPERM") => {
                        String::new()
                    }
                    answer => answer?,
                };
                Self::read(&info, address)
            }
            Connection::Cluster(connection) => {
                let mut slots = redis::cmd("CLUSTER");
                let slots = ask::<Vec<Value>>(connection, slots.arg("SLOTS"), patience).await?;
                // Goes to all masters. One that is silent says nothing about the others' data.
                let infos = ask(connection, &command, patience).await.unwrap_or_default();
                Ok(Self::of_cluster(&slots, &infos))
            }
        }
    }

    fn read(info: &str, address: &str) -> Result<Self, ConnectError> {
        if field(info, "role:") == Some("slave") {
            return Err(ConnectError::Replica);
        }
        if field(info, "loading:") == Some("1") {
            return Err(ConnectError::Loading);
        }
        let identity = match field(info, "run_id:") {
            // A process is known by its id, whatever its address.
            Some(process) => Identity {
                masters: String::new(),
                processes: [(String::new(), process.to_owned())].into(),
            },
            None => Identity { masters: address.into(), processes: BTreeMap::new() },
        };
        Ok(Self { identity, evicts_by: evicts_by(info) })
    }

    fn of_cluster(slots: &[Value], infos: &BTreeMap<String, String>) -> Self {
        let processes = infos.iter().filter_map(|(address, info)| {
            Some((address.clone(), field(info, "run_id:")?.to_owned()))
        });
        let identity = Identity { masters: masters(slots), processes: processes.collect() };
        Self { identity, evicts_by: infos.values().find_map(|info| evicts_by(info)) }
    }
}

/// Returns the value of the line that begins with this name. Some hundred lines are searched for a few
/// names at each renewal of the lease.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let begins_line = |at: &usize| *at == 0 || info.as_bytes()[at - 1] == b'\n';
    let start = memmem::find_iter(info.as_bytes(), name).find(begins_line)? + name.len();
    info[start..].lines().next().map(str::trim)
}

/// The policy by which a server makes room, if it has a limit and does not refuse writes instead.
fn evicts_by(info: &str) -> Option<String> {
    let policy = field(info, "maxmemory_policy:")?;
    let unlimited = field(info, "maxmemory:") == Some("0");
    (policy != "noeviction" && !unlimited).then(|| policy.to_owned())
}

/// The first and last slot of each range, and its master.
fn masters(slots: &[Value]) -> String {
    let mut ranges: Vec<_> = slots
        .iter()
        .filter_map(|range| match range {
            Value::Array(parts) => Some(format!("{:?}", parts.get(..3)?)),
            _ => None,
        })
        .collect();
    ranges.sort();
    ranges.concat()
}

/// Asks a server; the answer must be there within `patience`.
pub(super) async fn ask<T: FromRedisValue>(
    connection: &mut impl ConnectionLike,
    command: &Cmd,
    patience: Duration,
) -> Result<T, ConnectError> {
    let answer = timeout(patience, command.query_async(connection)).await;
    Ok(answer.map_err(|_| ConnectError::Timeout)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_may_have_lost_data_and_a_silent_one_has_not() {
        let cluster = |processes: &[(&str, &str)]| Identity {
            masters: "0-1".into(),
            processes: processes.iter().map(|(at, id)| ((*at).into(), (*id).into())).collect(),
        };
        let before = cluster(&[("a", "1"), ("b", "2")]);
        assert!(!before.may_have_lost(&before));
        assert!(cluster(&[("a", "1"), ("b", "3")]).may_have_lost(&before));
        let mut silent = cluster(&[("a", "1")]);
        assert!(!silent.may_have_lost(&before));
        silent.remember(&before);
        assert!(cluster(&[("b", "3")]).may_have_lost(&silent));
        let moved = Identity { masters: "0-2".into(), ..before.clone() };
        assert!(moved.may_have_lost(&before));
    }

    #[test]
    fn only_a_limited_server_evicts() {
        let info = |limit: &str, policy: &str| {
            format!("run_id:1\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n")
        };
        assert_eq!(evicts_by(&info("0", "allkeys-lru")), None);
        assert_eq!(evicts_by(&info("1000", "noeviction")), None);
        assert_eq!(evicts_by(&info("1000", "volatile-ttl")).as_deref(), Some("volatile-ttl"));
        assert_eq!(evicts_by(""), None);
    }
}
