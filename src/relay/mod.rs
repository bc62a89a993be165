//! Moves chunks between two legs until one of them ends, and then ends the other, so that no accepted
//! data is lost. A leg that has finished only its own direction still gets the data of the other one.
//!
//! One task runs a tunnel: [`flow`] polls both legs and both directions in it. Where the legs lead
//! (an endpoint, another node) is not known here.

mod pump;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep, timeout};

pub use self::pump::Breach;
use self::pump::{Pump, Stop};
use crate::observability::{Meter, Traffic};
use crate::protocol::Close;
use crate::transport::{End, Leg};

/// One end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The endpoint that waited.
    First,
    /// The endpoint that claimed the offer of the first one.
    Second,
}

/// The report about a tunnel.
#[derive(Debug)]
pub struct Report {
    /// From the first endpoint to the second one.
    pub forth: Traffic,
    /// From the second endpoint to the first one.
    pub back: Traffic,
    /// The side that ended it; `None` if the node did.
    pub ended_by: Option<Side>,
    /// Why it ended.
    pub reason: Close,
}

/// A tunnel after the end of its data, with legs that are still to be closed.
pub struct Ended {
    cause: Cause,
    /// The side that finished its direction first, if the tunnel continued after that.
    finished_first: Option<Side>,
    forth: Pump,
    back: Pump,
}

impl Ended {
    /// Whether it ended because this side was lost, and not because it closed the connection.
    pub fn has_lost(&self, side: Side) -> bool {
        matches!(&self.cause, Cause::Left(it, End::Lost(_)) if *it == side)
    }

    /// Whether it ended because a direction has moved what it had not accepted, or not moved what it
    /// had. This is a fault of the node.
    pub fn breach(&self) -> Option<Breach> {
        match self.cause {
            Cause::Broken(breach) => Some(breach),
            Cause::Left(..) | Cause::Stopped(_) => None,
        }
    }
}

enum Cause {
    Left(Side, End),
    Stopped(Close),
    Broken(Breach),
}

/// Relays until one leg ends or `stop` says that the tunnel must, and keeps the `meter` up to date.
/// `patience` bounds how long is read from an endpoint that takes nothing more.
pub async fn flow(
    first: &mut dyn Leg,
    second: &mut dyn Leg,
    meter: &Meter,
    stop: impl Future<Output = Close>,
    patience: Duration,
) -> Ended {
    let mut pumps = (Pump::default(), Pump::default());
    let mut finished_first = None;
    let noted = (meter, &mut finished_first);
    let cause = pump_both(first, second, &mut pumps, noted, stop, patience).await;
    let (forth, back) = pumps;
    Ended { cause, finished_first, forth, back }
}

/// Closes both legs. Whatever was accepted from a leg that ended is delivered to the other one
/// first, for as long as that one takes it; `patience` bounds how long an endpoint may take to
/// answer a goodbye.
pub async fn finish<'a>(
    first: &'a mut dyn Leg,
    second: &'a mut dyn Leg,
    ended: Ended,
    patience: Duration,
) -> Report {
    let Ended { cause, finished_first, mut forth, mut back } = ended;
    let (ended_by, reason) = match &cause {
        Cause::Stopped(close) => (None, *close),
        Cause::Broken(_) => (None, Close::Fault),
        Cause::Left(side, End::Left | End::Finished) => {
            (finished_first.or(Some(*side)), Close::OtherLeft)
        }
        Cause::Left(side, End::Failed | End::Lost(_)) => (Some(*side), Close::OtherLost),
        Cause::Left(side, End::Fault(close) | End::Closed(close)) => (Some(*side), *close),
    };
    match cause {
        Cause::Stopped(close) => {
            tokio::join!(
                deliver_and_close(&mut back, first, close, patience),
                deliver_and_close(&mut forth, second, close, patience),
            );
        }
        Cause::Broken(_) => {
            // What would still be delivered may be anything.
            forth.abandon();
            back.abandon();
            tokio::join!(
                close_leg(first, Some(Close::Fault), patience),
                close_leg(second, Some(Close::Fault), patience),
            );
        }
        Cause::Left(side, end) => {
            let close = seen_by_the_other(&end);
            let (gone, left, pump) = match side {
                Side::First => (first, second, &mut forth),
                Side::Second => (second, first, &mut back),
            };
            tokio::join!(
                close_ended(gone, end, patience),
                deliver_and_close(pump, left, close, patience),
            );
        }
    }
    Report { forth: forth.traffic(), back: back.traffic(), ended_by, reason }
}

/// Only an orderly end may look like one.
fn seen_by_the_other(end: &End) -> Close {
    match end {
        End::Left | End::Finished => Close::OtherLeft,
        End::Closed(close) => *close,
        End::Failed | End::Lost(_) | End::Fault(_) => Close::OtherLost,
    }
}

