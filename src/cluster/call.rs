//! A gRPC call on an HTTP/2 stream: messages out and messages in, each after a prefix of five bytes.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
//!
//! Both halves are used by the task of the tunnel itself, with nothing between it and h2: payload is
//! not copied on its way, and no other task is woken than that of the connection.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use prost::Message;
use thiserror::Error;
use tonic::{Code, Status};

use super::backlog::Backlog;
use super::pieces::{Pieces, Unsent};
use super::wire;
use crate::protocol::{Chunk, without_its_block};

/// The HTTP/2 stream to the other node.
pub(super) type SendStream = h2::SendStream<Pieces>;

/// A message's prefix: whether it is compressed, which none is here, and its length.
const PREFIX: usize = 5;
/// The largest message that is read, in bytes: a piece of a tunnel's data and what is around it.
const MAX_MESSAGE: usize = 128 * 1024;
/// The most bytes that wait in one call for the other node.
pub(super) const SEND_BUFFER: usize = 128 * 1024;
/// Payload of fewer bytes is copied after the head of its message.
const SMALL: usize = 4 * 1024;
/// The bytes sent at once: they fill a frame of HTTP/2.
const FULL: usize = 64 * 1024;
/// The window of the other node is extended each time so many bytes have been taken.
const RELEASE: usize = 32 * 1024;

/// Data taken is released in any case when there is no more data: more than half of the
/// smallest window must never stay unreleased, or nothing more would arrive.
const RELEASE_IDLE: usize = 8 * 1024;
/// The number of frames that may wait in HTTP/2 before small ones are combined.
const UNSENT_FRAMES: usize = 16;

/// Why a call has ended before its time.
#[derive(Debug, Error)]
pub enum CallError {
    /// The other node has ended the call with a status.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    /// The stream or its connection is gone.
    #[error("the stream of the call has ended")]
    Stream(#[from] h2::Error),
    /// The received data is not gRPC.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Which end of a call this is: they end it in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Caller,
    Called,
}

/// The messages of this node in a call. They wait until [`Outgoing::flush`], or until they fill a
/// frame of HTTP/2.
pub(super) struct Outgoing {
    stream: SendStream,
    role: Role,
    /// Pending data; `head` is the end of it.
    waiting: Pieces,
    head: Vec<u8>,
    /// The bytes that may be handed to the stream before its capacity is read again.
    room: usize,
    closed: bool,
    /// Frames in the hands of HTTP/2.
    unsent: Unsent,
}

impl Outgoing {
    pub(super) fn new(stream: SendStream, role: Role) -> Self {
        let (waiting, head) = (Pieces::default(), Vec::new());
        Self { stream, role, waiting, head, room: 0, closed: false, unsent: Unsent::default() }
    }

    /// Ready when there is room for a message; an error when the call has ended. No more than about
    /// `limit` bytes are accepted before the other node has room for them.
    pub(super) fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<Result<(), ()>> {
        if self.room > self.waiting_bytes() {
            return Poll::Ready(Ok(()));
        }
        self.flush();
        if self.closed {
            return Poll::Ready(Err(()));
        }
        self.stream.reserve_capacity(limit);
        loop {
            self.room = self.stream.capacity();
            if self.room > 0 {
                return Poll::Ready(Ok(()));
            }
            if !matches!(ready!(self.stream.poll_capacity(cx)), Some(Ok(_))) {
                self.closed = true;
                return Poll::Ready(Err(()));
            }
        }
    }

    /// Takes a message. Bounded by [`Outgoing::poll_ready`] if it is data.
    pub(super) fn push(&mut self, message: &impl Message) {
        self.put_message(0, |head| message.encode(head).expect("a vector has room"));
    }

    /// Takes a piece of a message of the endpoints.
    pub(super) fn push_data(&mut self, chunk: Chunk) {
        if self.waiting_bytes() + chunk.data.len() > FULL {
            self.flush();
        }
        self.put_message(chunk.data.len(), |head| wire::put_data_head(&chunk, head));
        if chunk.data.len() < SMALL {
            self.head.extend_from_slice(&chunk.data);
        } else {
            self.waiting.push(std::mem::take(&mut self.head).into());
            self.waiting.push(chunk.data);
        }
    }

