//! Registers a gateway or an app with the tunnel proxy.

use serde_json::Value;
use tokio::time::timeout;

use super::ConnectError;
use super::connector::Connector;
use super::conversation::{Conversation, REQUEST};
use super::wire::Wire;
use crate::protocol::{Token, TunnelProxyError, request};

/// Connects and calls `method` of the tunnel proxy. On success returns the wire for the data, and the
/// params of the answer.
pub(super) async fn register(
    connector: &Connector,
    method: &str,
    mut params: Value,
    token: Option<&Token>,
) -> Result<(Wire, Value), ConnectError> {
    if let Some(token) = token {
        params["token"] = token.reveal().into();
    }
    let mut conversation = Conversation::new(connector.open().await?);
    let registering = async move {
        conversation.send(request(REQUEST, method, Some(params))).await?;
        let mut answer = conversation.answer().await?;
        if answer["status"] != "success" {
            return Err(conversation.refusal(&answer, token).await);
        }
        accepted(&answer["params"])?;
        Ok((conversation.into_wire(connector).await?, answer["params"].take()))
    };
    // In a box: the conversation is large, and soon over.
    timeout(connector.authentication_timeout, Box::pin(registering))
        .await
        .map_err(|_| ConnectError::Timeout("the registration"))?
}

fn accepted(params: &Value) -> Result<(), ConnectError> {
    let label = params["tunnelProxyError"].as_str().unwrap_or_default();
    let is = |error: TunnelProxyError| error.label() == label;
    Err(match label {
        "TunnelProxyErrorNoError" if params["slipEnabled"] != false => return Ok(()),
        "TunnelProxyErrorNoError" => ConnectError::Protocol("it does not speak SLIP".into()),
        _ if is(TunnelProxyError::ServerNotFound) => ConnectError::GatewayNotFound,
        _ if is(TunnelProxyError::AlreadyRegistered) => ConnectError::AlreadyRegistered,
        _ if is(TunnelProxyError::InvalidUuid) => ConnectError::InvalidUuid,
        _ if is(TunnelProxyError::InternalServerError) => ConnectError::TryAgainLater,
        other => ConnectError::Rejected(other.chars().take(100).collect()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_told_by_its_error() {
        let result = |error: &str| accepted(&json!({ "tunnelProxyError": error }));
        assert!(result("TunnelProxyErrorNoError").is_ok());
        assert!(matches!(
            result("TunnelProxyErrorServerNotFound"),
            Err(ConnectError::GatewayNotFound)
        ));
        assert!(matches!(
            result("TunnelProxyErrorAlreadyRegistered"),
            Err(ConnectError::AlreadyRegistered)
        ));
        assert!(matches!(result("TunnelProxyErrorInvalidUuid"), Err(ConnectError::InvalidUuid)));
        assert!(
            result("TunnelProxyErrorInternalServerError").is_err_and(|error| error.is_temporary())
        );
        assert!(matches!(result("x"), Err(ConnectError::Rejected(_))));
        let raw = json!({ "tunnelProxyError": "TunnelProxyErrorNoError", "slipEnabled": false });
        assert!(matches!(accepted(&raw), Err(ConnectError::Protocol(_))));
    }
}
