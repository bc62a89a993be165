//! The tunnels of apps: between an app's leg and its gateway, whichever node that is on.

use std::sync::Arc;
use std::time::Instant;

use super::gateway::{GatewayPort, Hub, NotAttached};
use super::origin::Origin;
use super::own_registration::OwnRegistration;
use super::tunnel::{Held, Legs, Tunnel};
use super::{Session, Shared};
use crate::cluster::{self, AppCall, Bridged, Incoming};
use crate::ids::OfferId;
use crate::observability::{AppRecord, Bridge, Endpoint, Fact, Kind, TunnelFacts};
use crate::protocol::{App, Profile, parse_uuid};
use crate::rendezvous::Secret;
use crate::trace_parent::TraceParent;

/// An app that is attached to its gateway, and still to be served.
pub(super) struct Attachment {
    pub(super) own: OwnRegistration,
    pub(super) far: Far,
    pub(super) profile: Profile,
    pub(super) setup: Option<TraceParent>,
}

/// Where an app's gateway is.
pub(super) enum Far {
    /// On this node.
    Here { hub: Arc<Hub>, port: Box<GatewayPort> },
    /// At the other end of a bridge.
    There(Bridged),
}

impl Far {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Here { .. } => Kind::Local,
            Self::There(_) => Kind::Bridged,
        }
    }
}

/// Runs the tunnel of an app that was answered that it is attached.
pub(super) async fn serve(mut session: Box<Session>, attachment: Attachment, shared: &Arc<Shared>) {
    let Attachment { own, far, profile, setup } = attachment;
    let (id, kind) = (own.id(), far.kind());
    session.leg.set_message_limit(shared.message_size);
    session.record_established(setup, Instant::now(), shared);
    session.record_setup_time(shared);
    let second = session.as_endpoint(profile);
    let (first, mut leg) = match far {
        Far::Here { hub, port } => (gateway_of(&hub), port as _),
        Far::There(Bridged { leg, profile, node }) => (Endpoint::There { node, profile }, leg),
    };
    let facts = TunnelFacts { id, kind, first, second };
    let tunnel = Tunnel::begin(facts, setup, &session.origin, shared);
    tunnel.run(Legs { first: &mut *leg, second: &mut *session.leg }, Held::Uuid(own)).await;
}

/// Attaches an app of another node to a gateway of this one, and runs its tunnel here.
pub(super) async fn serve_bridged(
    (gateway, secret): (OfferId, Secret),
    call: AppCall,
    bridge: Box<Incoming>,
    shared: Arc<Shared>,
) {
    let Incoming { profile, node, attaching, answer, .. } = *bridge;
    let tracer = &shared.telemetry.tracer;
    let attached = match app_of(&profile) {
        Some(app) => attach((gateway, secret), &app, &call, &node, &shared),
        None => Err(cluster::Refusal::Denied),
    };
    attaching.ends(tracer, attached.as_ref().err().map(|refusal| refusal.label()));
    let (hub, mut port) = match attached {
        Ok(attached) => attached,
        Err(refusal) => {
            let of = Bridge::App { gateway, app: call.id };
            shared.telemetry.record(Fact::BridgeRefused { of, refusal: &refusal });
            return answer.refuse(refusal);
        }
    };
    let mut leg = answer.accept(&hub.profile);
    let origin = origin_of(&hub);
    let (first, second) = (gateway_of(&hub), Endpoint::There { node, profile });
    let facts = TunnelFacts { id: call.id, kind: Kind::Bridged, first, second };
    let tunnel = Tunnel::begin(facts, attaching.call, &origin, &shared);
    tunnel.run(Legs { first: &mut port, second: &mut *leg }, Held::Nothing).await;
}

fn attach(
    (gateway, secret): (OfferId, Secret),
    app: &App,
    call: &AppCall,
    node: &str,
    shared: &Shared,
) -> Result<(Arc<Hub>, GatewayPort), cluster::Refusal> {
    let hub = shared.hubs.get(gateway).ok_or(cluster::Refusal::Gone)?;
    if hub.secret != secret {
        return Err(cluster::Refusal::Denied);
    }
    let record = app_record(call.id, app, &call.peer_address, Some(node.into()));
    match hub.attach(app.clone(), record) {
        Ok(port) => Ok((hub, port)),
        Err(NotAttached::Gone) => Err(cluster::Refusal::Gone),
        Err(NotAttached::Full) => Err(cluster::Refusal::Taken),
    }
}

/// An app as its own node describes it.
fn app_of(profile: &Profile) -> Option<App> {
    let uuid = parse_uuid(&profile.identity.uuid)?;
    // Which gateway it wants is said by whom it is attached to.
    Some(App { uuid, name: profile.identity.name.clone(), gateway: uuid::Uuid::nil() })
}

fn gateway_of(hub: &Hub) -> Endpoint {
    let (connection, client_addr) = (hub.record.connection, hub.record.client_addr);
    Endpoint::Here { connection, client_addr, profile: hub.profile.clone() }
}

/// Returns the origin of the log lines of a tunnel with an app on another node.
fn origin_of(hub: &Hub) -> Origin {
    let (id, client_addr) = (hub.record.connection, Some(hub.record.client_addr));
    Origin { id, client_addr, proxy_addr: None, trace: None }
}

/// The record of an app, for the address that it will get.
pub(super) fn app_record(
    id: OfferId,
    app: &App,
    peer_address: &str,
    node: Option<String>,
) -> impl FnOnce(u16) -> AppRecord {
    let (uuid, name, peer_address) = (app.uuid, app.name.clone(), peer_address.to_owned());
    move |socket_address| AppRecord::new(id, (uuid, name), (peer_address, node), socket_address)
}
