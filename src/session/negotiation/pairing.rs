//! Offers, claims and bridges: how an endpoint meets its partner, on this node or on another one.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::stage::{PartnerReceiver, Stage};
use super::{Negotiation, Outcome, Step};
use crate::cluster::client::BridgeError;
use crate::cluster::{Bridged, Refusal};
use crate::ids::OfferId;
use crate::observability::Fact;
use crate::observability::metrics::Step as SetupStep;
use crate::observability::trace::Bridging;
use crate::protocol::{Close, PairingKey};
use crate::rendezvous::{Answer, Home, RemoteNode, Secret, Waiting};
use crate::session::ErrorChain;
use crate::session::claim::Claim;
use crate::session::own_offer::OwnOffer;
use crate::session::registry::{NotWaiting, Partner};
use crate::trace_parent::TraceParent;

/// Between two attempts to reach the node of a partner, with up to half of it taken off at random.
const RETRY: Duration = Duration::from_secs(1);
/// In a cluster, a key that has just been freed on one node may still be taken for another: an
/// endpoint that returns at once is not to be refused for that.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// An offer that the rendezvous has not answered yet.
struct Offered {
    offer: Box<OwnOffer>,
    partner: PartnerReceiver,
    epoch: watch::Receiver<u64>,
    since: Instant,
}

/// Where an offer of another node is.
struct Remote {
    id: OfferId,
    node: RemoteNode,
    secret: Secret,
    trace: Option<TraceParent>,
}

impl<'a> Negotiation<'a> {
    /// Offers the endpoint to a partner. It is in the registry first: the partner may arrive before
    /// the rendezvous has answered.
    pub(super) fn offer(&mut self, key: PairingKey) {
        let offer = OwnOffer::new(key, self.session.trace.place(), self.shared);
        let partner = self.shared.registry.register(offer.offer);
        self.query_rendezvous(offer, partner);
    }

    /// The pause after a failed attempt is over.
    pub(super) fn offer_again(&mut self) {
        if let Stage::Retrying { key, .. } = self.stage {
            self.offer(key);
        }
    }

    /// The rendezvous may have lost the entry of a waiting endpoint.
    pub(super) fn restore_entry(&mut self) {
        match self.take_stage() {
            Stage::Waiting { offer, partner, since, .. } => {
                self.session.waited += since.elapsed();
                self.query_rendezvous(offer, partner);
            }
            stage => self.stage = stage,
        }
    }

    /// Queries the rendezvous, maybe again. The epoch is read before: an entry that is lost before
    /// the answer is noticed, too.
    fn query_rendezvous(&mut self, offer: Box<OwnOffer>, partner: PartnerReceiver) {
        let epoch = self.shared.rendezvous.epoch();
        let answer = Arc::clone(&self.shared.rendezvous).offer(offer.offer);
        self.stage = Stage::Offering { offer, partner, answer, epoch, since: Instant::now() };
    }

