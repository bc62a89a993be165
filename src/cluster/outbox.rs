//! The queue between a tunnel's leg and the gRPC call that carries it: one writer, one reader,
//! bounded in bytes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use nymea_remoteproxy_proto::bridge::v1::Frame;

/// The writer is told to wait beyond this many bytes of payload.
const LIMIT: usize = 128 * 1024;
/// What a frame counts for besides its payload.
const OVERHEAD: usize = 64;

#[derive(Default)]
struct State {
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
    closed: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The writing end. Dropping it ends the stream behind what is in it.
pub(super) struct Outbox(Arc<Mutex<State>>);

/// The reading end: what tonic sends. Public as the generated trait shows its type.
pub struct Outgoing(Arc<Mutex<State>>);

pub(super) fn outbox() -> (Outbox, Outgoing) {
    let state = Arc::default();
    (Outbox(Arc::clone(&state)), Outgoing(state))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Each change is a single step: what a panicking thread left behind is in order.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Ready when there is room; an error when nobody reads any more.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        self.poll_below(cx, LIMIT)
    }

    /// Ready when everything has been taken.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        self.poll_below(cx, 1)
    }

    fn poll_below(&self, cx: &mut Context<'_>, limit: usize) -> Poll<Result<(), ()>> {
        let mut state = lock(&self.0);
        if state.reader_gone {
            return Poll::Ready(Err(()));
        }
        if state.bytes < limit {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Puts a frame in; `payload` is its size in bytes.
    pub(super) fn push(&self, frame: Frame, payload: usize) {
        let mut state = lock(&self.0);
        if state.closed || state.reader_gone {
            return;
        }
        let bytes = payload + OVERHEAD;
        state.bytes += bytes;
        state.frames.push_back((frame, bytes));
        if let Some(reader) = state.reader.take() {
            drop(state);
            reader.wake();
        }
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        let mut state = lock(&self.0);
        state.closed = true;
        if let Some(reader) = state.reader.take() {
            drop(state);
            reader.wake();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut state = lock(&self.0);
        let Some((frame, bytes)) = state.frames.pop_front() else {
            if state.closed {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        state.bytes -= bytes;
        // Half empty is soon enough: the writer comes with more than one frame then.
        if state.bytes <= LIMIT / 2
            && let Some(writer) = state.writer.take()
        {
            drop(state);
            writer.wake();
        }
        Poll::Ready(Some(frame))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.reader_gone = true;
        state.frames.clear();
        if let Some(writer) = state.writer.take() {
            drop(state);
            writer.wake();
        }
    }
}
