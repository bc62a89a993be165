//! A connection as bytes in and bytes out, with TLS or without, below any framing.
//!
//! What comes in is appended to the inbox of whoever reads; what goes out is staged, and leaves in
//! as few writes as possible. The buffers in between are [`blocks`] that a connection has only
//! while there is something in them: an idle connection keeps none.

pub(super) mod blocks;
mod plain;
mod secure;

use std::io;
use std::task::{Context, Poll};

use bytes::BytesMut;

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

    /// Ends the connection in order, behind what is staged.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
