//! A gRPC call as a [`Leg`], from either end of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, Stream};
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use nymea_remoteproxy_proto::bridge::v1::{Finished, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::client::CountGuard;
use super::outbox::Outbox;
use super::wire::{self, Refusal};
use crate::lifecycle::Lifecycle;
use crate::observability::metrics::StreamGauge;
use crate::protocol::{Chunk, Close, Profile, without_its_block};
use crate::transport::{End, Leg};

/// Payload of fewer bytes is copied before it waits.
const SMALL: usize = 1024;

/// How a node answers a bridge.
pub struct Answer {
    leg: BridgeLeg,
    /// The name of this node.
    node: Arc<str>,
}

impl Answer {
    pub(super) fn new(leg: BridgeLeg, node: Arc<str>) -> Self {
        Self { leg, node }
    }

    /// Yes: here is the endpoint with this profile.
    pub fn accept(self, profile: &Profile) -> Box<dyn Leg> {
        self.leg.outbox.push(wire::attached(profile, &self.node), 0);
        Box::new(self.leg)
    }

    /// No.
    pub fn refuse(mut self, refusal: Refusal) {
        self.leg.outbox.push(wire::refused(refusal), 0);
        self.leg.linger();
    }
}

/// One end of a tunnel's call.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct BridgeLeg {
    outbox: Outbox,
    incoming: Option<Streaming<Frame>>,
    /// How long the other node may take nothing, and how long its last data may take.
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
    _counted: Counted,
}

/// Counts a tunnel on its connection as long as its call lives.
pub(super) enum Counted {
    Out { _guard: CountGuard },
    In { _gauge: StreamGauge },
}

impl BridgeLeg {
    pub(super) fn new(
        outbox: Outbox,
        incoming: Streaming<Frame>,
        stalled: Duration,
        lifecycle: Lifecycle,
        counted: Counted,
    ) -> Self {
        Self {
            outbox,
            incoming: Some(incoming),
            stalled,
            blocked: None,
            timer: Box::pin(sleep_until(Instant::now())),
            armed: false,
            said_goodbye: false,
            knows_finished: false,
            heard_end: false,
            lifecycle,
            _counted: counted,
        }
    }

    /// Sends nothing more, and lets the call live until the other node has ended it: it may still
    /// be handing the last data to a slow endpoint.
    fn linger(&mut self) {
        self.outbox.close();
        if let Some(incoming) = self.incoming.take() {
            let time = self.stalled;
            self.lifecycle.spawn(async move {
                let _in_time = timeout(time, drain(incoming)).await;
            });
        }
    }

    /// Whether the other node knows that an endpoint may end one direction alone.
    pub(super) fn knowing_finished(self, knows_finished: bool) -> Self {
        Self { knows_finished, ..self }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Status>>> {
        match &mut self.incoming {
            Some(incoming) => Pin::new(incoming).poll_next(cx),
            None => Poll::Ready(None),
        }
    }

    fn poll_outbox(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&Outbox, &mut Context<'_>) -> Poll<Result<(), ()>>,
    ) -> Poll<Result<(), End>> {
        let polled = poll(&self.outbox, cx);
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
}

async fn drain(mut incoming: Streaming<Frame>) {
    while let Ok(Some(_)) = incoming.message().await {}
}

/// How the frame that comes in place of data ends the tunnel.
fn end_of(last: Option<Result<Frame, Status>>) -> End {
    match last {
        Some(Ok(Frame { content: Some(Content::Close(close)) })) => wire::read_close(close),
        Some(Ok(_)) => End::Fault(Close::TransportViolation),
        Some(Err(status)) => End::Lost(io::Error::other(status)),
        None => lost("the other node has ended the bridge without a goodbye"),
    }
}

fn lost(why: &'static str) -> End {
    End::Lost(io::Error::new(io::ErrorKind::ConnectionAborted, why))
}

impl Leg for BridgeLeg {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        let end = match ready!(self.poll_frame(cx)) {
            Some(Ok(Frame { content: Some(Content::Data(data)) })) => {
                return Poll::Ready(Ok(wire::read_data(data)));
            }
            Some(Ok(Frame { content: Some(Content::Finished(Finished {})) }))
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
        self.outbox.close();
        Poll::Ready(Err(end))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.poll_outbox(cx, Outbox::poll_ready)
    }

    fn send(&mut self, _cx: &mut Context<'_>, mut chunk: Chunk) -> Result<(), End> {
        chunk.data = without_its_block(chunk.data, SMALL);
        let size = chunk.data.len();
        self.outbox.push(wire::data(chunk), size);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // What is in the outbox goes out without help, so it never holds anything back; but
        // before the end, all of it must be gone.
        if self.said_goodbye {
            self.poll_outbox(cx, Outbox::poll_flush)
        } else {
            Poll::Ready(Ok(()))
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
            self.outbox.close();
            return Poll::Ready(end);
        }
        Poll::Pending
    }

    fn set_message_limit(&mut self, _bytes: usize) {
        // The other node has seen to it.
    }

    fn send_end(&mut self, _cx: &mut Context<'_>) -> bool {
        if self.knows_finished {
            self.outbox.push(wire::frame(Content::Finished(Finished {})), 0);
        }
        self.knows_finished
    }

    fn has_finished(&self) -> bool {
        self.heard_end
    }

    fn send_close(&mut self, _cx: &mut Context<'_>, close: Close) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.outbox.push(wire::close(close), 0);
            self.outbox.close();
        }
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.poll_frame(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        self.linger();
        Poll::Ready(())
    }
}
