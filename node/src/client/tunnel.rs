//! Makes the tunnel, as often as `--wait` allows.

use std::time::Duration;

use nymea_remoteproxy::client::{ConnectError, Connector, Tunnel};
use nymea_remoteproxy::protocol::Token;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::info;

use crate::options::Options;

/// The pause between two tries; none after a wait without a partner, as the node has waited already,
/// and the other endpoint might connect and leave in the pause.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn open(options: &Options) -> anyhow::Result<Tunnel> {
    let token = options.token()?;
    let connector = options.connector()?;
    let nonce = options.nonce.as_deref();
    let tunnel = match options.wait {
        None => attempt(&connector, &token, nonce).await?,
        Some(wait) => retry(wait, || attempt(&connector, &token, nonce)).await?,
    };
    let other = tunnel.other();
    info!(name = ?other.name, uuid = ?other.uuid, "the tunnel is established");
    Ok(tunnel)
}

/// Tries for as long as `wait`, while the errors are temporary.
pub(crate) async fn retry<T, F: Future<Output = Result<T, ConnectError>>>(
    wait: Duration,
    attempt: impl Fn() -> F,
) -> Result<T, ConnectError> {
    let deadline = Instant::now() + wait;
    loop {
        let result = timeout_at(deadline, attempt()).await;
        let error = match result.unwrap_or(Err(ConnectError::NobodyCame)) {
            Err(error) if error.is_temporary() => error,
            result => return result,
        };
        let nobody_came = matches!(error, ConnectError::NobodyCame);
        let next = Instant::now() + if nobody_came { Duration::ZERO } else { PAUSE };
        if next >= deadline {
            return Err(error);
        }
        info!(%error, "trying again");
        sleep_until(next).await;
    }
}

async fn attempt(
    connector: &Connector,
    token: &Token,
    nonce: Option<&str>,
) -> Result<Tunnel, ConnectError> {
    let waiting = connector.connect(token, nonce).await?;
    info!("authenticated, waiting for the other endpoint");
    waiting.partner().await
}
