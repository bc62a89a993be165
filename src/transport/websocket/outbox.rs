//! What goes to the client of a WebSocket: chunks become frames in the wire, in their order, and
//! pongs get in between two of them.
//!
//! What is in the wire cannot be overtaken any more. To a client that takes its data slowly, frames
//! are small, and get into the wire one by one as it takes them.

use std::time::Duration;

use bytes::Bytes;

use super::codec::{Opcode, Writer, control_frame};
use crate::protocol::Chunk;
use crate::transport::wire::{STAGE, Wire};

/// The most payload of a frame for a slow client, and what may wait in the wire for it.
const PIECE: usize = 16 * 1024;
/// A client is slow if it takes nothing more for so long. A faster one has taken all that may wait
/// in the wire before that is noticed.
const SLOW: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    writer: Writer,
    /// What is left of a chunk that is cut. In a box, as few clients are slow.
    rest: Option<Box<Chunk>>,
    /// A ping that has not been answered; a later one takes its place (RFC 6455, section 5.5.3).
    ping: Option<Bytes>,
    is_slow: bool,
}

impl Outbox {
    /// Notes that the client took nothing for so long, before it took some data.
    pub(super) fn has_waited(&mut self, time: Duration) {
        self.is_slow = time >= SLOW;
    }

    /// Whether another chunk may be put into it.
    pub(super) fn has_room(&self, wire: &impl Wire, is_blocked: bool) -> bool {
        self.rest.is_none() && wire.staged() < self.limit(is_blocked)
    }

    /// Whether the wire is to be written before more is put into it.
    pub(super) fn is_full(&self, wire: &impl Wire) -> bool {
        !self.has_room(wire, false)
    }

    /// Whether something is left that [`Outbox::fill`] would stage.
    pub(super) fn is_waiting(&self) -> bool {
        self.rest.is_some() || self.ping.is_some()
    }

    /// Takes a chunk. Where there is no room, all that is before it gets into the wire.
    pub(super) fn put(&mut self, wire: &mut impl Wire, chunk: Chunk) {
        self.stage_rest(wire);
        if self.is_slow && chunk.data.len() > PIECE {
            self.rest = Some(Box::new(chunk));
        } else {
            self.stage(wire, &chunk);
        }
    }

    /// Takes a ping. Its answer is the next frame for which there is room.
    pub(super) fn put_ping(&mut self, payload: &[u8]) {
        // A copy: it may have to wait, and must not keep the block it is in.
        self.ping = Some(Bytes::copy_from_slice(payload));
    }

    /// Stages a ping of the node's own.
    pub(super) fn stage_ping(wire: &mut impl Wire) {
        wire.stage(&control_frame(Opcode::Ping, &[]));
    }

    /// Stages the goodbye, which is the last frame.
    pub(super) fn stage_close(&mut self, wire: &mut impl Wire, payload: &[u8]) {
        self.stage_rest(wire);
        self.ping = None;
        wire.stage(&control_frame(Opcode::Close, payload));
    }

    /// Stages what there is room for.
    pub(super) fn fill(&mut self, wire: &mut impl Wire, is_blocked: bool) {
        // A client that pings and takes no answers must not make them pile up.
        if wire.staged() < self.limit(is_blocked)
            && let Some(payload) = self.ping.take()
        {
            wire.stage(&control_frame(Opcode::Pong, &payload));
        }
        if wire.staged() < PIECE
            && let Some(mut rest) = self.rest.take()
        {
            if rest.data.len() > PIECE {
                let data = rest.data.split_to(PIECE);
                self.stage(wire, &Chunk { kind: rest.kind, data, last: false });
                self.rest = Some(rest);
            } else {
                self.stage(wire, &rest);
            }
        }
    }

    fn limit(&self, is_blocked: bool) -> usize {
        if is_blocked || self.is_slow { PIECE } else { STAGE }
    }

    fn stage_rest(&mut self, wire: &mut impl Wire) {
        if let Some(rest) = self.rest.take() {
            self.stage(wire, &rest);
        }
    }

    fn stage(&mut self, wire: &mut impl Wire, chunk: &Chunk) {
        let header = self.writer.header(chunk);
        wire.stage(header.as_ref());
        wire.stage(&chunk.data);
    }
}
