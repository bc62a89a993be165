//! What other nodes ask of the sessions of this one: to attach a bridge to a waiting endpoint or a
//! gateway, to probe the holder of a UUID, and to report the state of an offer.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::registry::{NotWaiting, Partner};
use super::{Shared, app};
use crate::cluster::{self, Attach, Incoming, Life};
use crate::ids::OfferId;
use crate::observability::{Bridge, Fact};
use crate::rendezvous::{OfferState, Secret};

impl Attach for Shared {
    fn attach(self: Arc<Self>, offer: OfferId, secret: Secret, mut bridge: Incoming) {
        let app = bridge.app.take();
        let bridge = Box::new(bridge);
        if let Some(app) = app {
            let serving = app::serve_bridged((offer, secret), app, bridge, Arc::clone(&self));
            return self.lifecycle.spawn(serving);
        }
        let attaching = bridge.attaching;
        let handed_over = match self.registry.waiting(offer, secret) {
            Ok(offer) if self.rendezvous.stands(offer) => {
                self.registry.hand_over(offer.id, Partner::There(bridge))
            }
            Ok(_) => Err((NotWaiting::Paired, Partner::There(bridge))),
            Err(why) => Err((why, Partner::There(bridge))),
        };
        if let Err((why, Partner::There(bridge))) = handed_over {
            let refusal = match why {
                NotWaiting::Gone => cluster::Refusal::Gone,
                NotWaiting::Paired => cluster::Refusal::Taken,
                NotWaiting::WrongSecret => cluster::Refusal::Denied,
            };
            let of = Bridge::Offer(offer);
            self.telemetry.record(Fact::BridgeRefused { of, refusal: &refusal });
            attaching.ends(&self.telemetry.tracer, Some(refusal.label()));
            bridge.answer.refuse(refusal);
        }
    }

    fn probe(self: Arc<Self>, registration: OfferId, secret: Secret) -> BoxFuture<'static, Life> {
        async move { self.probes.ask(registration, Some(secret)).await }.boxed()
    }

    fn query(&self, id: OfferId) -> OfferState {
        match self.registry.state(id) {
            Some(state) => state,
            // Its partner came before the answer of the rendezvous, or it is on its way elsewhere.
            None if self.rendezvous.has(id) => OfferState::Paired,
            None if self.directory.has(id) => OfferState::Waiting,
            None => OfferState::Gone,
        }
    }
}
