//! Asks registered endpoints for a sign of life: one whose link died must not keep its UUID from
//! the same one coming back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::ids::OfferId;
use crate::protocol::{Chunk, Close};
use crate::rendezvous::Secret;
use crate::transport::{End, Leg};

/// How long an endpoint may take for a sign of life.
const WITHIN: Duration = Duration::from_secs(3);
/// How much longer it may take until that shows.
const SLACK: Duration = Duration::from_secs(1);
/// Those who wait for one sign of life; more are told that the endpoint is alive.
const MAX_WAITING: usize = 16;

/// What is known of a registered endpoint after it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It keeps its place.
    Alive,
    /// It is not here, or has been given up.
    Gone,
}

impl Life {
    /// One lower-case word.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Gone => "gone",
        }
    }
}

/// The registered endpoints of this node.
#[derive(Default)]
pub(super) struct Probes {
    bells: Mutex<BTreeMap<OfferId, (Secret, Arc<Bell>)>>,
}

/// Keeps an endpoint among those that can be asked.
pub(super) struct Listed {
    id: OfferId,
    bell: Arc<Bell>,
    probes: Arc<Probes>,
}

/// Rung for an endpoint; its task hears it.
#[derive(Default)]
struct Bell {
    state: Mutex<Rung>,
}

#[derive(Default)]
struct Rung {
    waiting: Vec<oneshot::Sender<()>>,
    task: Option<Waker>,
}

impl Probes {
    /// Has an endpoint's leg asked when somebody wants to know of this registration.
    pub(super) fn listen(
        self: &Arc<Self>,
        (id, secret): (OfferId, Secret),
        leg: Box<dyn Leg>,
    ) -> (Box<dyn Leg>, Listed) {
        let bell = Arc::<Bell>::default();
        self.lock().insert(id, (secret, Arc::clone(&bell)));
        let leg = ProbedLeg { leg, bell: Arc::clone(&bell), waiting: Vec::new() };
        (Box::new(leg), Listed { id, bell, probes: Arc::clone(self) })
    }

    /// Asks the endpoint of this registration, whose secret other nodes must know.
    pub(super) async fn ask(&self, id: OfferId, secret: Option<Secret>) -> Life {
        let answer = {
            let bells = self.lock();
            match bells.get(&id) {
                Some((its, bell)) if secret.is_none_or(|secret| secret == *its) => bell.ring(),
                // Whoever does not know it is told nothing.
                Some(_) => None,
                None => return Life::Gone,
            }
        };
        let Some(answer) = answer else { return Life::Alive };
        match timeout(WITHIN + SLACK, answer).await {
            // The endpoint's task has ended, or cannot even be asked.
            Ok(Err(_)) => Life::Gone,
            Ok(Ok(())) | Err(_) => Life::Alive,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OfferId, (Secret, Arc<Bell>)>> {
        // Each change is a single step: what a panicking thread left behind is in order.
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.probes.lock().remove(&self.id);
        self.bell.lock().waiting.clear();
    }
}

impl Bell {
    fn ring(&self) -> Option<oneshot::Receiver<()>> {
        let mut rung = self.lock();
        if rung.waiting.len() >= MAX_WAITING {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        rung.waiting.push(sender);
        if let Some(task) = rung.task.take() {
            drop(rung);
            task.wake();
        }
        Some(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leg of a registered endpoint. All but the asking is that leg's.
struct ProbedLeg {
    leg: Box<dyn Leg>,
    bell: Arc<Bell>,
    /// Those who wait for a sign of life. Dropping them tells them that it is gone.
    waiting: Vec<oneshot::Sender<()>>,
}

impl ProbedLeg {
    /// Asks the endpoint when the bell has rung.
    fn listen(&mut self, cx: &mut Context<'_>) {
        let mut rung = self.bell.lock();
        match &mut rung.task {
            Some(task) => task.clone_from(cx.waker()),
            None => rung.task = Some(cx.waker().clone()),
        }
        if rung.waiting.is_empty() {
            return;
        }
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        self.waiting.extend(rung.waiting.drain(..).take(room));
        drop(rung);
        self.leg.probe(cx, WITHIN);
    }

    /// Tells those who wait if the endpoint has shown itself.
    fn answer(&mut self) {
        if !self.waiting.is_empty() && !self.leg.is_probed() {
            for waiting in self.waiting.drain(..) {
                // Nobody waits any more: nobody needs to know.
                let _or_not = waiting.send(());
            }
        }
    }
}

impl Leg for ProbedLeg {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        let received = self.leg.poll_recv(cx);
        match received {
            Poll::Ready(Err(_)) => self.waiting.clear(),
            Poll::Ready(Ok(_)) | Poll::Pending => self.answer(),
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
            Poll::Ready(_) => self.waiting.clear(),
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
