//! The life of a node: running, draining, over. Everything that runs belongs to one
//! [`Lifecycle`] and listens to it.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Shared by all tasks of a node.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Runs a task that [`Lifecycle::all_done`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// No new tunnels from now on; those that stand go on.
    pub fn begin_drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Standing tunnels must end, too.
    pub fn end(&self) {
        self.begin_drain();
        self.over.cancel();
    }

    /// Done when the node drains.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Whether the node drains.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Done when tunnels must end.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Done when the node drains and its last task has ended.
    pub async fn all_done(&self) {
        self.tasks.wait().await;
    }
}
