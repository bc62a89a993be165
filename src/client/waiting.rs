//! The messages between an endpoint and the proxy before the tunnel is established.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::connector::{Connector, Opened};
use super::conversation::{Conversation, REQUEST};
use super::{ConnectError, SetupError, Tunnel};
use crate::protocol::{
    ESTABLISHED_GENERATION_1, ESTABLISHED_GENERATION_2, Identity, Token, request,
};

/// An authenticated connection that waits for the other endpoint.
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
        opened: Opened,
        connector: &Connector,
        token: &Token,
        nonce: Option<&str>,
    ) -> Result<Self, ConnectError> {
        let mut conversation = Conversation::new(opened);
        let identity = connector.identity();
        let message = authentication(token, nonce, identity.as_ref());
        conversation.send(message).await?;
        let answer = conversation.answer().await?;
        if answer["status"] != "success" {
            return Err(conversation.refusal(&answer, Some(token)).await);
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
        let other = timeout_at(self.deadline, established(&mut self.conversation))
            .await
            .map_err(|_| ConnectError::NobodyCame)??;
        match self.conversation.into_opened()? {
            Opened::WebSocket(socket) => {
                Ok(Tunnel::new(*socket, other, self.message_limit, self.close_timeout))
            }
            Opened::Bytes(_) => Err(SetupError::NotWebSocket.into()),
        }
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
    request(REQUEST, "Authentication.Authenticate", Some(params))
}

async fn established(conversation: &mut Conversation) -> Result<Identity, ConnectError> {
    loop {
        let message = conversation.next().await?;
        let name = message["notification"].as_str().unwrap_or_default();
        if name == ESTABLISHED_GENERATION_1 || name == ESTABLISHED_GENERATION_2 {
            let text = |key| message["params"][key].as_str().unwrap_or_default().to_owned();
            return Ok(Identity { uuid: text("uuid"), name: text("name") });
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
