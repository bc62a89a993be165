//! How a connection is registered with the tunnel proxy: its UUID is claimed in the directory, and
//! an app is attached to its gateway, on whichever node that is.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::debug;

use super::app::{Attachment, Far, app_record};
use super::gateway::{Enrolled as Gateway, Hub, NotAttached, Room};
use super::own_registration::OwnRegistration;
use super::probe::Candidate;
use super::{ErrorChain, Session, Shared};
use crate::cluster::client::BridgeError;
use crate::cluster::{AppCall, Life, Refusal};
use crate::ids::OfferId;
use crate::observability::trace::{Bridging, Setup};
use crate::observability::{Fact, GatewayRecord};
use crate::protocol::{App, Generation, Identity, Profile, Role, TunnelProxyError, braced};
use crate::rendezvous::{self, Holder, Home, Registered, Registration};
use crate::trace_parent::TraceParent;

/// Attempts to register a UUID, while each holder turns out to be gone.
const TRIES: usize = 3;

/// A registered connection, before it is answered so.
pub(super) enum Enrolled {
    Gateway(Gateway),
    App(Box<Attachment>),
}

/// What will come of a registration.
pub(super) type Enrolling = BoxFuture<'static, Result<Enrolled, TunnelProxyError>>;

/// Begins to register a connection. From now on its leg is probed when a rival registers.
pub(super) fn enrol(
    session: Box<Session>,
    role: Role,
    shared: &Arc<Shared>,
) -> (Box<Session>, Enrolling) {
    match role {
        Role::Gateway(gateway) => {
            let registration = Registration::new(gateway.uuid, rendezvous::Role::Gateway);
            let profile = profile_of(gateway.uuid, &gateway.name);
            let of = (session.origin.id, session.client_addr);
            let record = GatewayRecord::new(registration.id, of, (gateway.uuid, gateway.name));
            let record = Arc::new(record);
            let (session, own) = listen(session, registration, Some(Arc::clone(&record)), shared);
            (session, enrol_gateway(own, record, profile).boxed())
        }
        Role::App(app) => {
            let registration = Registration::new(app.uuid, rendezvous::Role::App);
            let (session, own) = listen(session, registration, None, shared);
            let (peer_address, trace) = (session.client_addr.to_string(), session.trace.place());
            (session, enrol_app(own, app, peer_address, trace).boxed())
        }
    }
}

/// Has the endpoint listen to its rivals, before it is registered.
fn listen(
    mut session: Box<Session>,
    registration: Registration,
    gateway: Option<Arc<GatewayRecord>>,
    shared: &Arc<Shared>,
) -> (Box<Session>, OwnRegistration) {
    let Registration { id, secret, .. } = registration;
    let (leg, listed) = shared.probes.listen(Candidate { id, secret, gateway }, session.leg);
    session.leg = leg;
    (session, OwnRegistration::new(registration, listed, shared))
}

fn profile_of(uuid: uuid::Uuid, name: &str) -> Profile {
    let identity = Identity { uuid: braced(uuid), name: name.into() };
    Profile { generation: Generation::Three, identity }
}

async fn enrol_gateway(
    own: OwnRegistration,
    record: Arc<GatewayRecord>,
    profile: Profile,
) -> Result<Enrolled, TunnelProxyError> {
    let secret = own.registration.secret;
    let shared = Arc::clone(&own.shared);
    let room =
        Room { backlog: shared.tunnel_proxy.backlog, overflow: Arc::clone(&shared.overflow) };
    let hub = Hub::new(record, profile, secret, room);
    // Apps may come as soon as the directory knows it.
    let open = shared.hubs.open(&hub, &shared);
    let own = claim(own).await?;
    Ok(Enrolled::Gateway(Gateway { hub, own, open }))
}

async fn enrol_app(
    own: OwnRegistration,
    app: App,
    peer_address: String,
    connection: Option<TraceParent>,
) -> Result<Enrolled, TunnelProxyError> {
    let shared = Arc::clone(&own.shared);
    let id = own.id();
    let setup = Setup::new(&shared.telemetry.tracer, connection);
    let attached = attach(own, &app, &peer_address, (&setup, connection)).await;
    let outcome = match &attached {
        Ok((_, far)) => Ok(far.kind()),
        Err(error) => Err(error.class()),
    };
    setup.ends(id, None, outcome);
    let (own, far) = attached?;
    let profile = profile_of(app.uuid, &app.name);
    Ok(Enrolled::App(Box::new(Attachment { own, far, profile, setup: setup.place() })))
}

