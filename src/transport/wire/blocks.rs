//! The buffers of all connections of a thread: taken when there is something to put into them, and
//! given back when they are empty. So their number follows the connections that have data under
//! way, and not those that are open.

use std::cell::RefCell;
use std::ops::Range;

use bytes::BytesMut;

use super::{FILL, STAGE};

/// What a chunk may add to a full stage, and what TLS adds to all of it.
const SLACK: usize = 68 * 1024;
/// Blocks of each kind that a thread keeps for later; more are freed.
const KEPT: usize = 3;

thread_local! {
    static INCOMING: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static OUTGOING: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static INBOXES: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// What a block is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Ciphertext that has been read.
    Incoming,
    /// What is to be written.
    Outgoing,
}

impl Purpose {
    const fn size(self) -> usize {
        match self {
            Self::Incoming => FILL,
            Self::Outgoing => STAGE + SLACK,
        }
    }

    fn with<T>(self, then: impl FnOnce(&mut Vec<Box<[u8]>>) -> T) -> T {
        let list = match self {
            Self::Incoming => &INCOMING,
            Self::Outgoing => &OUTGOING,
        };
        list.with_borrow_mut(then)
    }
}

/// Bytes in a block: written at the end, taken from the front. Without a block while it is empty.
#[derive(Debug)]
pub(super) struct Queue {
    purpose: Purpose,
    block: Option<Box<[u8]>>,
    used: Range<usize>,
}

impl Queue {
    pub(super) const fn new(purpose: Purpose) -> Self {
        Self { purpose, block: None, used: 0..0 }
    }

    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    #[cfg(test)]
    pub(super) fn has_block(&self) -> bool {
        self.block.is_some()
    }

    /// The bytes in it.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match &mut self.block {
            Some(block) => &mut block[self.used.clone()],
            None => &mut [],
        }
    }

    /// Room for at least so many bytes after the present ones; see [`Queue::put`].
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        let purpose = self.purpose;
        let block = self.block.get_or_insert_with(|| {
            purpose.with(Vec::pop).unwrap_or_else(|| vec![0; purpose.size()].into())
        });
        if block.len() - self.used.end < bytes && self.used.start > 0 {
            block.copy_within(self.used.clone(), 0);
            self.used = 0..self.used.len();
        }
        if block.len() - self.used.end < bytes {
            // More than a block is made for: the larger one costs more, and is not kept.
            let mut larger = vec![0; self.used.end + bytes];
            larger[..self.used.end].copy_from_slice(&block[..self.used.end]);
            *block = larger.into();
        }
        &mut block[self.used.end..]
    }

    /// So many bytes of the room have been written.
    pub(super) fn put(&mut self, bytes: usize) {
        self.used.end += bytes;
        self.give_back_if_empty();
    }

    /// So many bytes have been taken from the front.
    pub(super) fn take(&mut self, bytes: usize) {
        self.used.start += bytes;
        self.give_back_if_empty();
    }

    fn give_back_if_empty(&mut self) {
        if !self.used.is_empty() {
            return;
        }
        self.used = 0..0;
        let Some(block) = self.block.take() else { return };
        if block.len() == self.purpose.size() {
            self.purpose.with(|kept| {
                if kept.len() < KEPT {
                    kept.push(block);
                }
            });
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.len();
        self.take(left);
    }
}

/// Makes room in an inbox for so many bytes. One that has none gets a whole block.
pub(in crate::transport) fn reserve(inbox: &mut BytesMut, bytes: usize) {
    if inbox.capacity() == 0 {
        *inbox = INBOXES.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
    if inbox.capacity() - inbox.len() < bytes {
        inbox.reserve(if inbox.is_empty() { FILL } else { bytes });
    }
}

/// Takes the block of an empty inbox, unless a part of it is still referenced. A block that is used up
/// to its end has no room left, and is dropped.
pub(in crate::transport) fn give_back(inbox: &mut BytesMut) {
    if !inbox.is_empty() {
        return;
    }
    let mut block = std::mem::take(inbox);
    if block.try_reclaim(FILL) {
        INBOXES.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(block);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(queue: &mut Queue, data: &[u8]) {
        queue.room(data.len())[..data.len()].copy_from_slice(data);
        queue.put(data.len());
    }

    #[test]
    fn a_queue_without_bytes_has_no_block() {
        let mut queue = Queue::new(Purpose::Incoming);
        assert!(queue.block.is_none() && queue.bytes().is_empty());
        put(&mut queue, b"abc");
        queue.take(2);
        assert_eq!(queue.bytes(), b"c");
        put(&mut queue, b"d");
        assert_eq!(queue.bytes(), b"cd");
        queue.take(2);
        assert!(queue.block.is_none());
        // Nothing came into the room.
        queue.room(10);
        queue.put(0);
        assert!(queue.block.is_none());
    }

    #[test]
    fn a_block_is_used_to_its_end_and_beyond() {
        let mut queue = Queue::new(Purpose::Incoming);
        put(&mut queue, &vec![1; FILL]);
        queue.take(FILL - 3);
        put(&mut queue, &vec![2; FILL - 3]);
        assert_eq!(queue.block.as_ref().map(|block| block.len()), Some(FILL));
        assert_eq!(queue.bytes()[..5], [1, 1, 1, 2, 2]);
        put(&mut queue, b"more than fits");
        assert_eq!(queue.len(), FILL + 14);
        assert!(queue.bytes().ends_with(b"fits"));
    }

    #[test]
    fn an_inbox_keeps_its_block_only_while_it_needs_it() {
        let mut inbox = BytesMut::new();
        reserve(&mut inbox, 10);
        inbox.extend_from_slice(b"0123456789");
        let part = inbox.split_to(10).freeze();
        give_back(&mut inbox);
        assert_eq!(inbox.capacity(), 0);
        assert_eq!(&part[..], b"0123456789");
        reserve(&mut inbox, 10);
        assert!(inbox.capacity() >= FILL);
        give_back(&mut inbox);
        assert_eq!(INBOXES.with_borrow(Vec::len), 1);
    }

    #[test]
    fn an_inbox_that_is_used_up_holds_nothing() {
        let mut exact = BytesMut::zeroed(100);
        let taken = exact.split().freeze();
        assert_eq!(exact.capacity(), 0);
        give_back(&mut exact);
        assert!(taken.is_unique());
    }
}
