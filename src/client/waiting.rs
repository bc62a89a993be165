//! What an endpoint and the proxy say to each other before the tunnel stands.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::connector::{Connector, Socket};
use super::{ConnectError, Tunnel};
use crate::protocol::{
    ESTABLISHED_GENERATION_1, ESTABLISHED_GENERATION_2, Identity, JsonStream, Token, request,
};

/// The id of the one request that is ever sent.
const AUTHENTICATE: i64 = 1;

/// An authenticated connection whose other endpoint has not come yet.
///
/// It answers the proxy's pings in [`Waiting::partner`] only, so do not put that off for long.
#[derive(Debug)]
pub struct Waiting {
    conversation: Conversation,
    deadline: Instant,
    message_limit: usize,
    close_timeout: Duration,
}

impl Waiting {
    pub(super) async fn authenticate(
        socket: Socket,
        connector: &Connector,
        token: &Token,
        nonce: Option<&str>,
    ) -> Result<Self, ConnectError> {
        let mut conversation = Conversation { socket, inbox: JsonStream::default() };
        let identity = connector.identity();
        let message = authentication(token, nonce, identity.as_ref());
        conversation.socket.send(Message::text(message)).await?;
        let answer = conversation.answer().await?;
        if answer["status"] != "success" {
            return Err(conversation.refusal(&answer, token).await);
        }
        let verdict = &answer["params"]["authenticationError"];
        if identity.is_some() && verdict != "AuthenticationErrorNoError" {
            return Err(ConnectError::Protocol(
                "success without AuthenticationErrorNoError".into(),
            ));
        }
        Ok(Self {
            conversation,
            deadline: Instant::now() + connector.waiting_timeout,
            message_limit: connector.message_limit,
            close_timeout: connector.close_timeout,
        })
    }

    /// Waits for the other endpoint.
    pub async fn partner(mut self) -> Result<Tunnel, ConnectError> {
        let other = timeout_at(self.deadline, self.conversation.established())
            .await
            .map_err(|_| ConnectError::NobodyCame)??;
        Ok(Tunnel::new(self.conversation.socket, other, self.message_limit, self.close_timeout))
    }
}

fn authentication(token: &Token, nonce: Option<&str>, identity: Option<&Identity>) -> String {
    let mut params = json!({ "token": token.reveal() });
    if let Some(nonce) = nonce {
        params["nonce"] = nonce.into();
    }
    if let Some(Identity { uuid, name }) = identity {
        params["uuid"] = uuid.as_str().into();
        params["name"] = name.as_str().into();
    }
    request(AUTHENTICATE, "Authentication.Authenticate", Some(params))
}

/// JSON messages from the proxy.
#[derive(Debug)]
struct Conversation {
    socket: Socket,
    inbox: JsonStream,
}

impl Conversation {
    async fn answer(&mut self) -> Result<Value, ConnectError> {
        loop {
            let message = self.next().await?;
            if message["id"] == AUTHENTICATE && message["status"].is_string() {
                return Ok(message);
            }
        }
    }

    /// Sorts an answer of status `error`. Where its words leave that open, the code of the close
    /// that follows decides.
    async fn refusal(&mut self, answer: &Value, token: &Token) -> ConnectError {
        let error = answer["error"].as_str().unwrap_or_default();
        match answer["params"]["authenticationError"].as_str() {
            Some("AuthenticationErrorAuthenticationFailed") => return ConnectError::TokenRefused,
            Some(_) => return ConnectError::AuthenticationUnavailable,
            None if error.starts_with("Invalid token") => return ConnectError::TokenRefused,
            None => {}
        }
        match self.next().await {
            Err(closed @ ConnectError::AuthenticationUnavailable) => closed,
            _ if error.contains(token.reveal()) => ConnectError::Rejected("…".into()),
            _ => ConnectError::Rejected(error.chars().take(500).collect()),
        }
    }

    async fn established(&mut self) -> Result<Identity, ConnectError> {
        loop {
            let message = self.next().await?;
            let name = message["notification"].as_str().unwrap_or_default();
            if name != ESTABLISHED_GENERATION_1 && name != ESTABLISHED_GENERATION_2 {
                continue;
            }
            if !self.inbox.is_empty() {
                return Err(ConnectError::Protocol("more behind its last message".into()));
            }
            let text = |key| message["params"][key].as_str().unwrap_or_default().to_owned();
            return Ok(Identity { uuid: text("uuid"), name: text("name") });
        }
    }

    async fn next(&mut self) -> Result<Value, ConnectError> {
        let not_json = || ConnectError::NotARemoteProxy("it does not speak JSON".into());
        loop {
            if let Some(json) = self.inbox.next_object().map_err(|_| not_json())? {
                return serde_json::from_slice(&json).map_err(|_| not_json());
            }
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => self.inbox.push(text.as_bytes()),
                Some(Ok(Message::Binary(_))) => return Err(not_json()),
                // Pongs go out by themselves with the next read.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => return Err(ConnectError::from_close(frame)),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(ConnectError::Lost(std::io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_of_the_generation_that_was_chosen() {
        let token = Token::new("t");
        assert_eq!(
            authentication(&token, None, None),
            "{\"id\":1,\"method\":\"Authentication.Authenticate\",\"params\":{\"token\":\"t\"}}\n"
        );
        let identity = Identity { uuid: "u".into(), name: "n".into() };
        assert_eq!(
            authentication(&token, Some("x"), Some(&identity)),
            "{\"id\":1,\"method\":\"Authentication.Authenticate\",\"params\":\
             {\"name\":\"n\",\"nonce\":\"x\",\"token\":\"t\",\"uuid\":\"u\"}}\n"
        );
    }
}
