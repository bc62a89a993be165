//! The two queues between the task of a gateway and that of one of its apps: bounded, and shared
//! by these two tasks only.
//!
//! *Down* leads from the gateway to the app, *up* from the app to the gateway.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::hub::Room;
use crate::lock::lock;
use crate::protocol::{Close, FRAME_OVERHEAD, without_its_block};

/// An app has to wait when more than this many bytes of it wait for its gateway.
const UP_LIMIT: usize = 128 * 1024;
/// The gateway is notified of what an app has taken when that is as large a part of the backlog: a
/// quarter of its window.
const NOTICES_PER_BACKLOG: usize = 8;
/// What each piece counts for besides its payload.
const OVERHEAD: usize = FRAME_OVERHEAD;
/// Payload of fewer bytes is copied before it waits.
const SMALL: usize = 8 * 1024;
/// The same where much waits already, and so for longer.
const SMALL_IN_OVERFLOW: usize = 32 * 1024;

/// See the module.
pub(super) struct Lane {
    room: Room,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    down: Down,
    up: Upwards,
}

#[derive(Default)]
struct Down {
    queue: Queue,
    /// Bytes of the queue that are in the overflow of the node.
    over: usize,
    /// The overflow knows them.
    entered: bool,
    /// What the app has taken in all.
    total: u64,
    /// Why the gateway sends nothing more to the app.
    end: Option<Goodbye>,
    /// The gateway's task waits until there is room.
    gateway_waits: bool,
    /// What the app has taken, and the gateway does not know of.
    taken: usize,
    /// The app's task, which waits for data.
    app: Option<Waker>,
}

#[derive(Default)]
struct Upwards {
    queue: Queue,
    /// The gateway is gone: data of the app is dropped.
    deaf: bool,
    /// The app is gone: it neither sends nor takes data.
    app_gone: bool,
    /// The gateway's task was woken for data of the app.
    announced: bool,
    /// The app's task, which waits for room.
    app: Option<Waker>,
}

/// How an app's tunnel ends from above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// The gateway has left in order.
    Left,
    /// The gateway was lost.
    Lost,
    /// The app is closed for this reason.
    Closed(Close),
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    size: usize,
}

impl Queue {
    fn push(&mut self, piece: Bytes, small: usize) {
        let piece = without_its_block(piece, small);
        self.size += piece.len() + OVERHEAD;
        self.pieces.push_back(piece);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.size -= piece.len() + OVERHEAD;
        Some(piece)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What came of handing data to an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is in the queue.
    Taken,
    /// It is, and the app now uses the overflow of the node.
    Over,
    /// It is, and there should not be more.
    Full,
    /// The app is gone or going, and gets nothing more.
    Gone,
}

/// What the gateway's task finds in a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Up {
    /// Data of the app; whether there is more will show.
    Data(Bytes),
    /// Nothing now. The gateway's task is woken when there is, or when the app has taken much.
    Nothing,
    /// The app is gone, and all it had sent has been taken.
    Gone,
}

impl Lane {
    /// For an app that has just been attached.
    pub(super) fn new(room: Room) -> Self {
        Self { room, state: Mutex::default() }
    }

    /// Data for the app.
    pub(super) fn push_down(&self, data: Bytes) -> Pushed {
        let mut state = self.lock();
        if state.up.app_gone || state.down.end.is_some() {
            return Pushed::Gone;
        }
        let small = if state.down.over > 0 { SMALL_IN_OVERFLOW } else { SMALL };
        state.down.queue.push(data, small);
        self.account(&mut state.down);
        let pushed = if state.down.over == 0 {
            Pushed::Taken
        } else if !std::mem::replace(&mut state.down.entered, true) {
            Pushed::Over
        } else if self.is_full(&state.down) {
            Pushed::Full
        } else {
            Pushed::Taken
        };
        wake(state, |state| state.down.app.take());
        pushed
    }

