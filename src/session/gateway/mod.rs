//! The session of a registered gateway: the one task that owns its leg, takes its frames apart and
//! puts those together that are for it.
//!
//! What is at the other end of an app's [lane](lane) is an ordinary tunnel between the app's leg
//! and a [`GatewayPort`], run by the app's task. What a slow app does not take waits, in a bounded
//! [overflow](overflow) that the apps of the node share; the gateway's other apps go on.

mod driver;
mod hub;
mod hubs;
mod lane;
mod overflow;
mod port;

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::{sleep, timeout};

use self::driver::{Driver, GatewayEnd};
pub(super) use self::hub::{Hub, NotAttached, Room};
pub(super) use self::hubs::Hubs;
use self::hubs::Open;
use self::lane::Goodbye;
pub(super) use self::overflow::Overflow;
pub(super) use self::port::GatewayPort;
use super::own_registration::OwnRegistration;
use super::{Session, Shared};
use crate::observability::Fact;
use crate::observability::metrics::Stage;
use crate::observability::trace::Ended;
use crate::protocol::{Close, GatewayControl, Role};
use crate::relay::close_leg;
use crate::transport::End;

/// A gateway that is registered, and still to be served.
pub(super) struct Enrolled {
    pub(super) hub: Arc<Hub>,
    pub(super) own: OwnRegistration,
    pub(super) open: Open,
}

/// Serves a gateway until its connection is over.
pub(super) async fn serve(mut session: Box<Session>, enrolled: Enrolled, shared: &Arc<Shared>) {
    let Enrolled { hub, own, open } = enrolled;
    let listed = shared.telemetry.gateways.begin(Arc::clone(&hub.record));
    shared.telemetry.record(Fact::GatewayRegistered(&hub.record));
    session.gauge.enter(Stage::Gateway);
    session.trace.ends(Ended::Registered);
    session.leg.set_message_limit(shared.message_size);
    let over = drive(&mut session, &hub, &own, shared).await;
    let (why, close) = match over {
        GatewayEnd::Ended(End::Left | End::Finished) => (Goodbye::Left, None),
        GatewayEnd::Ended(End::Failed | End::Lost(_)) => (Goodbye::Lost, None),
        GatewayEnd::Closed(close @ (Close::Draining | Close::Dismissed)) => {
            (Goodbye::Closed(close), Some(close))
        }
        GatewayEnd::Ended(End::Fault(close) | End::Closed(close)) | GatewayEnd::Closed(close) => {
            (Goodbye::Lost, Some(close))
        }
    };
    // Its apps are detached and its UUID is free before the closes are sent.
    hub.close(why);
    drop((listed, own, open));
    let reason = match (why, close) {
        (_, Some(close)) => close.class(),
        (Goodbye::Left, None) => "left",
        (Goodbye::Lost | Goodbye::Closed(_), None) => "lost",
    };
    shared.telemetry.record(Fact::GatewayEnded { record: &hub.record, reason });
    session.gauge.enter(Stage::Greeting);
    close_leg(&mut *session.leg, close, shared.timeouts.close).await;
}

/// Moves data until the gateway leaves, or must.
async fn drive(
    session: &mut Session,
    hub: &Arc<Hub>,
    own: &OwnRegistration,
    shared: &Arc<Shared>,
) -> GatewayEnd {
    let silence = shared.tunnel_proxy.inactivity;
    let server = Arc::clone(&shared.server);
    let rules = session.endpoint.rules();
    let Some(Role::Gateway(gateway)) = session.endpoint.role() else {
        return GatewayEnd::Closed(Close::Fault);
    };
    let control = GatewayControl::new(server, rules, gateway, silence, Instant::now());
    let mut driver = Driver::new(&mut *session.leg, Arc::clone(hub), control, &shared.telemetry);
    let (unwanted, patience) = (hub.record.is_unwanted(), shared.timeouts.close);
    let mut stop = pin!(async {
        tokio::select! {
            () = own.lost() => Close::AlreadyRegistered,
            () = own.silent() => Close::SilentGateway,
            () = unwanted => Close::Dismissed,
            // Its apps come first: their tunnels end by themselves.
            () = async { shared.lifecycle.over().await; sleep(patience).await } => Close::Draining,
        }
    });
    let mut draining = pin!(shared.lifecycle.draining());
    let close = loop {
        tokio::select! {
            over = driver.run() => break Err(over),
            close = &mut stop => break Ok(close),
            () = &mut draining, if !driver.closes_when_empty() => driver.close_when_empty(),
        }
    };
    let over = match close {
        Err(over) => over,
        Ok(close) => {
            driver.close(close);
            timeout(patience, driver.run()).await.unwrap_or(GatewayEnd::Closed(close))
        }
    };
    driver.end(match &over {
        GatewayEnd::Ended(End::Left | End::Finished) => Goodbye::Left,
        GatewayEnd::Closed(close @ (Close::Draining | Close::Dismissed)) => Goodbye::Closed(*close),
        GatewayEnd::Ended(_) | GatewayEnd::Closed(_) => Goodbye::Lost,
    });
    over
}
