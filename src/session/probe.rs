//! Queries registered endpoints for a sign of life: one with a dead link must not keep its UUID from
//! the same endpoint when it returns.
//!
//! An endpoint loses its UUID only by a fact: its connection has ended, or no registration of this
//! id is on this node. Whatever else keeps an answer away (a time-out, a lost channel, a task that
//! is slow) is [`Life::Unknown`], and that takes nothing from the holder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cluster::Life;
use crate::ids::OfferId;
use crate::lock::lock;
use crate::observability::GatewayRecord;
use crate::protocol::{Chunk, Close};
use crate::rendezvous::Secret;
use crate::transport::{End, Leg};

/// How long an endpoint may take for a sign of life.
const WITHIN: Duration = Duration::from_secs(3);
/// How much longer it may take until that shows.
const SLACK: Duration = Duration::from_secs(1);
/// Gateways ping every 30 s. One that has sent nothing for this long is ended when a rival
/// registers, if its transport cannot be pinged from end to end: a load balancer may answer for a
/// gateway that is gone.
const SILENCE: Duration = Duration::from_secs(35);

/// The registered endpoints of this node.
#[derive(Default)]
pub(super) struct Probes {
    bells: Mutex<BTreeMap<OfferId, (Secret, Arc<Bell>)>>,
}

/// An endpoint that registers.
pub(super) struct Candidate {
    pub(super) id: OfferId,
    /// Other nodes must know it to query the endpoint.
    pub(super) secret: Secret,
    /// Set for a gateway, which has to send something from time to time.
    pub(super) gateway: Option<Arc<GatewayRecord>>,
}

/// Keeps an endpoint among those that can be queried.
pub(super) struct Listed {
    id: OfferId,
    bell: Arc<Bell>,
    probes: Arc<Probes>,
}

/// Rung for an endpoint; its task answers.
#[derive(Default)]
struct Bell {
    state: Mutex<State>,
    /// Cancelled when the endpoint has been silent for too long to keep its UUID from a rival.
    silent: CancellationToken,
}

#[derive(Default)]
struct State {
    phase: Phase,
    task: Option<Waker>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Quiet,
    /// Rivals wait for this answer. However many there are, they share it.
    Rung(watch::Sender<Option<Life>>),
    /// The connection of the endpoint is over.
    Ended,
}

impl Probes {
    /// Has the leg of a candidate queried when a rival registers.
    pub(super) fn listen(
        self: &Arc<Self>,
        candidate: Candidate,
        leg: Box<dyn Leg>,
    ) -> (Box<dyn Leg>, Listed) {
        let Candidate { id, secret, gateway } = candidate;
        let bell = Arc::<Bell>::default();
        self.lock().insert(id, (secret, Arc::clone(&bell)));
        let leg = ProbedLeg { leg, bell: Arc::clone(&bell), gateway, probing: false };
        (Box::new(leg), Listed { id, bell, probes: Arc::clone(self) })
    }

