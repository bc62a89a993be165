//! One direction of a tunnel: takes a chunk from one leg when the other has room for it.

use std::fmt;
use std::task::{Context, Poll, ready};

use crate::observability::Traffic;
use crate::protocol::{Chunk, Close, without_its_block};
use crate::transport::{End, Leg};
use crate::turn::{Turn, yield_turn};

/// The most bytes handed to a leg at once; larger chunks are cut. It bounds what a leg has to
/// buffer, whatever the size of messages.
const PIECE: usize = 64 * 1024;
/// A chunk of fewer bytes is copied before it waits.
const SMALL: usize = 4 * 1024;

/// Why a pump stops.
pub(super) enum Stop {
    /// The source has ended.
    Source(End),
    /// Nothing more can be sent. The pump rests from now on.
    Sink(End),
    /// The source has finished and the sink knows it; data may still come the other way. The pump
    /// rests from now on.
    Finished,
    /// The source has finished, and as the sink cannot end by halves, it has got a goodbye; what it
    /// sends until it answers that may still come. The pump rests from now on.
    Goodbye,
}

/// The state of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Course {
    #[default]
    Flowing,
    /// The source has finished, and this ends the sink.
    Ending(Told),
    /// Nothing more is to be done.
    Resting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    End,
    Goodbye,
}

/// One direction. Holds at most one chunk.
#[derive(Default)]
pub(super) struct Pump {
    held: Option<Chunk>,
    /// That is not a small part of a large block.
    is_settled: bool,
    /// All that was sent has gone out. Not so at first: the notification has not.
    flushed: bool,
    broken: bool,
    course: Course,
    traffic: Traffic,
    /// Bytes that came from the source.
    accepted: u64,
}

/// A direction has moved other data than it has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breach {
    accepted: u64,
    delivered: u64,
    held: u64,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, delivered, held } = self;
        write!(f, "{accepted} bytes accepted, {delivered} delivered, {held} held")
    }
}

impl Pump {
    /// All that was accepted must have been delivered, or be held. As there is one chunk at a time,
    /// this also says that one was not put in the place of another.
    pub(super) fn check(&self) -> Result<(), Breach> {
        let held = self.held.as_ref().map_or(0, |chunk| chunk.data.len() as u64);
        let Self { accepted, traffic: Traffic { bytes: delivered, .. }, .. } = *self;
        if accepted == delivered + held {
            return Ok(());
        }
        Err(Breach { accepted, delivered, held })
    }

    /// One that believes to have accepted so much already.
    #[cfg(test)]
    pub(super) fn with_accepted(accepted: u64) -> Self {
        Self { accepted, ..Self::default() }
    }

    /// Delivers nothing more: it cannot be relied on.
    pub(super) fn abandon(&mut self) {
        (self.held, self.broken) = (None, true);
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Moves data from `source` to `sink`. `is_last`: the other direction has finished, so the end of
    /// this one ends the tunnel.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut dyn Leg,
        sink: &mut dyn Leg,
        is_last: bool,
    ) -> Poll<Stop> {
        match self.course {
            Course::Resting => return Poll::Pending,
            Course::Ending(told) => return self.poll_end(cx, sink, told),
            Course::Flowing if self.broken => return Poll::Pending,
            Course::Flowing => {}
        }
        let mut turn = Turn::new();
        while !turn.is_over() {
            match self.poll_send_held(cx, sink) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => {
                    self.broken = true;
                    return Poll::Ready(Stop::Sink(end));
                }
                Poll::Pending => {
                    self.settle();
                    source.gather(cx);
                    return Poll::Pending;
                }
            }
            match source.poll_recv(cx) {
                Poll::Ready(Ok(chunk)) => {
                    turn.spend(chunk.data.len());
                    self.accepted += chunk.data.len() as u64;
                    (self.held, self.is_settled) = (Some(chunk), false);
                }
                // The end of the tunnel itself is sent by who closes it, after its key is free: the
                // endpoint may come back at once.
                Poll::Ready(Err(End::Finished)) if !is_last => {
                    let told = if sink.send_end(cx) { Told::End } else { Told::Goodbye };
                    if told == Told::Goodbye {
                        sink.send_close(cx, Close::OtherLeft);
                    }
                    self.course = Course::Ending(told);
                    return self.poll_end(cx, sink, told);
                }
                Poll::Ready(Err(end)) => return Poll::Ready(Stop::Source(end)),
                Poll::Pending => {
                    // Nothing more to put with it: what is there goes out now.
                    if !self.flushed
                        && let Poll::Ready(result) = sink.poll_flush(cx)
                    {
                        self.flushed = true;
                        if let Err(end) = result {
                            self.broken = true;
                            return Poll::Ready(Stop::Sink(end));
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
        yield_turn(cx)
    }

    /// Whether its source has finished and all of that has been delivered.
    pub(super) fn has_finished(&self) -> bool {
        self.course == Course::Resting
    }

    /// Flushes all data, and the end of the direction.
    fn poll_end(&mut self, cx: &mut Context<'_>, sink: &mut dyn Leg, told: Told) -> Poll<Stop> {
        let flushed = ready!(sink.poll_flush(cx));
        self.course = Course::Resting;
        Poll::Ready(match (flushed, told) {
            (Err(end), _) => Stop::Sink(end),
            (Ok(()), Told::End) => Stop::Finished,
            (Ok(()), Told::Goodbye) => Stop::Goodbye,
        })
    }

    /// Sends what is held and flushes; ready when that is done or the sink cannot take it.
    pub(super) fn poll_deliver(&mut self, cx: &mut Context<'_>, sink: &mut dyn Leg) -> Poll<()> {
        if self.broken || ready!(self.poll_send_held(cx, sink)).is_err() {
            return Poll::Ready(());
        }
        sink.poll_flush(cx).map(|_result| ())
    }

    /// Lets go of the block of a small chunk, which may have to wait.
    fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true)
            && let Some(chunk) = &mut self.held
        {
            chunk.data = without_its_block(std::mem::take(&mut chunk.data), SMALL);
        }
    }

    fn poll_send_held(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn Leg,
    ) -> Poll<Result<(), End>> {
        while let Some(chunk) = &mut self.held {
            ready!(sink.poll_ready(cx))?;
            let piece = if chunk.data.len() > PIECE {
                Chunk { kind: chunk.kind, data: chunk.data.split_to(PIECE), last: false }
            } else {
                let Some(chunk) = self.held.take() else { break };
                chunk
            };
            self.traffic.bytes += piece.data.len() as u64;
            self.traffic.messages += u64::from(piece.last);
            self.flushed = false;
            sink.send(cx, piece)?;
        }
        Poll::Ready(Ok(()))
    }
}
