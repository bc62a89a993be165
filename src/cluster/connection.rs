//! An HTTP/2 connection between two nodes, from either end of it: its settings, and the task that
//! carries it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use h2::{RecvStream, client, server};

use super::budget::Budget;
use super::call::SEND_BUFFER;
use super::failure::{Failure, Watched};
use super::pieces::Pieces;
use super::tls::BridgeStream;
use super::watch::{Health, Seen, WINDOW, Watch};
use super::{CONNECTION_WINDOW, FRAME_SIZE, MAX_STREAMS};

/// Streams that were reset and are still known: those that the other node has reset before they
/// were looked at, and those that this node has reset lately. Limits of h2 against strangers, at
/// which it ends the whole connection; nodes are authenticated, and each stream is some client that
/// has left.
const RESET_STREAMS: usize = MAX_STREAMS as usize;
/// What h2 lets the short frames of a connection add up to before it ends the connection; each
/// counts until it is taken. The windows of the streams bound them already.
const SHORT_FRAMES: usize = usize::MAX;

/// The handle that sends requests to the other node.
pub(super) type Requests = client::SendRequest<Pieces>;
/// A request of the other node, and what answers it.
pub(super) type Request = (http::Request<RecvStream>, server::SendResponse<Pieces>);

/// A connection that this node has opened.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) requests: Requests,
    pub(super) health: Arc<Health>,
    pub(super) watched: Watched,
}

/// Begins a connection that this node has opened.
pub(super) async fn open(
    stream: BridgeStream,
    watched: Watched,
    budget: &Arc<Budget>,
) -> Result<Opened, h2::Error> {
    let (heard, window) = (stream.heard(), WINDOW.min(budget.share()));
    let (requests, mut connection) = client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(None)
        .data_frame_budget(SHORT_FRAMES)
        .enable_push(false)
        .handshake(stream)
        .await?;
    let health = Arc::<Health>::default();
    let pings = connection.ping_pong().expect("asked for once");
    budget.follow(&health);
    let watch = Watch::new(pings, heard, Arc::clone(&health));
    let mut carried = Carried::new(watch, watched.clone(), window, Arc::clone(budget));
    tokio::spawn(poll_fn(move |cx| {
        if carried.poll_watch(cx).is_ready() {
            return Poll::Ready(());
        }
        carried.adjust(|window| connection.set_initial_window_size(window));
        let polled = Pin::new(&mut connection).poll(cx);
        // A reason to postpone a change may have ended now.
        if polled.is_pending() && carried.adjust(|it| connection.set_initial_window_size(it)) {
            cx.waker().wake_by_ref();
        }
        polled.map(|ended| {
            if let Err(error) = ended {
                carried.failed(&Failure::Http(error));
            }
        })
    }));
    Ok(Opened { requests, health, watched })
}

/// A connection that another node has opened.
pub(super) struct Accepted {
    connection: server::Connection<BridgeStream, Pieces>,
    carried: Carried,
}

impl Accepted {
    pub(super) async fn new(
        stream: BridgeStream,
        watched: Watched,
        budget: &Arc<Budget>,
    ) -> Result<Self, h2::Error> {
        let (heard, window) = (stream.heard(), WINDOW.min(budget.share()));
        let mut connection = server::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(SHORT_FRAMES)
            .handshake(stream)
            .await?;
        let pings = connection.ping_pong().expect("asked for once");
        let health = Arc::<Health>::default();
        budget.follow(&health);
        let watch = Watch::new(pings, heard, health);
        let carried = Carried::new(watch, watched, window, Arc::clone(budget));
        Ok(Self { connection, carried })
    }

    /// The next request, `None` at the end of the connection, which is recorded. All calls on the
    /// connection go on only while this is polled.
    pub(super) async fn request(&mut self) -> Option<Request> {
        let Self { connection, carried } = self;
        poll_fn(|cx| {
            if carried.poll_watch(cx).is_ready() {
                return Poll::Ready(None);
            }
            carried.adjust(|window| connection.set_initial_window_size(window));
            let polled = connection.poll_accept(cx);
            // A reason to postpone a change may have ended now.
            if polled.is_pending() && carried.adjust(|it| connection.set_initial_window_size(it)) {
                cx.waker().wake_by_ref();
            }
            polled.map(|request| match request? {
                Ok(request) => Some(request),
                Err(error) => {
                    carried.failed(&Failure::Http(error));
                    None
                }
            })
        })
        .await
    }
}

/// The tasks of both ends of a connection besides data: pings and windows.
struct Carried {
    watch: Watch,
    watched: Watched,
    budget: Arc<Budget>,
    /// Tunnels when the connection was polled last.
    tunnels: usize,
    /// The windows of its tunnels, and those that they should have if memory were no matter.
    window: u32,
    wanted: u32,
}

impl Carried {
    fn new(watch: Watch, watched: Watched, window: u32, budget: Arc<Budget>) -> Self {
        Self { watch, watched, budget, tunnels: 0, window, wanted: WINDOW }
    }

    /// Ready when the connection has to end, as the other node is silent. To be polled before the
    /// connection.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tunnels = self.watched.tunnels();
        match self.watch.poll(cx) {
            Poll::Ready(Seen::Far(window)) => {
                self.wanted = window;
                // The watch has not registered itself.
                cx.waker().wake_by_ref();
            }
            Poll::Ready(Seen::Silent) => {
                self.failed(&Failure::Silent);
                return Poll::Ready(());
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Gives tunnels the windows that they should have; true if that is a change. `set` fails while
    /// an earlier change is under way.
    fn adjust(&mut self, set: impl FnOnce(u32) -> Result<(), h2::Error>) -> bool {
        let window = self.wanted.min(self.budget.share());
        let changes = window != self.window && set(window).is_ok();
        if changes {
            self.window = window;
        }
        changes
    }

    fn failed(&self, failure: &Failure) {
        self.watched.failed(failure, self.tunnels);
    }
}
