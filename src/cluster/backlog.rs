//! Data of a call that has arrived and that its reader does not want yet, in few blocks.
//!
//! HTTP/2 keeps each frame by itself, with some hundred bytes of its own and maybe with the whole
//! block in which the frame was read. For a reader that is stalled and a writer of tiny messages,
//! that would be many times what the window of the tunnel allows.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Frames of fewer bytes are copied together.
const SMALL: usize = 16 * 1024;
/// No block is larger than this, unless a single frame is.
const BLOCK: usize = 64 * 1024;

/// See the module.
#[derive(Default)]
pub(super) struct Backlog {
    blocks: VecDeque<Bytes>,
    /// The data after the blocks, to which more is appended.
    last: BytesMut,
}

impl Backlog {
    /// Adds a frame.
    pub(super) fn push(&mut self, data: Bytes) {
        let is_small = data.len() < SMALL;
        if !is_small || self.last.len() + data.len() > BLOCK {
            self.seal();
        }
        if is_small {
            self.last.extend_from_slice(&data);
        } else {
            self.blocks.push_back(data);
        }
    }

    /// Takes the next block.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.blocks.is_empty() {
            self.seal();
        }
        self.blocks.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.last.is_empty()
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.blocks.push_back(std::mem::take(&mut self.last).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_become_few_blocks_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![1; SMALL]);
        let mut backlog = Backlog::default();
        let mut expected = Vec::new();
        for number in 0..20_000 {
            let frame = if number % 5000 == 4999 {
                large.clone()
            } else {
                Bytes::copy_from_slice(&u32::to_be_bytes(number))
            };
            expected.extend_from_slice(&frame);
            backlog.push(frame);
        }
        let (mut found, mut blocks, mut shared) = (Vec::new(), 0, 0);
        while let Some(block) = backlog.pop() {
            shared += usize::from(block.as_ptr() == large.as_ptr());
            found.extend_from_slice(&block);
            blocks += 1;
        }
        assert!(backlog.is_empty() && found == expected);
        assert_eq!((blocks, shared), (8, 4));
    }
}