    /// Applies the answer of the rendezvous.
    pub(super) fn apply_answer(mut self, answer: Answer) -> Step<'a> {
        self.input.has_actions = true;
        let offered = match self.take_stage() {
            Stage::Offering { offer, partner, epoch, since, .. } => {
                Offered { offer, partner, epoch, since }
            }
            stage => {
                self.stage = stage;
                return ControlFlow::Continue(self);
            }
        };
        self.shared.telemetry.metrics.step(SetupStep::Claim, offered.since.elapsed());
        if answer == Answer::Wait {
            self.wait(offered);
            return ControlFlow::Continue(self);
        }
        let asked = (offered.since, Instant::now());
        let Offered { offer, mut partner, .. } = offered;
        if !self.shared.registry.withdraw(offer.offer.id)
            && let Ok(partner) = partner.try_recv()
        {
            // The partner was quicker than the rendezvous; a claim of this endpoint is not needed.
            if let Answer::Claimed(waiting) = answer {
                self.shared.rendezvous.give_back(offer.offer.key, waiting.id, offer.offer.id);
            }
            return ControlFlow::Break(Outcome::Paired { first: self.session, partner, offer });
        }
        match answer {
            Answer::Claimed(Waiting { id, home: Home::Here }) => {
                self.session.claimed = Some(asked);
                return self.hand_over(&offer, id);
            }
            Answer::Claimed(Waiting { id, home: Home::There { node, secret, trace } }) => {
                let place = self.session.trace.place();
                self.shared.telemetry.tracer.asked(trace, place, asked);
                self.bridge(&offer, Remote { id, node, secret, trace });
            }
            Answer::Taken if !std::mem::replace(&mut self.has_looked_twice, true) => {
                self.stage = retry(offer.offer.key, SECOND_LOOK);
            }
            Answer::Taken | Answer::Wait => self.session.endpoint.close(Close::Taken),
        }
        ControlFlow::Continue(self)
    }

    fn wait(&mut self, offered: Offered) {
        let Offered { offer, partner, epoch, since } = offered;
        debug!(tunnel = %offer.offer.id, "waiting for the other endpoint");
        let now = Instant::now();
        self.shared.telemetry.tracer.asked(offer.setup.place(), None, (since, now));
        let lost = self.shared.rendezvous.lost(offer.offer, epoch);
        self.stage = Stage::Waiting { offer, partner, lost, since: now };
    }

    /// Hands this session over to that of the waiting endpoint, which is on this node.
    fn hand_over(mut self, offer: &OwnOffer, waiting: OfferId) -> Step<'a> {
        let partner = Partner::Here(self.session);
        match self.shared.registry.hand_over(waiting, partner) {
            Err((why, Partner::Here(session))) => {
                self.session = session;
                if why == NotWaiting::Gone {
                    // It left between its offer and this claim.
                    self.shared.rendezvous.release(offer.offer.key, waiting);
                    self.offer(offer.offer.key);
                } else {
                    // Its tunnel is established: the key is not this endpoint's to free.
                    self.session.endpoint.close(Close::Taken);
                }
                ControlFlow::Continue(self)
            }
            Ok(()) | Err((_, Partner::There(_))) => ControlFlow::Break(Outcome::Over),
        }
    }

    /// Calls the node of the waiting endpoint.
    fn bridge(&mut self, offer: &OwnOffer, remote: Remote) {
        let Remote { id, node, secret, trace } = remote;
        let rendezvous = Arc::clone(&self.shared.rendezvous);
        let claim = Claim::new(&offer.offer, id, &node.address, trace, rendezvous);
        let tracer = &self.shared.telemetry.tracer;
        let bridging = Bridging::new(tracer, trace, self.session.trace.place());
        let (shared, profile) = (Arc::clone(self.shared), self.session.profile());
        let its = bridging.clone();
        let call = async move {
            match (&shared.peers, profile) {
                (Some(peers), Some(profile)) => {
                    peers.bridge(&node, (id, secret), (&profile, None), &its).await
                }
                _ => Err(BridgeError::Address(node.address)),
            }
        };
        self.stage = Stage::Bridging { claim, call: call.boxed(), bridging };
    }

    /// Applies the result of a call to the partner's node.
    pub(super) fn apply_bridge(mut self, result: Result<Bridged, BridgeError>) -> Step<'a> {
        self.input.has_actions = true;
        let Stage::Bridging { mut claim, bridging, .. } = self.take_stage() else {
            return ControlFlow::Continue(self);
        };
        self.shared.telemetry.metrics.step(SetupStep::Bridge, bridging.began().elapsed());
        match result {
            Ok(bridged) => {
                claim.settle();
                let session = self.session;
                return ControlFlow::Break(Outcome::Bridged { session, bridged, claim });
            }
            Err(error) => self.apply_bridge_error(claim, &error),
        }
        ControlFlow::Continue(self)
    }

    fn apply_bridge_error(&mut self, mut claim: Claim, error: &BridgeError) {
        match error {
            BridgeError::Refused(Refusal::Gone) => {
                claim.settle();
                self.shared.rendezvous.release(claim.key, claim.owner);
            }
            BridgeError::Refused(Refusal::Taken) => {
                claim.settle();
                return self.session.endpoint.close(Close::Taken);
            }
            BridgeError::Refused(Refusal::Loop) => {
                claim.settle();
                return self.session.endpoint.close(Close::Loop);
            }
            // Only the owner's node knows whether the owner still waits.
            BridgeError::Refused(Refusal::Denied | Refusal::Version(_) | Refusal::WrongNode)
            | BridgeError::Address(_)
            | BridgeError::Unreachable(_)
            | BridgeError::Call(_)
            | BridgeError::Timeout
            | BridgeError::Answer => {
                let (address, offer) = (&*claim.address, claim.owner);
                let error = &ErrorChain(error);
                self.shared.telemetry.record(Fact::BridgeFailed { address, offer, error });
            }
        }
        self.stage = retry(claim.key, RETRY);
    }

    /// The partner has arrived at this endpoint's offer.
    pub(super) fn accept_partner(mut self, partner: Partner) -> Outcome {
        match self.take_stage() {
            Stage::Waiting { offer, since, .. } => {
                self.session.waited += since.elapsed();
                offer.setup.waited(since);
                self.shared.telemetry.metrics.waited(self.session.waited);
                Outcome::Paired { first: self.session, partner, offer }
            }
            Stage::Offering { offer, .. } => {
                Outcome::Paired { first: self.session, partner, offer }
            }
            Stage::Greeting
            | Stage::Authenticating { .. }
            | Stage::Registering { .. }
            | Stage::Bridging { .. }
            | Stage::Retrying { .. } => Outcome::Over,
        }
    }
}

fn retry(key: PairingKey, pause: Duration) -> Stage {
    let pause = pause.mul_f64(rand::random_range(0.5..1.0));
    Stage::Retrying { key, pause: Box::pin(sleep(pause)) }
}
