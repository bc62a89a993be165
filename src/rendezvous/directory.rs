//! Which UUIDs are registered, and where: the [`Directory`] of the tunnel proxy
//! (`src/protocol/README.md`, section 4).
//!
//! Gateways and apps are in one key space: a UUID belongs to one endpoint of the cluster, whatever
//! it is. An entry is alive as long as its node is; its owner alone takes it out.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Home, Secret};
use crate::ids::OfferId;

/// The role that a UUID is registered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A gateway, to which apps attach.
    Gateway,
    /// An app, attached to a gateway.
    App,
}

impl Role {
    /// The role as one lower-case word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::App => "app",
        }
    }
}

/// An endpoint's request to be registered under a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The UUID to register.
    pub uuid: Uuid,
    /// The role to register it in.
    pub role: Role,
    /// New for each registration.
    pub id: OfferId,
    /// Other nodes must know it to reach the endpoint.
    pub secret: Secret,
}

impl Registration {
    /// A new registration of this UUID.
    pub fn new(uuid: Uuid, role: Role) -> Self {
        Self { uuid, role, id: OfferId::random(), secret: Secret(rand::random()) }
    }
}

/// The endpoint that has a registered UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The id of its registration.
    pub id: OfferId,
    /// The role that the UUID is registered in.
    pub role: Role,
    /// The node of the endpoint, with the secret of the registration.
    pub home: Home,
}

/// The result of a registration.
#[derive(Clone, Debug)]
pub enum Registered {
    /// The UUID belongs to it until it is unregistered.
    Yes {
        /// Cancelled when the UUID is no longer registered for it: it was unregistered, or its node
        /// was cut off or the entry was lost, and another endpoint was quicker.
        lost: CancellationToken,
    },
    /// The UUID is another one's.
    Conflict(Holder),
}

/// The directory did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the directory did not answer in time")]
pub struct Unavailable;

/// Knows the UUIDs of a node, or of a cluster.
pub trait Directory: Send + Sync {
    /// Registers a UUID, in one atomic step. Asked again, the same registration gets the same
    /// answer. Dropping the future takes nothing back; unregister does.
    fn register(
        self: Arc<Self>,
        registration: Registration,
    ) -> BoxFuture<'static, Result<Registered, Unavailable>>;

    /// The gateway with this UUID, if there is one.
    fn find_gateway(
        self: Arc<Self>,
        uuid: Uuid,
    ) -> BoxFuture<'static, Result<Option<Holder>, Unavailable>>;

    /// Frees the UUID if it belongs to this registration, on whichever node. Takes effect as soon
    /// as possible, without waiting.
    fn unregister(&self, uuid: Uuid, id: OfferId);

    /// Whether a registration is one of this node that is not gone.
    fn has(&self, id: OfferId) -> bool;
}