    /// Hands on what waits; ready when that is done. As long as many frames have not gone out, a
    /// small one waits for more to put into it: each costs memory of its own, however small it is.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if (1..FULL).contains(&self.waiting_bytes()) && !self.closed {
            ready!(self.unsent.poll_fewer_than(UNSENT_FRAMES, cx));
        }
        self.flush();
        Poll::Ready(())
    }

    /// Hands on what waits.
    pub(super) fn flush(&mut self) {
        if self.waiting_bytes() > 0 {
            let mut data = self.take();
            data.count_in(&self.unsent);
            self.room = self.room.saturating_sub(data.remaining());
            if !self.closed {
                self.closed = self.stream.send_data(data, false).is_err();
            }
        }
    }

    /// Hands on what waits, and ends this direction of the call. No effect the second time.
    pub(super) fn close(&mut self) {
        match self.role {
            Role::Called => self.finish(&Status::new(Code::Ok, "")),
            Role::Caller if !self.closed => {
                let data = self.take();
                // If it cannot be said, the call is gone, and the other node knows.
                let _gone = self.stream.send_data(data, true);
                self.closed = true;
            }
            Role::Caller => {}
        }
    }

    /// The same for the node that was called, with the status of the call.
    pub(super) fn finish(&mut self, status: &Status) {
        self.flush();
        if !std::mem::replace(&mut self.closed, true) {
            let mut trailers = HeaderMap::new();
            let added = status.add_header(&mut trailers);
            // As above.
            let _gone = added.map(|()| self.stream.send_trailers(trailers));
        }
    }

    /// Puts a message into `head`, but for so many bytes of its end.
    fn put_message(&mut self, without: usize, put: impl FnOnce(&mut Vec<u8>)) {
        let prefix = self.head.len();
        self.head.extend_from_slice(&[0; PREFIX]);
        let message = self.head.len();
        put(&mut self.head);
        let length = u32::try_from(self.head.len() - message + without).expect("it is bounded");
        self.head[prefix + 1..message].copy_from_slice(&length.to_be_bytes());
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.remaining() + self.head.len()
    }

    fn take(&mut self) -> Pieces {
        self.waiting.push(std::mem::take(&mut self.head).into());
        std::mem::take(&mut self.waiting)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.close();
    }
}

/// The messages of the other node in a call.
pub(super) struct Incoming {
    stream: RecvStream,
    backlog: Backlog,
    messages: Messages,
    /// Bytes that have been taken without telling the other node.
    unreleased: usize,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream) -> Self {
        let (backlog, messages) = (Backlog::default(), Messages::default());
        Self { stream, backlog, messages, unreleased: 0 }
    }

    /// Whether the other node has ended its messages.
    pub(super) fn is_over(&self) -> bool {
        self.stream.is_end_stream() && self.backlog.is_empty()
    }

    /// Throws away what arrives until the end of the call.
    pub(super) async fn drain(mut self) {
        while let Some(data) = self.backlog.pop() {
            self.unreleased += data.len();
        }
        while self.release_all().is_ok()
            && let Some(Ok(data)) = self.stream.data().await
        {
            self.unreleased = data.len();
        }
    }

    /// The next message, `None` at the end of the call.
    pub(super) async fn message<M: Message + Default>(&mut self) -> Result<Option<M>, CallError> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// The same, polled.
    pub(super) fn poll_message<M: Message + Default>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<M>, CallError>> {
        loop {
            if let Some(message) = self.messages.next()? {
                let malformed = |_| CallError::Malformed("a message that is not in its format");
                return Poll::Ready(M::decode(message).map(Some).map_err(malformed));
            }
            let data = match self.backlog.pop() {
                Some(data) => data,
                None => match self.stream.poll_data(cx) {
                    Poll::Ready(Some(data)) => data?,
                    Poll::Ready(None) => return self.poll_end(cx).map_ok(|()| None),
                    Poll::Pending => {
                        if self.unreleased >= RELEASE_IDLE {
                            self.release_all()?;
                        }
                        return Poll::Pending;
                    }
                },
            };
            self.messages.put(data);
            self.release(self.messages.data.len())?;
        }
    }

    /// Keeps what arrives in as little memory as can be, for a reader that does not want it yet.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>) {
        self.messages.settle();
        // Its end, or why it has none, is found by the reader.
        while let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(cx) {
            self.backlog.push(data);
        }
    }

    /// Ready at the end of the call, with its status.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        if !self.messages.begun.is_empty() {
            return Poll::Ready(Err(CallError::Malformed("it ends within a message")));
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        let status = trailers.and_then(|trailers| Status::from_header_map(&trailers));
        Poll::Ready(match status {
            Some(status) if status.code() != Code::Ok => Err(status.into()),
            _ => Ok(()),
        })
    }

    /// Tells the other node, sooner or later, that so many bytes have been taken.
    fn release(&mut self, bytes: usize) -> Result<(), h2::Error> {
        self.unreleased += bytes;
        if self.unreleased >= RELEASE { self.release_all() } else { Ok(()) }
    }

    fn release_all(&mut self) -> Result<(), h2::Error> {
        self.stream.flow_control().release_capacity(std::mem::take(&mut self.unreleased))
    }
}