    /// Queries the endpoint of this registration. Another node must show its secret.
    pub(super) async fn ask(&self, id: OfferId, secret: Option<Secret>) -> Life {
        let mut answer = {
            let bells = self.lock();
            match bells.get(&id) {
                Some((its, bell)) if secret.is_none_or(|secret| secret == *its) => bell.ring(),
                Some(_) => return Life::Unknown,
                // It is listed before it is registered, and until its UUID has been given back.
                None => return Life::Ended,
            }
        };
        match timeout(WITHIN + SLACK, answer.wait_for(Option::is_some)).await {
            Ok(Ok(life)) => life.unwrap_or(Life::Unknown),
            Ok(Err(_)) | Err(_) => Life::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OfferId, (Secret, Arc<Bell>)>> {
        lock(&self.bells)
    }
}

impl Listed {
    /// Done when the endpoint has been silent for too long to keep its UUID from a rival.
    pub(super) async fn silent(&self) {
        self.bell.silent.cancelled().await;
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.probes.lock().remove(&self.id);
        self.bell.end();
    }
}

impl Bell {
    /// Has the endpoint queried; what it answers.
    fn ring(&self) -> watch::Receiver<Option<Life>> {
        let mut state = self.lock();
        match &state.phase {
            Phase::Ended => watch::channel(Some(Life::Ended)).1,
            Phase::Rung(answer) => answer.subscribe(),
            Phase::Quiet => {
                let (sender, answer) = watch::channel(None);
                state.phase = Phase::Rung(sender);
                if let Some(task) = state.task.take() {
                    drop(state);
                    task.wake();
                }
                answer
            }
        }
    }

    /// Whether rivals wait for an answer. From now on the task is woken when one does.
    fn is_rung(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            None => state.task = Some(cx.waker().clone()),
        }
        matches!(state.phase, Phase::Rung(_))
    }

    /// Answers the rivals that wait: it lives.
    fn lives(&self) {
        let mut state = self.lock();
        if let Phase::Rung(answer) = &state.phase {
            answer.send_replace(Some(Life::Alive));
            state.phase = Phase::Quiet;
        }
    }

    /// Answers all rivals from now on: its connection is over.
    fn end(&self) {
        let mut state = self.lock();
        if let Phase::Rung(answer) = std::mem::replace(&mut state.phase, Phase::Ended) {
            answer.send_replace(Some(Life::Ended));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // As above.
        lock(&self.state)
    }
}

/// The leg of a registered endpoint. All but the probing is that leg's.
struct ProbedLeg {
    leg: Box<dyn Leg>,
    bell: Arc<Bell>,
    gateway: Option<Arc<GatewayRecord>>,
    /// A sign of life was requested, for which rivals wait.
    probing: bool,
}

impl ProbedLeg {
    /// Probes the endpoint when the bell has rung.
    fn listen(&mut self, cx: &mut Context<'_>) {
        if !self.bell.is_rung(cx) || self.probing || self.bell.silent.is_cancelled() {
            return;
        }
        let is_silent = self.gateway.as_ref().is_some_and(|it| it.silent_for() >= SILENCE);
        if is_silent && !self.leg.has_pings() {
            // Its session ends it, and that answers the rivals.
            return self.bell.silent.cancel();
        }
        self.probing = true;
        self.leg.probe(cx, WITHIN);
    }

    /// Answers the rivals that wait if the endpoint has given a sign of life.
    fn answer(&mut self) {
        if self.probing && !self.leg.is_probed() {
            self.probing = false;
            self.bell.lives();
        }
    }
}

impl Leg for ProbedLeg {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        let received = self.leg.poll_recv(cx);
        match &received {
            // The endpoint still takes data.
            Poll::Ready(Ok(_) | Err(End::Finished)) | Poll::Pending => self.answer(),
            Poll::Ready(Err(
                End::Left | End::Closed(_) | End::Failed | End::Lost(_) | End::Fault(_),
            )) => self.bell.end(),
        }
        received
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.leg.poll_ready(cx)
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        self.leg.send(cx, chunk)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.leg.poll_flush(cx)
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.listen(cx);
        let health = self.leg.poll_health(cx);
        match health {
            Poll::Ready(_) => self.bell.end(),
            Poll::Pending => self.answer(),
        }
        health
    }

    fn set_message_limit(&mut self, bytes: usize) {
        self.leg.set_message_limit(bytes);
    }

    fn send_end(&mut self, cx: &mut Context<'_>) -> bool {
        self.leg.send_end(cx)
    }

    fn probe(&mut self, cx: &mut Context<'_>, within: Duration) {
        self.leg.probe(cx, within);
    }

    fn is_probed(&self) -> bool {
        self.leg.is_probed()
    }

    fn has_pings(&self) -> bool {
        self.leg.has_pings()
    }

    fn has_finished(&self) -> bool {
        self.leg.has_finished()
    }

    fn send_close(&mut self, cx: &mut Context<'_>, close: Close) {
        self.leg.send_close(cx, close);
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.leg.poll_discard(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.leg.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;

    use super::*;

    /// A leg that gives a sign of life when it is allowed to.
    struct Quiet {
        is_probed: bool,
        answers: bool,
    }

    impl Leg for Quiet {
        fn poll_recv(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
            self.is_probed &= !self.answers;
            Poll::Pending
        }

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), End>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _cx: &mut Context<'_>, _chunk: Chunk) -> Result<(), End> {
            Ok(())
        }

        fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), End>> {
            Poll::Ready(Ok(()))
        }

        fn poll_health(&mut self, _cx: &mut Context<'_>) -> Poll<End> {
            Poll::Pending
        }

        fn set_message_limit(&mut self, _bytes: usize) {}

        fn probe(&mut self, _cx: &mut Context<'_>, _within: Duration) {
            self.is_probed = true;
        }

        fn is_probed(&self) -> bool {
            self.is_probed
        }

        fn send_close(&mut self, _cx: &mut Context<'_>, _close: Close) {}

        fn poll_discard(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }

    fn listed(probes: &Arc<Probes>, answers: bool) -> (OfferId, Box<dyn Leg>, Listed) {
        let id = OfferId::random();
        let candidate = Candidate { id, secret: Secret([7; 16]), gateway: None };
        let (leg, listed) = probes.listen(candidate, Box::new(Quiet { is_probed: false, answers }));
        (id, leg, listed)
    }

    fn poll(leg: &mut dyn Leg) {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(leg.poll_health(&mut cx).is_pending());
        assert!(leg.poll_recv(&mut cx).is_pending());
    }

    #[tokio::test]
    async fn any_number_of_rivals_hear_that_the_holder_lives() {
        let probes = Arc::default();
        let (id, mut leg, _listed) = listed(&probes, true);
        let mut asked = Vec::new();
        for _ in 0..200 {
            let probes = Arc::clone(&probes);
            asked.push(tokio::spawn(async move { probes.ask(id, None).await }));
            tokio::task::yield_now().await;
            if asked.len() % 3 == 0 {
                poll(&mut *leg);
            }
        }
        poll(&mut *leg);
        for asked in asked {
            assert_eq!(asked.await.expect("no panic"), Life::Alive);
        }
    }

    #[tokio::test]
    async fn silence_of_the_holders_task_is_no_fact() {
        let probes = Arc::default();
        let (id, mut leg, listed) = listed(&probes, false);
        assert_eq!(probes.ask(id, Some(Secret([0; 16]))).await, Life::Unknown);
        let (before, after) = tokio::join!(probes.ask(id, None), async {
            poll(&mut *leg);
            // A task that has lost its leg and not its place is a fault of ours, and no fact either.
            drop(leg);
            probes.ask(id, None).await
        });
        assert_eq!([before, after], [Life::Unknown; 2]);
        drop(listed);
        assert_eq!(probes.ask(id, None).await, Life::Ended);
    }

    #[tokio::test]
    async fn a_rival_that_waits_hears_when_the_place_is_given_back() {
        let probes = Arc::default();
        let (id, mut leg, listed) = listed(&probes, false);
        let asking = tokio::spawn({
            let probes = Arc::clone(&probes);
            async move { probes.ask(id, Some(Secret([7; 16]))).await }
        });
        tokio::task::yield_now().await;
        poll(&mut *leg);
        drop(listed);
        assert_eq!(asking.await.expect("no panic"), Life::Ended);
    }
}
