//! A connection with TLS, as its server.
//!
//! It drives rustls's unbuffered connection: ciphertext is read in large pieces into a block and
//! decrypted there, plaintext is encrypted in whole records into another one, and neither block is
//! kept when it is empty.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::ReadBuf;

use super::blocks::{Purpose, Queue, reserve};
use super::plain::poll_write_all;
use super::{FILL, Line, Watch, Wire};
use crate::turn::yield_turn;

/// The most plaintext in a record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// So much plaintext gets a separate record at once: copying it after the data that waits for one,
/// such as the header of its frame, would cost more than the second record.
const LARGE: usize = 8 * 1024;
/// Records decrypted in one go: tiny ones cost nearly as much as others.
const RECORDS: u32 = 256;
/// Looks at what has come that may be without any data for the reader.
const LOOKS: u32 = 4;
/// Room for a handshake message, extended if it is larger.
const HANDSHAKE: usize = 4 * 1024;

/// See the module.
pub(in crate::transport) struct Secure<S> {
    io: S,
    tls: UnbufferedServerConnection,
    /// Ciphertext that has been read. Handshake messages stay in it until they are complete.
    incoming: Queue,
    /// All of `incoming` has been looked at; it holds the beginning of something at most.
    looked_at: bool,
    /// Plaintext for a record that is not full.
    record: Queue,
    /// Ciphertext to be written.
    outgoing: Queue,
    /// Plaintext that came together with the end of the handshake.
    early: BytesMut,
    peer_closed: bool,
    said_goodbye: bool,
    failed: Option<rustls::Error>,
}

impl<S: Line> Secure<S> {
    /// Does the handshake on a new connection.
    pub(in crate::transport) async fn accept(io: S, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut secure = Self {
            io,
            tls,
            incoming: Queue::new(Purpose::Incoming),
            looked_at: true,
            record: Queue::new(Purpose::Outgoing),
            outgoing: Queue::new(Purpose::Outgoing),
            early: BytesMut::new(),
            peer_closed: false,
            said_goodbye: false,
            failed: None,
        };
        poll_fn(|cx| secure.poll_handshake(cx)).await?;
        Ok(secure)
    }

    /// As in `1.3`.
    pub(in crate::transport) fn version(&self) -> &'static str {
        match self.tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            Some(_) | None => "unknown",
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut early = std::mem::take(&mut self.early);
            let looked = self.look(&mut early);
            self.early = early;
            if let Err(error) = looked {
                // The alert says why; whether it gets through or not, this is over.
                let _told = poll_write_all(&mut self.io, cx, &mut self.outgoing);
                return Poll::Ready(Err(error));
            }
            if !self.looked_at && self.tls.is_handshaking() && !self.peer_closed {
                return yield_turn(cx);
            }
            let written = poll_write_all(&mut self.io, cx, &mut self.outgoing)?;
            let is_done = !self.tls.is_handshaking();
            if is_done && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                // Session tickets may be left: they go out with the first data.
                return Poll::Ready(Ok(()));
            }
            ready!(written);
            if is_done {
                return Poll::Ready(Ok(()));
            }
            if self.peer_closed || ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads ciphertext, 0 bytes at its end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // All of the block after the beginning of a record.
        let mut room = ReadBuf::new(self.incoming.room(RECORD));
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut room);
        let read = room.filled().len();
        self.incoming.put(read);
        self.looked_at &= read == 0;
        ready!(polled)?;
        Poll::Ready(Ok(read))
    }

    /// Decrypts what has been read until the inbox is full, no record is complete any more, or
    /// there were many of them.
    fn look(&mut self, inbox: &mut BytesMut) -> io::Result<usize> {
        let before = inbox.len();
        let mut records = 0;
        while inbox.len() < FILL && !self.peer_closed && records < RECORDS {
            records += 1;
            let UnbufferedStatus { mut discard, state, .. } =
                self.tls.process_tls_records(self.incoming.bytes());
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        reserve(inbox, record.payload.len());
                        inbox.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |room| data.encode(room).map_err(size_of_encoding))?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.peer_closed = true;
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                    done = true;
                }
                // Early data is not offered, and what is not known cannot be asked for.
                Ok(_) => return Err(io::ErrorKind::Unsupported.into()),
                Err(error) => {
                    self.incoming.take(discard);
                    return Err(self.fail(error));
                }
            }
            self.incoming.take(discard);
            if done {
                self.looked_at = true;
                break;
            }
        }
        Ok(inbox.len() - before)
    }

    /// Marks TLS as broken, and stages the alert.
    fn fail(&mut self, error: rustls::Error) -> io::Error {
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.tls.process_tls_records(self.incoming.bytes()).state
        {
            // If it cannot be said, the connection ends all the same.
            let _told =
                encode(&mut self.outgoing, |room| alert.encode(room).map_err(size_of_encoding));
        }
        self.failed = Some(error.clone());
        invalid(error)
    }

    /// Encrypts one record, or the goodbye if there is no data.
    fn seal(&mut self, data: Option<&[u8]>) {
        while self.failed.is_none() {
            // All that has been read must be shown, or records in it would be decrypted now.
            let shown = if self.looked_at { self.incoming.bytes() } else { &mut [] };
            let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(shown);
            let sealed = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let sealed = encode(&mut self.outgoing, |room| match data {
                        Some(data) => traffic.encrypt(data, room).map_err(size_of_encryption),
                        None => traffic.queue_close_notify(room).map_err(size_of_encryption),
                    });
                    Some(sealed)
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |room| data.encode(room).map_err(size_of_encoding))
                        .err()
                        .map(Err)
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    None
                }
                Ok(_) => Some(Err(io::ErrorKind::NotConnected.into())),
                Err(error) => Some(Err(invalid(error))),
            };
            if self.looked_at {
                self.incoming.take(discard);
            }
            match sealed {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    self.failed = Some(rustls::Error::General(error.to_string()));
                }
                None => {}
            }
        }
    }

    fn seal_record(&mut self) {
        let mut record = std::mem::replace(&mut self.record, Queue::new(Purpose::Outgoing));
        if !record.is_empty() {
            self.seal(Some(record.bytes()));
        }
    }

    fn check(&self) -> io::Result<()> {
        self.failed.as_ref().map_or(Ok(()), |error| Err(invalid(error.clone())))
    }
}

