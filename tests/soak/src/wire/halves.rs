//! The two halves of a connection that carries data.

use std::fmt;
use std::io;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::client::TunnelError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::connect::Io;
use crate::content::Alphabet;

type Socket = WebSocketStream<Box<dyn Io>>;

/// How a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// In order: all data of the other end has been received.
    Complete,
    /// An end that may be in order or not: the transport does not tell.
    Unknown,
    /// The node says why.
    Reason { code: u16, reason: String },
    /// The connection broke.
    Broken(String),
}

impl Closing {
    pub(super) fn of_frame(frame: Option<CloseFrame>) -> Self {
        match frame {
            Some(CloseFrame { code: CloseCode::Normal, .. }) => Self::Complete,
            Some(CloseFrame { code, reason }) => {
                Self::Reason { code: code.into(), reason: reason.to_string() }
            }
            None => Self::Reason { code: 1005, reason: String::new() },
        }
    }

    /// Reads what the client library says.
    fn of_error(error: &io::Error) -> Self {
        match error.get_ref().and_then(|source| source.downcast_ref::<TunnelError>()) {
            Some(TunnelError::Closed { code, reason }) => {
                Self::Reason { code: *code, reason: reason.clone() }
            }
            Some(TunnelError::OtherLost) => {
                Self::Reason { code: 1001, reason: "the other endpoint was lost".into() }
            }
            Some(TunnelError::GoingAway) => {
                Self::Reason { code: 1001, reason: "the proxy is going away".into() }
            }
            _ => Self::Broken(error.to_string()),
        }
    }

    /// Whether the node has closed the connection for something that no honest endpoint does.
    pub(crate) fn is_blame(&self) -> bool {
        matches!(self, Self::Reason { code, .. } if *code != 1001)
    }
}

impl fmt::Display for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("an end in order"),
            Self::Unknown => f.write_str("an end without a reason"),
            Self::Reason { code, reason } => write!(f, "close {code} {reason:?}"),
            Self::Broken(error) => write!(f, "broken: {error}"),
        }
    }
}

/// What a reader has received.
pub(crate) enum Received {
    Data(Vec<u8>),
    End(Closing),
}

/// What receives the data of a connection.
pub(crate) struct Reader {
    /// What was received with the last message of the node.
    held: Vec<u8>,
    from: From,
}

enum From {
    WebSocket(SplitStream<Socket>),
    Bytes {
        io: Box<dyn AsyncRead + Send + Unpin>,
        /// Whether an end is known to be in order.
        tells_ends: bool,
    },
}

/// What sends the data of a connection.
pub(crate) struct Writer {
    to: To,
}

enum To {
    WebSocket(SplitSink<Socket, Message>),
    Bytes(Box<dyn AsyncWrite + Send + Unpin>),
}

/// The halves of a connection of the client library.
pub(crate) fn of_library<T>(stream: T, tells_ends: bool) -> (Reader, Writer)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = split(Box::pin(stream));
    (Reader::bytes(Box::new(read), Vec::new(), tells_ends), Writer::bytes(Box::new(write)))
}

impl Reader {
    pub(super) fn websocket(stream: SplitStream<Socket>, held: Vec<u8>) -> Self {
        Self { held, from: From::WebSocket(stream) }
    }

    pub(super) fn bytes(
        io: Box<dyn AsyncRead + Send + Unpin>,
        held: Vec<u8>,
        tells_ends: bool,
    ) -> Self {
        Self { held, from: From::Bytes { io, tells_ends } }
    }

    /// The next data, at most `limit` bytes where the transport allows that. Dropping the future
    /// loses nothing.
    pub(crate) async fn read(&mut self, limit: usize) -> Received {
        if !self.held.is_empty() {
            return Received::Data(std::mem::take(&mut self.held));
        }
        match &mut self.from {
            From::WebSocket(stream) => loop {
                match stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Received::Data(text.as_bytes().to_vec());
                    }
                    Some(Ok(Message::Binary(bytes))) => return Received::Data(bytes.to_vec()),
                    Some(Ok(Message::Close(frame))) => {
                        // Reading on sends the answer to it.
                        while let Some(Ok(_)) = stream.next().await {}
                        return Received::End(Closing::of_frame(frame));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Received::End(Closing::Broken(error.to_string())),
                    None => return Received::End(Closing::Broken("no close frame".into())),
                }
            },
            From::Bytes { io, tells_ends } => {
                let mut bytes = vec![0; limit];
                match io.read(&mut bytes).await {
                    Ok(0) if *tells_ends => Received::End(Closing::Complete),
                    Ok(0) => Received::End(Closing::Unknown),
                    Ok(length) => {
                        bytes.truncate(length);
                        Received::Data(bytes)
                    }
                    Err(error) => Received::End(Closing::of_error(&error)),
                }
            }
        }
    }
}

impl Writer {
    pub(super) fn websocket(sink: SplitSink<Socket, Message>) -> Self {
        Self { to: To::WebSocket(sink) }
    }

    pub(super) fn bytes(io: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self { to: To::Bytes(io) }
    }

    /// Sends bytes of this alphabet.
    pub(crate) async fn write(&mut self, bytes: Vec<u8>, alphabet: Alphabet) -> anyhow::Result<()> {
        match &mut self.to {
            To::WebSocket(sink) => {
                let message = match alphabet {
                    Alphabet::Binary => Message::binary(bytes),
                    Alphabet::Text => Message::text(String::from_utf8(bytes)?),
                };
                sink.send(message).await?;
            }
            To::Bytes(io) => {
                io.write_all(&bytes).await?;
                io.flush().await?;
            }
        }
        Ok(())
    }

    /// Ends the connection in order after all data was sent.
    pub(crate) async fn finish(&mut self) -> anyhow::Result<()> {
        match &mut self.to {
            To::WebSocket(sink) => {
                let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                sink.send(Message::Close(Some(frame))).await?;
            }
            To::Bytes(io) => io.shutdown().await?,
        }
        Ok(())
    }
}
