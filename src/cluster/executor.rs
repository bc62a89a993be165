//! Where hyper's tasks of the bridge run: on tokio, but for how they are woken.
//!
//! The task of hyper that sends a call's body wakes itself for each message: it asks h2 for room,
//! and h2 tells it at once that there is some. A task of tokio that is woken while it runs goes to
//! the end of the queue, and another thread is woken to take it from there. That would be a quarter
//! of what a small message costs between two nodes. Here, such a task goes on at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;

/// A future that wakes itself more often than this in a row lets others run.
const ROUNDS: usize = 4;

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const RUNNING_AND_WOKEN: u8 = 2;

/// Runs futures on tokio; one that is woken while it runs is polled again at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtOnce;

impl<F> Executor<F> for AtOnce
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        tokio::spawn(Task::new(future));
    }
}

struct Task<F> {
    future: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Default)]
struct State {
    /// One of the constants above.
    at: AtomicU8,
    /// The task of tokio.
    outer: AtomicWaker,
}

impl<F> Task<F> {
    fn new(future: F) -> Self {
        let state = Arc::<State>::default();
        let waker = Waker::from(Arc::clone(&state));
        Self { future: Box::pin(future), state, waker }
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let marked = self.at.compare_exchange(
            RUNNING,
            RUNNING_AND_WOKEN,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if marked == Err(WAITING) {
            self.outer.wake();
        }
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.state.outer.register(cx.waker());
        for _ in 0..ROUNDS {
            this.state.at.store(RUNNING, Ordering::Release);
            let polled = this.future.as_mut().poll(&mut Context::from_waker(&this.waker));
            let woken = this.state.at.swap(WAITING, Ordering::AcqRel) == RUNNING_AND_WOKEN;
            if polled.is_ready() || !woken {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Outer(AtomicUsize);

    impl Wake for Outer {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often a future is polled, and its task woken, that wakes itself so often.
    fn polled_and_woken(times: usize) -> (usize, usize) {
        let outer = Arc::<Outer>::default();
        let polls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&polls);
        let mut task = Task::new(poll_fn(move |cx| {
            if counted.fetch_add(1, Ordering::Relaxed) < times {
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        }));
        let waker = Waker::from(Arc::clone(&outer));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        (polls.load(Ordering::Relaxed), outer.0.load(Ordering::Relaxed))
    }

    #[test]
    fn who_wakes_itself_goes_on_without_its_task() {
        assert_eq!(polled_and_woken(0), (1, 0));
        assert_eq!(polled_and_woken(1), (2, 0));
    }

    #[test]
    fn who_wakes_itself_again_and_again_lets_others_run() {
        assert_eq!(polled_and_woken(usize::MAX), (ROUNDS, 1));
    }

    /// Each wake is followed by a poll, whenever it comes: while the future runs, or between.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        const WAKES: usize = 20_000;
        let (ended, end) = oneshot::channel();
        let (given, mut wakers) = tokio::sync::mpsc::channel::<Waker>(1);
        thread::spawn(move || {
            while let Some(waker) = wakers.blocking_recv() {
                waker.wake();
            }
        });
        AtOnce.execute(async move {
            for _ in 0..WAKES {
                let mut is_given = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut is_given, true) {
                        return Poll::Ready(());
                    }
                    given.try_send(cx.waker().clone()).expect("there is room");
                    Poll::Pending
                })
                .await;
            }
            ended.send(()).expect("it is waited for");
        });
        timeout(Duration::from_mins(1), end).await.expect("no wake is lost").expect("no panic");
    }
}
