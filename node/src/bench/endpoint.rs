//! One end of a tunnel under load: a connection to the proxy, and what is sent and received on it.
//!
//! The library's client is made for programs that use tunnels. This one is made to cost little
//! while it floods them: no task, no lock and no copy besides those of TLS.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use crate::wire::{self, Check, Inbox, Incoming, Kind, Message, Opcode, Outgoing};

pub(crate) type Stream = Either<TcpStream, Box<TlsStream<BufReader<TcpStream>>>>;

/// The key of the example in RFC 6455, and the answer to it: nothing here depends on a secret.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub(crate) struct Endpoint {
    stream: Stream,
    inbox: Inbox,
    /// Control frames to be sent between messages.
    control: Vec<u8>,
    /// There is something that was not looked at yet.
    is_fresh: bool,
    /// Part of a message is written, so that nothing else may be.
    is_within_message: bool,
    is_websocket: bool,
}

/// What a poll for messages brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Something,
    /// The tunnel has ended, with this close code if there was one.
    End(Option<u16>),
}

impl Endpoint {
    /// Reads up to `buffer` bytes at once.
    pub(crate) fn new(stream: Stream, buffer: usize) -> Self {
        Self {
            stream,
            inbox: Inbox::new(buffer),
            control: Vec::new(),
            is_fresh: true,
            is_within_message: false,
            is_websocket: false,
        }
    }

    /// The WebSocket handshake.
    pub(crate) async fn upgrade(&mut self, host: &str) -> anyhow::Result<()> {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        self.write(request.as_bytes()).await?;
        let answer = loop {
            match self.inbox.take_until(b"\r\n\r\n") {
                Some(head) => break String::from_utf8_lossy(&head).into_owned(),
                None => self.read().await?,
            }
        };
        let status = answer.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 101"), "no WebSocket: {status}");
        ensure!(answer.contains(ACCEPT), "no WebSocket: the server answers another request");
        self.is_websocket = true;
        Ok(())
    }

    /// Shows the token, as a client of generation 2.
    pub(crate) async fn authenticate(&mut self, token: &str) -> anyhow::Result<()> {
        let uuid = uuid::Uuid::new_v4().to_string();
        let request = json!({
            "id": 1,
            "method": "Authentication.Authenticate",
            "params": { "token": token, "uuid": uuid, "name": "bench" },
        });
        self.write(&wire::pack(Opcode::Text, request.to_string().as_bytes())).await?;
        let answer = self.message().await?;
        let error = answer["params"]["authenticationError"].as_str();
        let is_good = answer["status"] == "success"
            && error.is_none_or(|error| error == "AuthenticationErrorNoError");
        ensure!(is_good, "not authenticated: {answer}");
        Ok(())
    }

    /// Waits until the other endpoint is there.
    pub(crate) async fn established(&mut self) -> anyhow::Result<()> {
        let message = self.message().await?;
        let told = message["notification"].as_str().unwrap_or_default();
        ensure!(told.ends_with("Established"), "not the news of a tunnel: {message}");
        Ok(())
    }

    async fn message(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.inbox.take_message()? {
                None => self.read().await?,
                Some((Opcode::Text, text)) => {
                    return serde_json::from_slice(&text).context("an answer that is no JSON");
                }
                Some((Opcode::Ping, ping)) => self.write(&wire::pong(&ping)).await?,
                Some((Opcode::Close, reason)) => {
                    let code = reason.first_chunk().copied().map(u16::from_be_bytes);
                    let text = String::from_utf8_lossy(reason.get(2..).unwrap_or_default());
                    bail!("closed with {code:?} {text:?}")
                }
                Some((other, _)) => bail!("{other:?} before there was a tunnel"),
            }
        }
    }

    /// Bytes of a relay that knows no messages.
    pub(crate) async fn bytes(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        loop {
            match self.inbox.take(count) {
                Some(bytes) => return Ok(bytes),
                None => self.read().await?,
            }
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let room = self.inbox.room();
        ensure!(!room.is_empty(), "an answer that is too long");
        let bytes = self.stream.read(room).await?;
        ensure!(bytes > 0, "the connection was closed");
        self.inbox.filled(bytes);
        Ok(())
    }

    /// Checks what is there, or reads once first.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        check: &mut Check,
    ) -> Poll<anyhow::Result<Received>> {
        loop {
            if self.is_fresh {
                match self.inbox.digest(check)? {
                    Some(Incoming::Ping(ping)) => self.control.extend(wire::pong(&ping)),
                    Some(Incoming::Close(code)) => return Poll::Ready(Ok(Received::End(code))),
                    None => {
                        self.is_fresh = false;
                        return Poll::Ready(Ok(Received::Something));
                    }
                }
                continue;
            }
            if !self.is_within_message {
                let _sent_when_there_is_room = self.poll_control(cx)?;
            }
            let mut room = ReadBuf::new(self.inbox.room());
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
            let bytes = room.filled().len();
            if bytes == 0 {
                return Poll::Ready(Ok(Received::End(None)));
            }
            self.inbox.filled(bytes);
            self.is_fresh = true;
        }
    }

    /// Writes what is left of the current messages; ready when all of it is gone.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<anyhow::Result<()>> {
        if !self.is_within_message {
            ready!(self.poll_control(cx))?;
        }
        loop {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, outgoing.rest()))?;
            if written == 0 {
                return Poll::Ready(Err(anyhow!("the connection takes nothing")));
            }
            self.is_within_message = !outgoing.advance(written);
            if !self.is_within_message {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends messages, and waits until they are gone.
    pub(crate) async fn send(&mut self, outgoing: &mut Outgoing) -> anyhow::Result<()> {
        poll_fn(|cx| self.poll_send(cx, outgoing)).await?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits until so many messages have come since the beginning.
    pub(crate) async fn receive(&mut self, check: &mut Check, count: u64) -> anyhow::Result<()> {
        while check.received() < count {
            if let Received::End(code) = poll_fn(|cx| self.poll_receive(cx, check)).await? {
                bail!("the tunnel ended ({})", crate::report::close_code(code));
            }
        }
        Ok(())
    }

    /// Waits for the end, where no more messages may come.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<Option<u16>> {
        let mut nothing = self.nothing();
        loop {
            if let Received::End(code) = poll_fn(|cx| self.poll_receive(cx, &mut nothing)).await? {
                return Ok(code);
            }
            ensure!(nothing.bytes() == 0, "data that nobody sent");
        }
    }

    /// Ends the tunnel in order.
    pub(crate) async fn close(&mut self) -> anyhow::Result<()> {
        if self.is_websocket {
            self.write(&wire::close()).await?;
        }
        self.stream.shutdown().await?;
        Ok(())
    }

    fn nothing(&self) -> Check {
        let kind = if self.is_websocket { Kind::Binary } else { Kind::Bytes };
        Check::new(&Message::new(kind, 0))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(Into::into)
    }

    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        while !self.control.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.control))?;
            self.control.drain(..written);
            let _sent_later = self.poll_flush(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}