/// Finds messages in received data: slices a message out of one piece, or collects it from several.
#[derive(Default)]
struct Messages {
    /// Received data that was not parsed. It is refilled once it is empty.
    data: Bytes,
    /// That is not a small part of a large block.
    is_settled: bool,
    /// The beginning of a message that is not complete yet.
    begun: BytesMut,
}

impl Messages {
    /// Adds what has come, once the rest before it is empty.
    fn put(&mut self, data: Bytes) {
        (self.data, self.is_settled) = (data, false);
    }

    /// Lets go of the block of a small rest, which may have to wait.
    fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.data = without_its_block(std::mem::take(&mut self.data), SMALL);
        }
    }

    /// The next message without its prefix, `None` if more must come first.
    fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.begun.is_empty()
            && let Some(size) = size(&self.data)?
            && size <= self.data.len()
        {
            return Ok(Some(self.data.split_to(size).slice(PREFIX..)));
        }
        while self.data.has_remaining() {
            let size = size(&self.begun)?.unwrap_or(PREFIX);
            let missing = size - self.begun.len();
            self.begun.reserve(missing);
            self.begun.extend_from_slice(&self.data.split_to(missing.min(self.data.len())));
            if self::size(&self.begun)?.is_some_and(|size| size == self.begun.len()) {
                return Ok(Some(std::mem::take(&mut self.begun).freeze().slice(PREFIX..)));
            }
        }
        Ok(None)
    }
}

/// The size of the message that begins here, with its prefix; `None` if that is not there yet.
fn size(data: &[u8]) -> Result<Option<usize>, CallError> {
    let Some(&[compressed, a, b, c, d]) = data.first_chunk::<PREFIX>() else { return Ok(None) };
    if compressed != 0 {
        return Err(CallError::Malformed("a message that is compressed"));
    }
    match usize::try_from(u32::from_be_bytes([a, b, c, d])) {
        Ok(length) if length <= MAX_MESSAGE => Ok(Some(PREFIX + length)),
        _ => Err(CallError::Malformed("a message that is too large")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u8) -> Vec<u8> {
        let mut message = vec![0, 0, 0, 0, length];
        message.resize(PREFIX + usize::from(length), length);
        message
    }

    fn all_of(messages: &mut Messages, data: &[u8]) -> Vec<Bytes> {
        assert!(messages.data.is_empty());
        messages.data = Bytes::copy_from_slice(data);
        std::iter::from_fn(|| messages.next().expect("messages")).collect()
    }

    #[test]
    fn messages_are_found_however_they_were_cut() {
        let lengths = [3, 0, 0, 200, 1, 17];
        let sent = lengths.map(message).concat();
        for piece in 1..=sent.len() {
            let mut messages = Messages::default();
            let found: Vec<_> =
                sent.chunks(piece).flat_map(|data| all_of(&mut messages, data)).collect();
            let expected = lengths.map(|length| vec![length; usize::from(length)]);
            assert_eq!(found, expected, "in pieces of {piece} bytes");
            assert!(messages.begun.is_empty());
        }
    }

    #[test]
    fn a_whole_message_is_not_copied() {
        let mut messages = Messages::default();
        let data = Bytes::from([message(9), message(9)].concat());
        messages.data = data.clone();
        let found = messages.next().expect("messages").expect("a message");
        assert_eq!(found.as_ptr(), data[PREFIX..].as_ptr());
    }

    #[test]
    fn nonsense_is_no_message() {
        let too_long = u32::try_from(MAX_MESSAGE + 1).expect("a length").to_be_bytes();
        for (prefix, why) in [
            ([&[1], &[0; 4][..]].concat(), "a message that is compressed"),
            ([&[0], &too_long[..]].concat(), "a message that is too large"),
        ] {
            for cut in [0, 2] {
                let mut messages = Messages::default();
                assert!(all_of(&mut messages, &prefix[..cut]).is_empty());
                messages.data = Bytes::copy_from_slice(&prefix[cut..]);
                match messages.next() {
                    Err(CallError::Malformed(said)) => assert_eq!(said, why),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
