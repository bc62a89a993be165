//! The JSON messages between an endpoint and the proxy, on a connection of any kind.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::ConnectError;
use super::connector::{Connector, Opened};
use super::wire::Wire;
use crate::protocol::{JsonStream, Token};

/// The id of the one request that is sent before data flows.
pub(super) const REQUEST: i64 = 1;

/// How much is read from a stream of bytes at once.
const PIECE: usize = 4096;

#[derive(Debug)]
pub(super) struct Conversation {
    opened: Opened,
    inbox: JsonStream,
}

impl Conversation {
    pub(super) fn new(opened: Opened) -> Self {
        Self { opened, inbox: JsonStream::default() }
    }

    pub(super) async fn send(&mut self, message: String) -> Result<(), ConnectError> {
        match &mut self.opened {
            Opened::WebSocket(socket) => socket.send(Message::text(message)).await?,
            Opened::Bytes(stream) => {
                stream.write_all(message.as_bytes()).await.map_err(ConnectError::Lost)?;
                stream.flush().await.map_err(ConnectError::Lost)?;
            }
        }
        Ok(())
    }

    /// The answer to [`REQUEST`].
    pub(super) async fn answer(&mut self) -> Result<Value, ConnectError> {
        loop {
            let message = self.next().await?;
            if message["id"] == REQUEST && message["status"].is_string() {
                return Ok(message);
            }
        }
    }

    /// Sorts an answer of status `error`. Where its words leave that open, the code of the close
    /// that follows decides.
    pub(super) async fn refusal(&mut self, answer: &Value, token: Option<&Token>) -> ConnectError {
        let error = answer["error"].as_str().unwrap_or_default();
        match answer["params"]["authenticationError"].as_str() {
            Some("AuthenticationErrorAuthenticationFailed") => return ConnectError::TokenRefused,
            Some(_) => return ConnectError::AuthenticationUnavailable,
            None if error.starts_with("Invalid token") => return ConnectError::TokenRefused,
            None if error.starts_with("The authentication ") => {
                return ConnectError::AuthenticationUnavailable;
            }
            None => {}
        }
        let shows_token = token.is_some_and(|token| error.contains(token.reveal()));
        match self.next().await {
            Err(closed @ ConnectError::AuthenticationUnavailable) => closed,
            _ if shows_token => ConnectError::Rejected("…".into()),
            _ => ConnectError::Rejected(error.chars().take(500).collect()),
        }
    }

    /// The next message, whatever it is.
    pub(super) async fn next(&mut self) -> Result<Value, ConnectError> {
        loop {
            if let Some(json) = self.inbox.next_object().map_err(|_| not_json())? {
                return serde_json::from_slice(&json).map_err(|_| not_json());
            }
            self.receive().await?;
        }
    }

    /// Returns the connection after the last message.
    pub(super) fn into_opened(self) -> Result<Opened, ConnectError> {
        if self.inbox.is_empty() {
            Ok(self.opened)
        } else {
            Err(ConnectError::Protocol("more behind its last message".into()))
        }
    }

    /// Returns the wire for the data after the last message.
    pub(super) async fn into_wire(mut self, connector: &Connector) -> Result<Wire, ConnectError> {
        if matches!(self.opened, Opened::WebSocket(_)) {
            return Ok(Wire::new(self.into_opened()?, Vec::new(), connector));
        }
        loop {
            // A message ends with a line feed, which may come in a piece of its own.
            let mut rest = std::mem::take(&mut self.inbox).into_rest();
            match rest.first() {
                Some(b'\n') => {
                    rest.remove(0);
                    return Ok(Wire::new(self.opened, rest, connector));
                }
                Some(_) => {
                    return Err(ConnectError::Protocol("no line feed behind its answer".into()));
                }
                None => self.receive().await?,
            }
        }
    }

    /// Waits for more of the proxy's messages.
    async fn receive(&mut self) -> Result<(), ConnectError> {
        let ended = || ConnectError::Lost(std::io::ErrorKind::UnexpectedEof.into());
        match &mut self.opened {
            Opened::WebSocket(socket) => match socket.next().await {
                Some(Ok(Message::Text(text))) => self.inbox.push(text.as_bytes()),
                Some(Ok(Message::Binary(_))) => return Err(not_json()),
                // Pongs go out by themselves with the next read.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => return Err(ConnectError::from_close(frame)),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(ended()),
            },
            Opened::Bytes(stream) => {
                let mut piece = Vec::with_capacity(PIECE);
                if stream.read_buf(&mut piece).await.map_err(ConnectError::Lost)? == 0 {
                    return Err(ended());
                }
                self.inbox.push(&piece);
            }
        }
        Ok(())
    }
}

fn not_json() -> ConnectError {
    ConnectError::NotARemoteProxy("it does not speak JSON".into())
}
