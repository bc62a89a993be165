//! The end of a run: when all clients have left, nothing of them may be left anywhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Member;
use crate::cluster::process::{descriptors, resident};
use crate::world::World;

/// Within how many seconds everything must be given back.
const CLEAN: u64 = 40;
/// Gauges that are 0 when no client is there.
const GAUGES: [&str; 6] = [
    "remoteproxy_connections",
    "remoteproxy_tunnels",
    "remoteproxy_gateways",
    "remoteproxy_gateway_apps",
    "remoteproxy_bridge_streams_in",
    "remoteproxy_redis_backlog",
];
/// Descriptors that a node may have more than before the load: connections to other nodes, of which
/// it keeps a few for each of them, in both directions, and to Redis.
const MORE_DESCRIPTORS: usize = 40;
/// How much larger a node may be than after its first wave of faults, in KiB.
const MORE_MEMORY: u64 = 48 * 1024;
/// Tasks that a node may have more than before the load.
const MORE_TASKS: f64 = 40.0;

/// What a node used at some time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    descriptors: usize,
    tasks: Option<f64>,
}

/// What all nodes use now.
pub(crate) async fn usage(world: &World) -> Vec<Usage> {
    let mut all = Vec::new();
    for node in &world.cluster.nodes {
        all.push(usage_of(node).await.unwrap_or_default());
    }
    all
}

async fn usage_of(node: &Member) -> anyhow::Result<Usage> {
    let pid = node.pid().ok_or_else(|| anyhow::anyhow!("down"))?;
    let metrics = node.metrics().await?;
    let tasks = metrics.iter().filter(|metric| is_tasks(&metric.name)).map(|metric| metric.value);
    let tasks = tasks.reduce(|one, other| one + other);
    Ok(Usage { descriptors: descriptors(pid)?, tasks })
}

fn is_tasks(name: &str) -> bool {
    name.starts_with("remoteproxy_") && name.contains("tasks") && !name.ends_with("_total")
}

/// Resident memory of all nodes, in KiB; 0 where it is not known.
pub(crate) fn memory(world: &World) -> Vec<u64> {
    let of = |node: &Member| node.pid().and_then(|pid| resident(pid).ok()).unwrap_or_default();
    world.cluster.nodes.iter().map(of).collect()
}

/// Checks that all is given back, and ends the nodes in order. `warm` is the memory of each node
/// under load, 0 where it is not known.
pub(crate) async fn check(world: &Arc<World>, before: &[Usage], warm: &[u64]) {
    let deadline = Instant::now() + world.options.within(CLEAN);
    let mut left = left_overs(world, before, warm).await;
    while !left.is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(500)).await;
        left = left_overs(world, before, warm).await;
    }
    for what in left {
        world.journal.violation("left over", what);
    }
    for (node, kib) in memory(world).iter().enumerate() {
        let warm = warm.get(node).copied().unwrap_or_default();
        world.journal.note(format_args!("node {}: {kib} KiB, under load {warm} KiB", node + 1));
    }
    for node in &world.cluster.nodes {
        if let Err(error) = node.drain(world).await {
            world.journal.violation("end", format_args!("{error:#}"));
        }
    }
}

async fn left_overs(world: &World, before: &[Usage], warm: &[u64]) -> Vec<String> {
    let mut left = match in_redis(world).await {
        Ok(left) => left,
        Err(error) => vec![format!("{error:#}")],
    };
    for (index, node) in world.cluster.nodes.iter().enumerate() {
        let number = index + 1;
        match node.metrics().await {
            Ok(metrics) => {
                // Each by itself: one too many and one too few are not nothing.
                let wrong = metrics
                    .iter()
                    .filter(|metric| GAUGES.contains(&metric.name.as_str()) && metric.value != 0.0);
                left.extend(
                    wrong.map(|it| format!("node {number}: {} is {}", it.series, it.value)),
                );
            }
            Err(error) => left.push(format!("node {number}: {error:#}")),
        }
        let Ok(now) = usage_of(node).await else { continue };
        let then = before.get(index).copied().unwrap_or_default();
        if now.descriptors > then.descriptors + MORE_DESCRIPTORS {
            let (now, then) = (now.descriptors, then.descriptors);
            left.push(format!("node {number}: {now} descriptors, {then} before"));
        }
        if let (Some(now), Some(then)) = (now.tasks, then.tasks)
            && now > then + MORE_TASKS
        {
            left.push(format!("node {number}: {now} tasks, {then} before"));
        }
    }
    for (index, now) in memory(world).into_iter().enumerate() {
        let warm = warm.get(index).copied().unwrap_or_default();
        if warm > 0 && now > warm + MORE_MEMORY {
            left.push(format!("node {}: {now} KiB, under load {warm} KiB", index + 1));
        }
    }
    left
}

/// Entries of living nodes. What a killed node has left is overwritten when its endpoints return, and
/// otherwise lapses.
async fn in_redis(world: &World) -> anyhow::Result<Vec<String>> {
    let leases = world.cluster.redis.leases().await?;
    let entries = world.cluster.redis.entries().await?;
    let alive = entries.iter().filter(|entry| leases.contains(&entry.node));
    Ok(alive.map(|entry| format!("{} of {} in Redis", entry.key, entry.node)).collect())
}
