//! An HTTP/2 connection between two nodes, from either end of it: its settings, whether the other
//! node is still there, and how far away it is.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use h2::{Ping, PingPong, RecvStream, client, server};
use tokio::time::{Instant, Sleep, sleep};
use tracing::debug;

use super::call::SEND_BUFFER;
use super::pieces::Pieces;
use super::tls::{BridgeStream, Heard};
use super::{CONNECTION_WINDOW, FRAME_SIZE, KEEPALIVE_INTERVAL, MAX_STREAMS, STEP};

/// The window of a tunnel at first, and while the other node is near, in bytes.
const WINDOW: u32 = 1 << 20;
/// The largest window of a tunnel, in bytes: it bounds what a stalled one keeps in the memory of a
/// node. As h2 says that there is room again when a third of it has been taken, no less than 2 MiB
/// are always under way, which is 100 MiB/s at a round trip of 20 ms.
const MAX_WINDOW: u32 = 3 << 20;
/// What a tunnel should be able to move per second whatever the round trip, up to [`MAX_WINDOW`].
const SPEED: u64 = 100 << 20;
/// So many round trips in a row must be long before the windows grow: one may be long because a node
/// is busy.
const ROUND_TRIPS: usize = 3;

/// What sends requests to the other node.
pub(super) type Requests = client::SendRequest<Pieces>;
/// A request of the other node, and what answers it.
pub(super) type Request = (http::Request<RecvStream>, server::SendResponse<Pieces>);

/// Begins a connection that this node has opened.
pub(super) async fn open(stream: BridgeStream) -> Result<Requests, h2::Error> {
    let heard = stream.heard();
    let (requests, mut connection) = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake(stream)
        .await?;
    let mut watch = Watch::new(connection.ping_pong().expect("asked for once"), heard);
    tokio::spawn(poll_fn(move |cx| {
        match watch.poll(cx) {
            Poll::Ready(Seen::Far(window)) => {
                watch.windows_are(window, &connection.set_initial_window_size(window));
            }
            // The streams end with the connection.
            Poll::Ready(Seen::Silent) => return Poll::Ready(()),
            Poll::Pending => {}
        }
        connection.poll_unpin(cx).map(|ended| match ended {
            Ok(()) => {}
            Err(error) => debug!(%error, "a connection to another node has failed"),
        })
    }));
    Ok(requests)
}

/// A connection that another node has opened.
pub(super) struct Accepted {
    connection: server::Connection<BridgeStream, Pieces>,
    watch: Watch,
}

impl Accepted {
    pub(super) async fn new(stream: BridgeStream) -> Result<Self, h2::Error> {
        let heard = stream.heard();
        let mut connection = server::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS)
            .handshake(stream)
            .await?;
        let watch = Watch::new(connection.ping_pong().expect("asked for once"), heard);
        Ok(Self { connection, watch })
    }

    /// The next request, `None` at the end of the connection. All calls on the connection go on only
    /// while this is polled.
    pub(super) async fn request(&mut self) -> Option<Result<Request, h2::Error>> {
        poll_fn(|cx| {
            match self.watch.poll(cx) {
                Poll::Ready(Seen::Far(window)) => {
                    let set = self.connection.set_initial_window_size(window);
                    self.watch.windows_are(window, &set);
                }
                Poll::Ready(Seen::Silent) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            self.connection.poll_accept(cx)
        })
        .await
    }
}

/// What a [`Watch`] has seen.
enum Seen {
    /// The round trip is so long that tunnels need windows of so many bytes.
    Far(u32),
    /// The other node has given no sign of life.
    Silent,
}

/// Asks the other node for signs of life, and measures how long they take.
struct Watch {
    pings: PingPong,
    /// Something else has come from it.
    heard: Heard,
    /// When it was asked.
    asked: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    distance: Distance,
}

impl Watch {
    fn new(pings: PingPong, heard: Heard) -> Self {
        let timer = Box::pin(sleep(Duration::ZERO));
        Self { pings, heard, asked: None, timer, distance: Distance::default() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        loop {
            if let Some(asked) = self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = None;
                        let window = self.distance.measured(asked.elapsed());
                        // The first questions come one behind the other.
                        let is_known = self.distance.is_known();
                        self.wait(if is_known { KEEPALIVE_INTERVAL } else { Duration::ZERO });
                        if let Some(window) = window {
                            return Poll::Ready(Seen::Far(window));
                        }
                    }
                    // The connection has ended, and says so itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.poll_unpin(cx));
                        // Much data may be before the answer.
                        if !self.heard.take() {
                            return Poll::Ready(Seen::Silent);
                        }
                        self.wait(STEP);
                    }
                }
            } else {
                ready!(self.timer.poll_unpin(cx));
                self.heard.take();
                if self.pings.send_ping(Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                self.asked = Some(Instant::now());
                self.wait(STEP);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time);
    }

    /// Notes whether the windows were changed; if not, that is tried again.
    fn windows_are(&mut self, window: u32, set: &Result<(), h2::Error>) {
        if set.is_ok() {
            self.distance.window = window;
        }
    }
}

/// How far away the other node is.
struct Distance {
    /// The last [`ROUND_TRIPS`].
    round_trips: VecDeque<Duration>,
    /// What the windows of tunnels are.
    window: u32,
}

impl Default for Distance {
    fn default() -> Self {
        Self { round_trips: VecDeque::with_capacity(ROUND_TRIPS), window: WINDOW }
    }
}

impl Distance {
    fn is_known(&self) -> bool {
        self.round_trips.len() == ROUND_TRIPS
    }

    /// Notes a round trip, and gives the windows that it takes if they must grow.
    fn measured(&mut self, round_trip: Duration) -> Option<u32> {
        if self.is_known() {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(round_trip);
        let window = window_for(*self.round_trips.iter().min()?);
        (self.is_known() && window > self.window).then_some(window)
    }
}

/// The window of a tunnel to a node that is so far away, in bytes.
fn window_for(round_trip: Duration) -> u32 {
    let under_way = u128::from(SPEED) * round_trip.as_micros() / 1_000_000;
    // A third of it may have been taken before the other node is told so.
    let window = under_way * 3 / 2;
    u32::try_from(window).map_or(MAX_WINDOW, |window| window.clamp(WINDOW, MAX_WINDOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_with_the_round_trip_up_to_a_limit() {
        assert_eq!(window_for(Duration::from_micros(300)), WINDOW);
        assert_eq!(window_for(Duration::from_millis(10)), (100 << 20) / 100 * 3 / 2);
        assert_eq!(window_for(Duration::from_millis(20)), MAX_WINDOW);
        assert_eq!(window_for(Duration::from_hours(1)), MAX_WINDOW);
    }

    #[test]
    fn one_long_round_trip_among_short_ones_changes_nothing() {
        let mut distance = Distance::default();
        let mut after = |milliseconds| {
            let window = distance.measured(Duration::from_millis(milliseconds));
            distance.window = window.unwrap_or(distance.window);
            window
        };
        assert_eq!([20, 20, 1, 20, 20].map(&mut after), [None; 5]);
        assert_eq!(after(20), Some(MAX_WINDOW));
        // They never shrink: data may be under way.
        assert_eq!([20, 1, 1, 1].map(&mut after), [None; 4]);
    }
}
