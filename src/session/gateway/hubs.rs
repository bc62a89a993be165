//! The gateways of a node by the ids of their registrations, for the apps that attach to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::hub::Hub;
use crate::ids::OfferId;
use crate::lock::lock;
use crate::session::Shared;

/// The gateways of this node.
#[derive(Default)]
pub(in crate::session) struct Hubs {
    by_id: Mutex<BTreeMap<OfferId, Arc<Hub>>>,
}

impl Hubs {
    pub(in crate::session) fn get(&self, id: OfferId) -> Option<Arc<Hub>> {
        self.lock().get(&id).cloned()
    }

    /// Lists a gateway as long as the returned value lives.
    pub(in crate::session) fn open(&self, hub: &Arc<Hub>, shared: &Arc<Shared>) -> Open {
        let id = hub.record.id;
        self.lock().insert(id, Arc::clone(hub));
        Open { id, shared: Arc::clone(shared) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OfferId, Arc<Hub>>> {
        lock(&self.by_id)
    }
}

/// Keeps a gateway among those of this node.
pub(in crate::session) struct Open {
    id: OfferId,
    shared: Arc<Shared>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.hubs.lock().remove(&self.id);
    }
}