/// Pumps both ways until something ends it.
async fn pump_both(
    first: &mut dyn Leg,
    second: &mut dyn Leg,
    (forth, back): &mut (Pump, Pump),
    (meter, finished_first): (&Meter, &mut Option<Side>),
    stop: impl Future<Output = Close>,
    patience: Duration,
) -> Cause {
    let mut stop = pin!(stop);
    let mut last_words: Option<LastWords> = None;
    poll_fn(|cx| {
        if let Poll::Ready(close) = stop.as_mut().poll(cx) {
            return Poll::Ready(Cause::Stopped(close));
        }
        if let Poll::Ready(end) = first.poll_health(cx) {
            return Poll::Ready(Cause::Left(Side::First, end));
        }
        if let Poll::Ready(end) = second.poll_health(cx) {
            return Poll::Ready(Cause::Left(Side::Second, end));
        }
        for (source, sink) in [(Side::First, Side::Second), (Side::Second, Side::First)] {
            let stop = match source {
                Side::First => forth.poll(cx, first, second, back.has_finished()),
                Side::Second => back.poll(cx, second, first, forth.has_finished()),
            };
            meter.set(forth.traffic(), back.traffic());
            if let Err(breach) = forth.check().and_then(|()| back.check()) {
                return Poll::Ready(Cause::Broken(breach));
            }
            match stop {
                Poll::Pending => {}
                Poll::Ready(Stop::Source(end)) => return Poll::Ready(Cause::Left(source, end)),
                Poll::Ready(Stop::Sink(end)) => {
                    last_words.get_or_insert_with(|| LastWords::of((sink, end), None, patience));
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Stop::Goodbye) => {
                    finished_first.get_or_insert(source);
                    let heard = Some(forth.traffic().bytes + back.traffic().bytes);
                    let end = (sink, End::Left);
                    last_words.get_or_insert_with(|| LastWords::of(end, heard, patience));
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Stop::Finished) => {
                    finished_first.get_or_insert(source);
                }
            }
        }
        let moved = forth.traffic().bytes + back.traffic().bytes;
        if let Some(waiting) = &mut last_words
            && waiting.poll(cx, moved, patience).is_ready()
            && let Some(LastWords { side, end, .. }) = last_words.take()
        {
            return Poll::Ready(Cause::Left(side, end));
        }
        Poll::Pending
    })
    .await
}

/// A leg takes nothing more, but may still have sent something worth delivering.
struct LastWords {
    side: Side,
    end: End,
    /// The leg was closed, and gets more time as long as it still sends data: the bytes that had been
    /// moved at the last check.
    heard: Option<u64>,
    pause: Pin<Box<Sleep>>,
}

impl LastWords {
    fn of((side, end): (Side, End), heard: Option<u64>, patience: Duration) -> Self {
        Self { side, end, heard, pause: Box::pin(sleep(patience)) }
    }

    /// Ready when nothing more is to be waited for.
    fn poll(&mut self, cx: &mut Context<'_>, moved: u64, patience: Duration) -> Poll<()> {
        loop {
            ready!(self.pause.as_mut().poll(cx));
            if self.heard.is_none_or(|heard| heard == moved) {
                return Poll::Ready(());
            }
            self.heard = Some(moved);
            self.pause.as_mut().reset(Instant::now() + patience);
        }
    }
}

/// Hands a leg what the pump still holds for it, then closes it.
async fn deliver_and_close(pump: &mut Pump, leg: &mut dyn Leg, close: Close, patience: Duration) {
    let mut open = true;
    poll_fn(|cx| {
        // What it sends now has nowhere to go, but must be read: it may not take our data before
        // it has got rid of its own.
        open = open && (leg.poll_discard(cx).is_pending() || leg.has_finished());
        if !open || leg.poll_health(cx).is_ready() {
            return Poll::Ready(());
        }
        pump.poll_deliver(cx, leg)
    })
    .await;
    close_leg(leg, Some(close), patience).await;
}

/// Closes the leg that ended the tunnel.
async fn close_ended(leg: &mut dyn Leg, end: End, patience: Duration) {
    match end {
        End::Left | End::Finished | End::Closed(_) | End::Failed => {
            close_leg(leg, None, patience).await;
        }
        End::Fault(close) => close_leg(leg, Some(close), patience).await,
        End::Lost(_) => {}
    }
}

/// Sends a close (or flushes the answer to one), waits for the end of the input, and ends the
/// connection; all within `patience`.
///
/// It waits because closing a connection with unread data resets it, and a reset destroys data that
/// the endpoint has not read yet.
pub async fn close_leg(leg: &mut dyn Leg, close: Option<Close>, patience: Duration) {
    let mut said = close.is_none();
    let goodbye = poll_fn(|cx: &mut Context<'_>| {
        if let (false, Some(close)) = (said, close) {
            leg.send_close(cx, close);
            said = true;
        }
        let flushed = leg.poll_flush(cx);
        match leg.poll_discard(cx) {
            Poll::Ready(()) if flushed.is_ready() => Poll::Ready(()),
            Poll::Ready(()) | Poll::Pending => Poll::Pending,
        }
    });
    // Out of time or not, the connection ends; what is in the kernel's hands still goes out.
    let _in_time = timeout(patience, goodbye).await;
    let _in_time = timeout(patience, poll_fn(|cx| leg.poll_shutdown(cx))).await;
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