/// Claims the UUID of an app, and attaches it.
async fn attach(
    own: OwnRegistration,
    app: &App,
    peer_address: &str,
    (setup, connection): (&Setup, Option<TraceParent>),
) -> Result<(OwnRegistration, Far), TunnelProxyError> {
    let shared = Arc::clone(&own.shared);
    let mut gateway = find(app, &shared).await?;
    let own = claim(own).await?;
    for _ in 0..TRIES {
        let gone = gateway.id;
        let attached = match gateway.home {
            Home::Here => attach_here(&own, gone, app, peer_address, &shared),
            Home::There { node, secret, .. } => {
                let tracer = &shared.telemetry.tracer;
                let bridging = Bridging::new(tracer, setup.place(), connection);
                let profile = profile_of(app.uuid, &app.name);
                let call = AppCall { id: own.id(), peer_address: peer_address.into() };
                let Some(peers) = &shared.peers else {
                    return Err(TunnelProxyError::InternalServerError);
                };
                let offer = (gone, secret);
                let called = peers.bridge(&node, offer, (&profile, Some(&call)), &bridging).await;
                called
                    .map(Far::There)
                    .map_err(|error| not_bridged(&node.address, gone, &error, &shared))
            }
        };
        match attached {
            Ok(far) => return Ok((own, far)),
            Err(Some(error)) => return Err(error),
            Err(None) => {
                shared.directory.unregister(app.gateway, gone);
                gateway = find(app, &shared).await?;
            }
        }
    }
    Err(TunnelProxyError::ServerNotFound)
}

async fn find(app: &App, shared: &Arc<Shared>) -> Result<Holder, TunnelProxyError> {
    match Arc::clone(&shared.directory).find_gateway(app.gateway).await {
        Ok(Some(holder)) => Ok(holder),
        Ok(None) => Err(TunnelProxyError::ServerNotFound),
        Err(_unavailable) => Err(TunnelProxyError::InternalServerError),
    }
}

/// Attaches an app to a gateway of this node; `Err(None)` if the gateway is gone.
fn attach_here(
    own: &OwnRegistration,
    gateway: OfferId,
    app: &App,
    peer_address: &str,
    shared: &Shared,
) -> Result<Far, Option<TunnelProxyError>> {
    let Some(hub) = shared.hubs.get(gateway) else { return Err(None) };
    let record = app_record(own.id(), app, peer_address, None);
    match hub.attach(app.clone(), record) {
        Ok(port) => Ok(Far::Here { hub, port: Box::new(port) }),
        Err(NotAttached::Gone) => Err(None),
        Err(NotAttached::Full) => Err(Some(TunnelProxyError::InternalServerError)),
    }
}

/// Returns the error for an app if its gateway could not be reached; `None` if that one is gone.
fn not_bridged(
    address: &str,
    gateway: OfferId,
    error: &BridgeError,
    shared: &Shared,
) -> Option<TunnelProxyError> {
    match error {
        BridgeError::Refused(Refusal::Gone) => None,
        BridgeError::Refused(
            Refusal::Taken
            | Refusal::Denied
            | Refusal::Version(_)
            | Refusal::Loop
            | Refusal::WrongNode,
        )
        | BridgeError::Address(_)
        | BridgeError::Unreachable(_)
        | BridgeError::Call(_)
        | BridgeError::Timeout
        | BridgeError::Answer => {
            let error = &ErrorChain(error);
            shared.telemetry.record(Fact::BridgeFailed { address, offer: gateway, error });
            Some(TunnelProxyError::InternalServerError)
        }
    }
}

/// Claims a UUID in the directory. Another endpoint that has it keeps it, unless its own node has
/// answered that it is gone.
async fn claim(mut own: OwnRegistration) -> Result<OwnRegistration, TunnelProxyError> {
    let (registration, shared) = (own.registration, Arc::clone(&own.shared));
    for _ in 0..TRIES {
        let holder = match Arc::clone(&shared.directory).register(registration).await {
            Ok(Registered::Yes { lost }) => {
                own.is_registered(lost);
                return Ok(own);
            }
            Ok(Registered::Conflict(holder)) => holder,
            Err(_unavailable) => return Err(TunnelProxyError::InternalServerError),
        };
        let id = holder.id;
        let life = ask(holder, &shared).await?;
        let (uuid, label) = (registration.uuid, life.label());
        // Only if its own node has answered so: whatever else happened, the holder keeps it.
        let is_free = match life {
            Life::Alive | Life::Unknown => false,
            Life::Ended => true,
        };
        shared.telemetry.record(Fact::HolderProbed { uuid, holder: id, life: label, is_free });
        if !is_free {
            return Err(TunnelProxyError::AlreadyRegistered);
        }
        shared.directory.unregister(uuid, id);
    }
    Err(TunnelProxyError::AlreadyRegistered)
}

/// Whether the holder of a UUID lives. An error: its node cannot be queried.
async fn ask(holder: Holder, shared: &Shared) -> Result<Life, TunnelProxyError> {
    match (holder.home, &shared.peers) {
        (Home::Here, _) => Ok(shared.probes.ask(holder.id, None).await),
        (Home::There { node, secret, .. }, Some(peers)) => {
            let life = peers.probe(&node, (holder.id, secret)).await;
            life.map_err(|error| {
                debug!(error = %ErrorChain(&error), "the holder of a UUID cannot be queried");
                TunnelProxyError::InternalServerError
            })
        }
        (Home::There { .. }, None) => Err(TunnelProxyError::InternalServerError),
    }
}
