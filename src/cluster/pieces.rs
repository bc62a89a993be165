//! The content of a DATA frame of HTTP/2: a sequence of pieces, none of them copied.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

/// Bytes in several pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    parts: VecDeque<Bytes>,
    bytes: usize,
    /// Counts this frame as unsent while it exists.
    unsent: Option<Unsent>,
}

/// Frames of a call that were handed to HTTP/2 and have not gone out yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<Frames>);

#[derive(Debug, Default)]
struct Frames {
    count: AtomicUsize,
    /// The task that waits until there are fewer.
    waiting: AtomicWaker,
}

impl Unsent {
    /// Ready when there are fewer frames than this.
    pub(super) fn poll_fewer_than(&self, limit: usize, cx: &Context<'_>) -> Poll<()> {
        if self.count() < limit {
            return Poll::Ready(());
        }
        self.0.waiting.register(cx.waker());
        // One may have gone out before that.
        if self.count() < limit { Poll::Ready(()) } else { Poll::Pending }
    }

    fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(Unsent(frames)) = &self.unsent {
            frames.count.fetch_sub(1, Ordering::AcqRel);
            frames.waiting.wake();
        }
    }
}

impl Pieces {
    /// Counts them among these until they have gone out.
    pub(super) fn count_in(&mut self, unsent: &Unsent) {
        if self.unsent.is_none() {
            unsent.0.count.fetch_add(1, Ordering::AcqRel);
            self.unsent = Some(unsent.clone());
        }
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.parts.push_back(piece);
        }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "there are no {count} bytes");
        self.bytes -= count;
        while let Some(piece) = self.parts.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.parts.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let both = slices.iter_mut().zip(&self.parts);
        both.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_behind_the_other() {
        let mut pieces = Pieces::default();
        assert!(!pieces.has_remaining() && pieces.chunk().is_empty());
        for piece in ["abc", "", "de", "f"] {
            pieces.push(piece.into());
        }
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(pieces.chunks_vectored(&mut slices), 2);
        assert_eq!([&*slices[0], &*slices[1]], [b"abc".as_slice(), b"de"]);
        assert_eq!((pieces.remaining(), pieces.chunk()), (6, b"abc".as_slice()));
        pieces.advance(1);
        assert_eq!(pieces.chunk(), b"bc");
        pieces.advance(3);
        assert_eq!((pieces.remaining(), pieces.chunk()), (2, b"e".as_slice()));
        pieces.advance(2);
        assert!(!pieces.has_remaining() && pieces.parts.is_empty());
    }
}
