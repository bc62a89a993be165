//! A connection as bytes in and bytes out, with TLS or without, below any framing.
//!
//! Received data is appended to the inbox of the reader; data to be sent is staged, and written in as
//! few calls as possible. The buffers in between are [`blocks`] that a connection has only while
//! there is something in them: an idle connection keeps none.

pub(super) mod blocks;
mod plain;
mod secure;
mod unanswered;

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

pub(super) use self::plain::Plain;
pub(super) use self::secure::Secure;

/// The inbox is not filled beyond this many bytes; what is left waits in the kernel.
pub(super) const FILL: usize = 64 * 1024;
/// With this many bytes staged, they should be written before more is staged.
pub(super) const STAGE: usize = 64 * 1024;

/// One connection.
pub(super) trait Wire: Send {
    /// Appends what has come in, as much as there is up to [`FILL`]; 0 bytes: the other end has
    /// closed its direction in order.
    fn poll_fill(&mut self, cx: &mut Context<'_>, inbox: &mut BytesMut) -> Poll<io::Result<usize>>;

    /// Takes bytes to be sent. They may wait for more; [`Wire::poll_drain`] sends them all.
    fn stage(&mut self, data: &[u8]);

    /// How many bytes are staged and not written, about.
    fn staged(&self) -> usize;

    /// Ready when everything staged has been written.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends this direction in order, after the staged data.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends this direction after the staged data, so that it does not look complete, if the wire can
    /// express that: TLS sends no `close_notify`.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }

    /// Whether the connection is gone, although nothing is read or written: to be asked where the
    /// other end has closed its direction.
    fn is_gone(&self, cx: &mut Context<'_>) -> bool;

    /// Has the system ask for signs of life and give the connection up without them.
    fn watch(&self, watch: Watch);

    /// Whether what was sent gets no answer at all, not even that it has to wait. False where the
    /// system does not say.
    fn is_unanswered(&self) -> bool;
}

/// How the system watches over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// Silent for this long, and as often from then on, the other end is asked for a sign of life.
    pub(super) every: Duration,
    /// Without any for this long, the connection is given up; `None`: not for data that waits.
    pub(super) give_up: Option<Duration>,
}

/// Questions without an answer that end a connection if its [`Watch`] sets no time.
const QUESTIONS: u32 = 3;
/// The system counts the time between questions in seconds.
const SHORTEST: Duration = Duration::from_secs(1);

/// What the system takes of a connection beyond what it has sent. More would only wait there, where
/// no pong can overtake it.
const UNSENT: u32 = 64 * 1024;

/// Sets up a new connection.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    // Small messages must not wait for the acknowledgement of those before them.
    tcp.set_nodelay(true)?;
    // Without it, a pong waits longer for the data before it, and nothing else changes.
    let _bounded = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
    Ok(())
}

/// What a wire is laid over.
pub(super) trait Line: AsyncRead + AsyncWrite + Send + Unpin {
    /// See [`Wire::watch`]. Nothing to do where a loss is always noticed.
    fn watch(&self, _watch: Watch) {}

    /// See [`Wire::is_unanswered`].
    fn is_unanswered(&self) -> bool {
        false
    }

    /// See [`Wire::is_gone`].
    fn is_gone(&self, cx: &mut Context<'_>) -> bool;
}

impl Line for TcpStream {
    fn watch(&self, watch: Watch) {
        let socket = SockRef::from(self);
        let every = watch.every.max(SHORTEST);
        let keepalive =
            TcpKeepalive::new().with_time(every).with_interval(every).with_retries(QUESTIONS);
        // A connection that cannot be watched works all the same; other limits bound it.
        let _kept = socket.set_tcp_keepalive(&keepalive);
        let _bound = socket.set_tcp_user_timeout(watch.give_up);
    }

    fn is_unanswered(&self) -> bool {
        unanswered::is_unanswered(self)
    }

    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        hung_up(cx, self.ready(Interest::WRITABLE))
    }
}

impl Line for UnixStream {
    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        hung_up(cx, self.ready(Interest::WRITABLE))
    }
}

/// A connection that is gone in both directions is always ready to be written to.
fn hung_up(cx: &mut Context<'_>, ready: impl Future<Output = io::Result<Ready>>) -> bool {
    match pin!(ready).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_write_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

#[cfg(test)]
impl Line for tokio::io::DuplexStream {
    fn is_gone(&self, _cx: &mut Context<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_system_is_told_how_to_watch() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let give_up = Some(Duration::from_millis(1500));
        tcp.watch(Watch { every: Duration::from_millis(500), give_up });
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().expect("told"));
        assert_eq!(socket.tcp_keepalive_time().expect("told"), SHORTEST);
        assert_eq!(socket.tcp_keepalive_interval().expect("told"), SHORTEST);
        assert_eq!(socket.tcp_user_timeout().expect("told"), give_up);
        tcp.watch(Watch { every: Duration::from_secs(20), give_up: None });
        assert_eq!(socket.tcp_keepalive_time().expect("told"), Duration::from_secs(20));
        assert_eq!(socket.tcp_user_timeout().expect("told"), None);
    }
}
