//! A gRPC call as a [`Leg`], from either end of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{Finished, Frame};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::ThisNode;
use super::budget::Share;
use super::call::{CallError, Incoming, Outgoing, SEND_BUFFER};
use super::peer::CountGuard;
use super::wire::{self, Refusal};
use crate::lifecycle::Lifecycle;
use crate::observability::Metrics;
use crate::observability::metrics::StreamGauge;
use crate::protocol::{Chunk, Close, Profile};
use crate::transport::{End, Leg};

/// An event of a call: a frame, its end, or why it ended early.
type Received = Result<Option<Frame>, CallError>;

/// The means to accept or refuse a call.
pub struct Answer {
    pub(super) leg: BridgeLeg,
    pub(super) this: ThisNode,
    /// The name that the other node gives itself.
    pub(super) caller: String,
    pub(super) metrics: Arc<Metrics>,
}

impl Answer {
    /// Yes: here is the endpoint with this profile.
    pub fn accept(mut self, profile: &Profile) -> Box<dyn Leg> {
        self.leg.outgoing.push(&wire::attached(profile, &self.this.name));
        self.leg.outgoing.flush();
        // Not before: only now the caller has shown that it is a node of the cluster, and its name
        // becomes a label.
        let gauge = self.metrics.bridge_stream_in(&self.caller);
        self.leg.counted.gauge = Some(gauge);
        Box::new(self.leg)
    }

    /// No.
    pub fn refuse(mut self, refusal: Refusal) {
        self.leg.outgoing.push(&wire::refused(refusal, &self.this.id));
        self.leg.linger();
    }
}

/// One end of a tunnel's call.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct BridgeLeg {
    outgoing: Outgoing,
    incoming: Option<Incoming>,
    /// How long the other node may read nothing, and how long the last data may take.
    stalled: Duration,
    blocked: Option<Instant>,
    /// Rings when `blocked` may have lasted for too long.
    timer: Pin<Box<Sleep>>,
    armed: bool,
    said_goodbye: bool,
    /// The other node knows that an endpoint may end one direction alone.
    knows_finished: bool,
    /// The endpoint over there has done so.
    heard_end: bool,
    lifecycle: Lifecycle,
    counted: Counted,
}

/// Counts a tunnel on its connection as long as its call lives.
pub(super) struct Counted {
    pub(super) _guard: CountGuard,
    /// Not before the call is answered, if another node has begun it.
    pub(super) gauge: Option<StreamGauge>,
    /// The memory for its buffers.
    pub(super) share: Share,
}

impl BridgeLeg {
    pub(super) fn new(
        outgoing: Outgoing,
        incoming: Incoming,
        stalled: Duration,
        lifecycle: Lifecycle,
        counted: Counted,
    ) -> Self {
        Self {
            outgoing,
            incoming: Some(incoming),
            stalled,
            blocked: None,
            timer: Box::pin(sleep_until(Instant::now())),
            armed: false,
            said_goodbye: false,
            knows_finished: false,
            heard_end: false,
            lifecycle,
            counted,
        }
    }

    /// Sends nothing more, and lets the call live until the other node has ended it: it may still
    /// be handing the last data to a slow endpoint.
    fn linger(&mut self) {
        self.outgoing.close();
        let incoming = self.incoming.take().filter(|incoming| !incoming.is_over());
        if let Some(incoming) = incoming
            && Handle::try_current().is_ok()
        {
            let time = self.stalled;
            self.lifecycle.spawn(async move {
                let _in_time = timeout(time, incoming.drain()).await;
            });
        }
    }

    /// Whether the other node knows that an endpoint may end one direction alone.
    pub(super) fn knowing_finished(mut self, knows_finished: bool) -> Self {
        self.knows_finished = knows_finished;
        self
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        match &mut self.incoming {
            Some(incoming) => incoming.poll_message(cx),
            None => Poll::Ready(Ok(None)),
        }
    }
}

/// A stream that is dropped before its end would be reset.
impl Drop for BridgeLeg {
    fn drop(&mut self) {
        self.linger();
    }
}

/// How a frame other than data, or the end of the call, ends the tunnel.
fn end_of(last: Received) -> End {
    match last {
        Ok(Some(Frame { content: Some(Content::Close(close)) })) => wire::read_close(close),
        Ok(Some(_)) => End::Fault(Close::TransportViolation),
        Ok(None) => lost("the other node has ended the bridge without a goodbye"),
        Err(error) => End::Lost(io::Error::other(error)),
    }
}

fn lost(why: &'static str) -> End {
    End::Lost(io::Error::new(io::ErrorKind::ConnectionAborted, why))
}

impl Leg for BridgeLeg {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        let end = match ready!(self.poll_frame(cx)) {
            Ok(Some(Frame { content: Some(Content::Data(data)) })) => {
                return Poll::Ready(Ok(wire::read_data(data)));
            }
            Ok(Some(Frame { content: Some(Content::Finished(Finished {})) }))
                if !self.heard_end =>
            {
                self.heard_end = true;
                // From now on it is the health that reads.
                cx.waker().wake_by_ref();
                return Poll::Ready(Err(End::Finished));
            }
            last => end_of(last),
        };
        // Nothing goes to an endpoint that has left: this end of the call is over, too.
        self.outgoing.close();
        Poll::Ready(Err(end))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let polled = self.outgoing.poll_ready(cx, self.counted.share.bytes().min(SEND_BUFFER));
        if polled.is_ready() {
            self.blocked = None;
        } else if self.blocked.is_none() {
            let now = Instant::now();
            self.blocked = Some(now);
            // Left to ring for nothing: setting it each time would cost more. Polled here, as
            // nothing else may wake this task in time.
            if !std::mem::replace(&mut self.armed, true) {
                self.timer.as_mut().reset(now + self.stalled);
                if self.timer.poll_unpin(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        polled.map_err(|()| lost("the bridge has ended"))
    }

    fn send(&mut self, _cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        self.outgoing.push_data(chunk);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // What is in the hands of HTTP/2 goes out without help; a call that has ended lives on
        // until it has (see `linger`).
        self.outgoing.poll_flush(cx).map(Ok)
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        if let Some(incoming) = &mut self.incoming {
            incoming.gather(cx);
        }
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // A node that is silent is noticed by the keepalive of the connection.
        while self.armed && self.timer.poll_unpin(cx).is_ready() {
            match self.blocked.map(|since| since + self.stalled) {
                Some(until) if until <= Instant::now() => {
                    return Poll::Ready(End::Fault(Close::Stalled));
                }
                Some(until) => self.timer.as_mut().reset(until),
                None => self.armed = false,
            }
        }
        if self.heard_end {
            let end = end_of(ready!(self.poll_frame(cx)));
            self.outgoing.close();
            return Poll::Ready(end);
        }
        Poll::Pending
    }

    fn set_message_limit(&mut self, _bytes: usize) {
        // The other node has seen to it.
    }

    fn send_end(&mut self, _cx: &mut Context<'_>) -> bool {
        if self.knows_finished {
            self.outgoing.push(&wire::frame(Content::Finished(Finished {})));
        }
        self.knows_finished
    }

    fn has_finished(&self) -> bool {
        self.heard_end
    }

    fn send_close(&mut self, _cx: &mut Context<'_>, close: Close) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.outgoing.push(&wire::close(close));
            self.outgoing.close();
        }
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.poll_frame(cx)) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        self.linger();
        Poll::Ready(())
    }
}
