//! A gateway as the other leg of an app's tunnel: what is sent here is framed for the gateway by
//! its task, and what is received here was in the gateway's frames for this app.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::hub::Hub;
use super::lane::{Below, Goodbye, Lane};
use crate::protocol::{Chunk, Close};
use crate::transport::{End, Leg};
use crate::turn::{Turn, yield_turn};

/// One app's end of its gateway. Dropping it detaches the app.
pub(in crate::session) struct GatewayPort {
    hub: Arc<Hub>,
    address: u16,
    lane: Arc<Lane>,
    left: bool,
}

impl GatewayPort {
    pub(super) fn new(hub: Arc<Hub>, address: u16, lane: Arc<Lane>) -> Self {
        Self { hub, address, lane, left: false }
    }

    /// The app is gone; the gateway is notified after all data of the app.
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.left, true) && self.lane.leave() {
            self.hub.announce(self.address);
        }
    }
}

impl Drop for GatewayPort {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Leg for GatewayPort {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        if self.left {
            return Poll::Ready(Err(End::Left));
        }
        Poll::Ready(match ready!(self.lane.poll_down(cx)) {
            Ok(Below { data, tell, announce }) => {
                if announce {
                    self.hub.announce(self.address);
                } else if tell {
                    self.hub.nudge();
                }
                Ok(Chunk::stream(data))
            }
            Err(why) => Err(end(why)),
        })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.lane.poll_room(cx).map(Ok)
    }

    fn send(&mut self, _cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        if !chunk.data.is_empty() && self.lane.push_up(chunk.data) {
            self.hub.announce(self.address);
        }
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // What is in the queue goes out without help.
        Poll::Ready(Ok(()))
    }

    fn poll_health(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.left {
            // No message tells a gateway that an app still reads: to it, the app is gone.
            return Poll::Ready(End::Left);
        }
        self.lane.poll_end(cx).map(end)
    }

    fn set_message_limit(&mut self, _bytes: usize) {
        // There are no messages.
    }

    fn send_close(&mut self, cx: &mut Context<'_>, _close: Close) {
        self.leave();
        cx.waker().wake_by_ref();
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turn = Turn::new();
        while !turn.is_over() {
            match ready!(self.poll_recv(cx)) {
                Ok(chunk) => turn.spend(chunk.data.len()),
                Err(_) => return Poll::Ready(()),
            }
        }
        yield_turn(cx)
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        self.leave();
        Poll::Ready(())
    }
}

fn end(why: Goodbye) -> End {
    match why {
        Goodbye::Left => End::Left,
        Goodbye::Lost => End::Failed,
        Goodbye::Closed(close) => End::Closed(close),
    }
}