impl<S: Line> Wire for Secure<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>, inbox: &mut BytesMut) -> Poll<io::Result<usize>> {
        if !self.early.is_empty() {
            reserve(inbox, self.early.len());
            inbox.extend_from_slice(&self.early);
            return Poll::Ready(Ok(std::mem::take(&mut self.early).len()));
        }
        self.check()?;
        for _ in 0..LOOKS {
            let staged = self.outgoing.len();
            let looked = if self.looked_at { Ok(0) } else { self.look(inbox) };
            if self.outgoing.len() > staged {
                // TLS itself has something to say. It goes out with the next data at the latest.
                let _sent = poll_write_all(&mut self.io, cx, &mut self.outgoing)?;
            }
            let filled = looked?;
            if filled > 0 || self.peer_closed {
                return Poll::Ready(Ok(filled));
            }
            if !self.looked_at {
                // More has come, of which nothing was data so far.
                continue;
            }
            if ready!(self.poll_read(cx))? == 0 {
                // Without `close_notify`: the stream may have been truncated.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        yield_turn(cx)
    }

    fn stage(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let part;
            if data.len() >= LARGE {
                self.seal_record();
                (part, data) = data.split_at(data.len().min(RECORD));
                self.seal(Some(part));
                continue;
            }
            (part, data) = data.split_at(data.len().min(RECORD - self.record.len()));
            self.record.room(part.len())[..part.len()].copy_from_slice(part);
            self.record.put(part.len());
            if self.record.len() == RECORD {
                self.seal_record();
            }
        }
    }

    fn staged(&self) -> usize {
        self.record.len() + self.outgoing.len()
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal_record();
        self.check()?;
        poll_write_all(&mut self.io, cx, &mut self.outgoing)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.seal_record();
            self.seal(None);
        }
        // Also what has been staged before TLS broke: the alert is in it.
        ready!(poll_write_all(&mut self.io, cx, &mut self.outgoing))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal_record();
        ready!(poll_write_all(&mut self.io, cx, &mut self.outgoing))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        self.io.is_gone(cx)
    }

    fn watch(&self, watch: Watch) {
        self.io.watch(watch);
    }

    fn is_unanswered(&self) -> bool {
        self.io.is_unanswered()
    }
}

/// Lets `write` write into the queue; an error of it is the room that it needs, if that is all.
fn encode(
    queue: &mut Queue,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Result<usize, io::Error>>,
) -> io::Result<()> {
    let mut needed = HANDSHAKE;
    loop {
        match write(queue.room(needed)) {
            Ok(written) => {
                queue.put(written);
                return Ok(());
            }
            Err(Ok(more)) if more > needed => needed = more,
            Err(Ok(_)) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Err(error)) => return Err(error),
        }
    }
}

fn size_of_encoding(error: EncodeError) -> Result<usize, io::Error> {
    match error {
        EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Ok(required_size),
        EncodeError::AlreadyEncoded => Err(io::Error::other(error)),
    }
}

fn size_of_encryption(error: EncryptError) -> Result<usize, io::Error> {
    match error {
        EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
            Ok(required_size)
        }
        EncryptError::EncryptExhausted => Err(io::Error::other(error)),
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
