//! Whether nodes answer operators: that they live at any time, that they are ready when nothing is
//! wrong, and that they are not while they cannot write to Redis.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::faults::Target;
use crate::world::World;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Failures in a row that are no accident.
const FAILURES: u32 = 3;
/// How long nothing must have been wrong until a node has to be ready, in seconds.
const SETTLED: u64 = 15;

/// Looks at all nodes until the clients leave.
pub(crate) fn watch(world: &Arc<World>) {
    for index in 0..world.cluster.nodes.len() {
        world.tasks.spawn(watch_node(Arc::clone(world), index));
    }
}

async fn watch_node(world: Arc<World>, index: usize) {
    let node = &world.cluster.nodes[index];
    let (mut silent, mut unready) = (0, 0);
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = world.leaving.cancelled() => return,
        }
        let touched = |target: Target| target == Target::Node(index);
        let untouched = world.is_quiet(LOOK, |fault| touched(fault.target));
        let is_up = node.is_reachable() && untouched;
        let lives = !is_up || node.get("/healthz").await.is_ok();
        let settled = world.is_quiet(world.options.within(SETTLED), |_| true) && is_up;
        let ready = !settled || node.get("/readyz").await.is_ok();
        // A fault may have come in between.
        let still = node.is_reachable() && world.is_quiet(LOOK, |fault| touched(fault.target));
        silent = if lives || !still { 0 } else { silent + 1 };
        unready = if ready || !still { 0 } else { unready + 1 };
        if silent == FAILURES {
            world.journal.violation("health", format_args!("node {} is silent", index + 1));
        }
        if unready == FAILURES {
            world.journal.violation("health", format_args!("node {} is not ready", index + 1));
        }
    }
}

/// No node may be ready now.
pub(crate) async fn expect_unready(world: &World) {
    for node in world.cluster.nodes.iter().filter(|node| node.is_reachable()) {
        if node.get("/readyz").await.is_ok() {
            let what = format!("node {} is ready, and cannot write to Redis", node.index + 1);
            world.journal.violation("health", what);
        }
    }
}
