//! The life of a node: running, draining, over. Everything that runs belongs to one
//! [`Lifecycle`] and listens to it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Shared by all tasks of a node.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Whether endpoints are sent elsewhere.
    draining: Arc<watch::Sender<bool>>,
    /// The drain is the last one.
    ending: CancellationToken,
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Runs a task that [`Lifecycle::all_done`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Refuses new tunnels until [`Lifecycle::undrain`]; established ones continue.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Accepts new tunnels again. Returns false if the node is ending, which cannot be undone.
    pub fn undrain(&self) -> bool {
        self.draining.send_replace(self.ending.is_cancelled());
        !self.ending.is_cancelled()
    }

    /// Refuses new tunnels from now on; established ones continue.
    pub fn begin_end(&self) {
        self.ending.cancel();
        self.drain();
        self.tasks.close();
    }

    /// Standing tunnels must end, too.
    pub fn end(&self) {
        self.begin_end();
        self.over.cancel();
    }

    /// Done when the node drains.
    pub async fn draining(&self) {
        let mut draining = self.draining.subscribe();
        // Fails only without a sender, and that is here.
        let _drained = draining.wait_for(|draining| *draining).await;
    }

    /// Whether the node drains.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Done when the node takes nothing new any more, for good.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Whether the node takes nothing new any more, for good.
    pub fn is_ending(&self) -> bool {
        self.ending.is_cancelled()
    }

    /// Done when tunnels must end.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Done when the node ends and its last task has ended.
    pub async fn all_done(&self) {
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_can_be_taken_back_unless_the_node_ends() {
        let lifecycle = Lifecycle::default();
        lifecycle.drain();
        assert!(lifecycle.is_draining());
        assert!(lifecycle.undrain() && !lifecycle.is_draining());
        lifecycle.begin_end();
        assert!(!lifecycle.undrain() && lifecycle.is_draining());
    }
}
