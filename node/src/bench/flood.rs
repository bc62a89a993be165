//! Floods tunnels: each sending end sends as fast as it can, each receiving end checks every byte.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::endpoint::{Endpoint, Received};
use crate::report::close_code;
use crate::target::Tunnel;
use crate::wire::{Check, Message, Outgoing};

/// If nothing moves for so long, nothing will.
const STANDSTILL: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(20);

/// How to flood.
pub(crate) struct Plan {
    pub(crate) message: Message,
    /// Messages in one write.
    pub(crate) at_once: usize,
    /// Both ends send, not only the first.
    pub(crate) both_ways: bool,
}

/// One direction of a tunnel, in messages and bytes.
#[derive(Default)]
struct Lane {
    sent: AtomicU64,
    has_stopped: AtomicBool,
    received: AtomicU64,
    received_bytes: AtomicU64,
}

/// Tunnels under load, for as long as this exists.
pub(crate) struct Flood {
    lanes: Vec<Arc<Lane>>,
    stop: Arc<AtomicBool>,
    /// Receivers read nothing before.
    gate: CancellationToken,
    /// Each goes on until its tunnel ends, which is an error. The connection outlives that: what its
    /// other end makes of a broken one must not be heard first.
    tasks: JoinSet<(anyhow::Result<()>, End)>,
}

impl Flood {
    pub(crate) fn start(tunnels: Vec<Tunnel>, plan: &Plan) -> Self {
        let flood = Self::stalled(tunnels, plan);
        flood.gate.cancel();
        flood
    }

    /// Nothing is received until [`Flood::resume`].
    pub(crate) fn stalled(tunnels: Vec<Tunnel>, plan: &Plan) -> Self {
        let (stop, gate) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (mut lanes, mut tasks) = (Vec::new(), JoinSet::new());
        for tunnel in tunnels {
            let [there, back] = [Arc::new(Lane::default()), Arc::new(Lane::default())];
            let [one, other] = tunnel.ends;
            for (endpoint, outgoing, incoming, sends) in
                [(one, &there, &back, true), (other, &back, &there, plan.both_ways)]
            {
                let sending = if sends {
                    Sending::Messages(Outgoing::new(&plan.message, plan.at_once))
                } else {
                    Sending::Nothing
                };
                let mut end = End {
                    endpoint,
                    sending,
                    check: Check::new(&plan.message),
                    lanes: [outgoing.clone(), incoming.clone()],
                    stop: stop.clone(),
                };
                outgoing.has_stopped.store(!sends, Relaxed);
                let gate = gate.clone();
                tasks.spawn(async move { (end.run(gate).await, end) });
            }
            lanes.extend([there, back]);
        }
        Self { lanes, stop, gate, tasks }
    }

    pub(crate) fn resume(&self) {
        self.gate.cancel();
    }

    /// All bytes that were received.
    pub(crate) fn bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.received_bytes.load(Relaxed)).sum()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.sent.load(Relaxed)).sum()
    }

    /// Goes on for a while.
    pub(crate) async fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            ended = self.tasks.join_next() => match ended {
                Some(ended) => ended?.0,
                None => bail!("there are no tunnels"),
            },
        }
    }

    /// Stops all senders, and sees that everything arrives.
    pub(crate) async fn finish(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Relaxed);
        let (mut before, mut moved) = (self.bytes(), Instant::now());
        while !self.lanes.iter().all(|lane| lane.is_done()) {
            self.run(GLANCE).await?;
            let now = self.bytes();
            if now != before {
                (before, moved) = (now, Instant::now());
            }
            let received: u64 = self.lanes.iter().map(|lane| lane.received.load(Relaxed)).sum();
            let missing = self.sent().saturating_sub(received);
            ensure!(moved.elapsed() < STANDSTILL, "{missing} messages did not arrive");
        }
        Ok(self.sent())
    }
}

impl Lane {
    fn is_done(&self) -> bool {
        self.has_stopped.load(Relaxed) && self.sent.load(Relaxed) == self.received.load(Relaxed)
    }
}

/// One end, sending and receiving at the same time.
struct End {
    endpoint: Endpoint,
    sending: Sending,
    check: Check,
    /// Its outgoing and its incoming one.
    lanes: [Arc<Lane>; 2],
    stop: Arc<AtomicBool>,
}

impl End {
    async fn run(&mut self, gate: CancellationToken) -> anyhow::Result<()> {
        let mut gate = pin!(gate.cancelled_owned());
        let mut may_receive = false;
        poll_fn(|cx| {
            may_receive = may_receive || gate.as_mut().poll(cx).is_ready();
            loop {
                let received = if may_receive { self.poll_receive(cx)? } else { Poll::Pending };
                if self.poll_send(cx)?.is_pending() && received.is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        let received = ready!(self.endpoint.poll_receive(cx, &mut self.check))?;
        if let Received::End(code) = received {
            return Poll::Ready(Err(anyhow!("a tunnel ended ({})", close_code(code))));
        }
        let [_, lane] = &self.lanes;
        lane.received_bytes.store(self.check.bytes(), Relaxed);
        lane.received.store(self.check.received(), Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Pending also when there is nothing more to send.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        let [lane, _] = &self.lanes;
        match &mut self.sending {
            Sending::Messages(outgoing) => {
                ready!(self.endpoint.poll_send(cx, outgoing))?;
                lane.sent.store(outgoing.sent(), Relaxed);
                if self.stop.load(Relaxed) {
                    self.sending = Sending::Rest;
                }
            }
            Sending::Rest => {
                ready!(self.endpoint.poll_flush(cx))?;
                lane.has_stopped.store(true, Relaxed);
                self.sending = Sending::Nothing;
            }
            Sending::Nothing => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }
}

enum Sending {
    Messages(Outgoing),
    /// What is written already, but not gone.
    Rest,
    Nothing,
}