    /// Whether more may be pushed. If not, the gateway's task is woken when the app has taken enough;
    /// other apps may make room, too.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.lock();
        let has_room = state.up.app_gone || state.down.end.is_some() || !self.is_full(&state.down);
        state.down.gateway_waits = !has_room;
        has_room
    }

    /// What the app has to do with the overflow of the node.
    pub(super) fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { over: state.down.over, taken: state.down.total }
    }

    fn is_full(&self, down: &Down) -> bool {
        down.over > 0 && down.over > self.room.overflow.share()
    }

    /// Accounts for what has become of the queue.
    fn account(&self, down: &mut Down) {
        let over = down.queue.size.saturating_sub(self.room.backlog);
        if over != down.over {
            self.room.overflow.change(down.over, over);
            down.over = over;
            down.entered &= over > 0;
        }
    }

    /// Nothing more goes to the app; what is in the queue still does, unless it is to end at once.
    /// False if that has been said before, or the app is gone.
    pub(super) fn end(&self, why: Goodbye, at_once: bool) -> bool {
        let mut state = self.lock();
        if state.down.end.is_some() || state.up.app_gone {
            return false;
        }
        state.down.end = Some(why);
        if at_once {
            state.down.queue.clear();
            self.account(&mut state.down);
        }
        wake(state, |state| state.down.app.take());
        true
    }

    /// What the app has sent.
    pub(super) fn take_up(&self) -> Up {
        let mut state = self.lock();
        let Some(data) = state.up.queue.pop() else {
            if state.up.app_gone {
                return Up::Gone;
            }
            state.up.announced = false;
            return Up::Nothing;
        };
        // Half empty is soon enough: the app then has more than one piece to send.
        if state.up.queue.size <= UP_LIMIT / 2 {
            wake(state, |state| state.up.app.take());
        }
        Up::Data(data)
    }

    /// The gateway takes nothing more from the app: its data is dropped.
    pub(super) fn refuse_up(&self) {
        let mut state = self.lock();
        state.up.deaf = true;
        state.up.queue.clear();
        wake(state, |state| state.up.app.take());
    }

    /// What the app has taken since this was asked last, if that is worth telling the gateway.
    pub(super) fn take_taken(&self) -> Option<usize> {
        let taken = &mut self.lock().down.taken;
        (*taken >= self.room.backlog / NOTICES_PER_BACKLOG).then(|| std::mem::take(taken))
    }

    /// The app's task takes what is for it.
    pub(super) fn poll_down(&self, cx: &Context<'_>) -> Poll<Result<Below, Goodbye>> {
        let mut state = self.lock();
        if let Some(data) = state.down.queue.pop() {
            self.account(&mut state.down);
            let tell = state.down.gateway_waits && !self.is_full(&state.down);
            if tell {
                state.down.gateway_waits = false;
            }
            let size = data.len() + OVERHEAD;
            state.down.taken += size;
            state.down.total += size as u64;
            let announce = state.down.taken >= self.room.backlog / NOTICES_PER_BACKLOG
                && !std::mem::replace(&mut state.up.announced, true);
            return Poll::Ready(Ok(Below { data, tell, announce }));
        }
        if let Some(why) = state.down.end {
            return Poll::Ready(Err(why));
        }
        remember(&mut state.down.app, cx);
        Poll::Pending
    }

    /// Ready when the app has taken everything and there will be no more.
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<Goodbye> {
        let mut state = self.lock();
        match state.down.end {
            Some(why) if state.down.queue.pieces.is_empty() => Poll::Ready(why),
            Some(_) | None => {
                remember(&mut state.down.app, cx);
                Poll::Pending
            }
        }
    }

    /// Ready when the app may send more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.up.queue.size < UP_LIMIT {
            return Poll::Ready(());
        }
        remember(&mut state.up.app, cx);
        Poll::Pending
    }

    /// Queues data of the app. Returns whether the gateway's task has to be woken.
    pub(super) fn push_up(&self, data: Bytes) -> bool {
        let mut state = self.lock();
        if state.up.app_gone || state.up.deaf {
            return false;
        }
        state.up.queue.push(data, SMALL);
        !std::mem::replace(&mut state.up.announced, true)
    }

    /// The app is gone. Returns whether the gateway's task has to be woken.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.lock();
        if std::mem::replace(&mut state.up.app_gone, true) {
            return false;
        }
        state.down.queue.clear();
        self.account(&mut state.down);
        let gateway_waits = std::mem::take(&mut state.down.gateway_waits);
        !std::mem::replace(&mut state.up.announced, true) || gateway_waits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let down = &mut self.state.get_mut().unwrap_or_else(PoisonError::into_inner).down;
        self.room.overflow.change(down.over, 0);
    }
}

/// What an app has to do with the overflow of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Bytes of it that are in use for the app.
    pub(super) over: usize,
    /// What the app has taken in all.
    pub(super) taken: u64,
}

/// Data for an app.
#[derive(Debug)]
pub(super) struct Below {
    pub(super) data: Bytes,
    /// The gateway's task has to be woken, as there is room.
    pub(super) tell: bool,
    /// The gateway has to be notified of how much was taken.
    pub(super) announce: bool,
}

/// Wakes a task without holding the lock.
fn wake(mut state: MutexGuard<'_, State>, who: impl FnOnce(&mut State) -> Option<Waker>) {
    if let Some(waker) = who(&mut state) {
        drop(state);
        waker.wake();
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
