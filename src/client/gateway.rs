//! An endpoint to which many apps attach.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::app_stream::AppStream;
use super::multiplexer::{self, Connection, Limits};
use super::registration::register;
use super::{ConnectError, Connector};
use crate::protocol::{Token, braced};

/// Apps that have attached and wait for [`Apps::accept`]; with more, they are disconnected.
const UNACCEPTED: usize = 128;
/// With less, it is no use to send by the window.
const SMALLEST_WINDOW: u32 = 1024;
/// Between two tries to register again, from the first to the longest; up to half is left to chance.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A registration that lasted this long does not count as a failed attempt.
const STOOD: Duration = Duration::from_mins(1);

/// Registers under a UUID, and stays registered.
///
/// The name is that of the [`Connector`].
///
/// ```no_run
/// use nymea_remoteproxy::client::{ConnectError, Connector, Gateway};
/// use tokio::io::AsyncWriteExt;
/// use uuid::Uuid;
///
/// async fn serve(connector: Connector, uuid: Uuid) -> Result<(), ConnectError> {
///     let mut apps = Gateway::new(connector, uuid).register().await?;
///     loop {
///         let mut app = apps.accept().await?;
///         tokio::spawn(async move {
///             app.write_all(b"hello\n").await?;
///             app.shutdown().await
///         });
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Gateway {
    connector: Connector,
    uuid: Uuid,
    token: Option<Token>,
    flow_control: bool,
    limits: Limits,
}

impl Gateway {
    /// Registers under this UUID.
    pub fn new(connector: Connector, uuid: Uuid) -> Self {
        let limits = Limits {
            backlog: 1 << 20,
            stalled: Duration::from_secs(5),
            ping: Duration::from_secs(30),
            silence: Duration::from_secs(75),
        };
        Self { connector, uuid, token: None, flow_control: true, limits }
    }

    /// Shows this token, for proxies that demand one.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Whether the proxy is asked for a window for each app. Default true. Without one, as with
    /// servers that do not know of it, an app that takes its data too slowly is closed.
    #[must_use]
    pub fn flow_control(mut self, wanted: bool) -> Self {
        self.flow_control = wanted;
        self
    }

    /// How many bytes of an app may wait to be read. Default 1 MiB. With more, nothing is read for
    /// any app, until this one is read or [`Gateway::stalled_timeout`] is over.
    #[must_use]
    pub fn backlog(mut self, bytes: usize) -> Self {
        self.limits.backlog = bytes.clamp(1, u32::MAX as usize / 2);
        self
    }

    /// How long the backlog of an app may stay full until it is given up. Default 5 s.
    #[must_use]
    pub fn stalled_timeout(mut self, timeout: Duration) -> Self {
        self.limits.stalled = timeout;
        self
    }

    /// The interval of pings to the proxy. Default 30 s; nodes usually close a gateway that is silent
    /// for 60 s. A proxy that is silent for two and a half times as long is lost.
    #[must_use]
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.limits.ping = interval;
        self.limits.silence = interval.mul_f64(2.5);
        self
    }

    /// Connects and registers. From then on it is registered again whenever the connection is lost,
    /// until the [`Apps`] are dropped.
    pub async fn register(&self) -> Result<Apps, ConnectError> {
        let connection = self.connect().await?;
        let (sender, accepted) = mpsc::channel(UNACCEPTED);
        let task = tokio::spawn(self.clone().stay(connection, sender));
        Ok(Apps { accepted, task: Some(AbortOnDropHandle::new(task)) })
    }

    async fn connect(&self) -> Result<Connection, ConnectError> {
        let (name, _) = self.connector.name_and_uuid();
        let mut params = json!({ "serverName": name, "serverUuid": braced(self.uuid) });
        let plain = params.clone();
        if !self.flow_control {
            return self.call(plain).await;
        }
        params["flowControl"] = true.into();
        match self.call(params).await {
            // Servers of other makers do not know of it.
            Err(ConnectError::Rejected(words)) if words.contains("flowControl") => {
                self.call(plain).await
            }
            result => result,
        }
    }

    async fn call(&self, params: Value) -> Result<Connection, ConnectError> {
        let (method, token) = ("TunnelProxy.RegisterServer", self.token.as_ref());
        let (wire, answer) = register(&self.connector, method, params, token).await?;
        let window = answer["clientWindow"].as_u64().and_then(|window| u32::try_from(window).ok());
        Ok(Connection { wire, window: window.filter(|window| *window >= SMALLEST_WINDOW) })
    }

    /// Stays registered until that is of no more use.
    async fn stay(
        self,
        mut connection: Connection,
        accepted: mpsc::Sender<AppStream>,
    ) -> ConnectError {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            let error = multiplexer::run(connection, self.limits, &accepted).await;
            warn!(%error, "the connection to the proxy is lost, registering again");
            if since.elapsed() > STOOD {
                pause = FIRST_PAUSE;
            }
            connection = loop {
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                match self.connect().await {
                    Ok(connection) => break connection,
                    Err(error) if is_final(&error) => return error,
                    Err(error) => debug!(%error, "not registered, trying again"),
                }
            };
            info!("registered again");
        }
    }
}

/// Whether trying again is of no use. What a node says that starts or takes over is not final: the
/// UUID may be registered until the last registration has run out.
fn is_final(error: &ConnectError) -> bool {
    matches!(
        error,
        ConnectError::Setup(_)
            | ConnectError::CertificateNotTrusted(_)
            | ConnectError::FingerprintMismatch { .. }
            | ConnectError::TokenRefused
            | ConnectError::InvalidUuid
            | ConnectError::Rejected(_)
    )
}

/// The apps that attach to a registered [`Gateway`]. Dropping it ends the registration.
#[derive(Debug)]
pub struct Apps {
    accepted: mpsc::Receiver<AppStream>,
    task: Option<AbortOnDropHandle<ConnectError>>,
}

impl Apps {
    /// The next app that has attached. It waits while the gateway is not registered, and fails when
    /// it cannot be any more. Dropping the future loses nothing.
    pub async fn accept(&mut self) -> Result<AppStream, ConnectError> {
        if let Some(app) = self.accepted.recv().await {
            return Ok(app);
        }
        let end = match self.task.take() {
            Some(task) => task.await.ok(),
            None => None,
        };
        Err(end.unwrap_or_else(|| ConnectError::Lost(io::ErrorKind::NotConnected.into())))
    }
}
