//! `--gateway` and `--app`: many simultaneous connections through the tunnel proxy to a server that a
//! NAT hides. An attachment carries one stream of bytes, so each connection attaches as a separate
//! app.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nymea_remoteproxy::client::{App, AppStream, Apps, Attachment, ConnectError, Gateway};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};
use uuid::Uuid;

use crate::carry::carry;
use crate::options::Options;
use crate::{advice, say, tunnel};

/// Connections at a time; more have to wait.
const CONNECTIONS: usize = 1024;
const DIAL: Duration = Duration::from_secs(10);
/// Before accepting again when that has failed, as with too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Registers as a gateway and connects each app to `address`.
pub(crate) async fn serve(options: &Options, uuid: Uuid, address: &str) -> anyhow::Result<()> {
    let mut gateway = Gateway::new(options.connector()?, uuid);
    if let Some(token) = options.some_token()? {
        gateway = gateway.token(token);
    }
    let mut apps: Apps = match options.wait {
        None => gateway.register().await?,
        Some(wait) => tunnel::retry(wait, || gateway.register()).await?,
    };
    info!(%uuid, "registered");
    let linger = options.linger();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let app = apps.accept().await.context("the gateway is no longer registered")?;
        debug!(info = ?app.info(), "an app has attached");
        let address = address.to_owned();
        spawn(place, async move { connect(app, &address, linger).await });
    }
}

async fn connect(app: AppStream, address: &str, linger: Duration) -> anyhow::Result<()> {
    let local = timeout(DIAL, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .with_context(|| format!("cannot connect to {address}"))?;
    carry(local, app, linger).await
}

/// Attaches each connection to `address` to the gateway.
pub(crate) async fn listen(options: &Options, gateway: Uuid, address: &str) -> anyhow::Result<()> {
    let mut app = App::new(options.connector()?, gateway);
    if let Some(token) = options.some_token()? {
        app = app.token(token);
    }
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    info!(address = %listener.local_addr()?, "listening");
    let (linger, wait) = (options.linger(), options.wait);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        match listener.accept().await {
            Ok((local, from)) => {
                debug!(%from, "a connection is accepted");
                let app = app.clone();
                spawn(place, async move { carry(local, attach(&app, wait).await?, linger).await });
            }
            Err(error) => {
                say(&format!("error: cannot accept on {address}: {error}"));
                sleep(PAUSE).await;
            }
        }
    }
}

async fn attach(app: &App, wait: Option<Duration>) -> Result<Attachment, ConnectError> {
    match wait {
        None => app.attach().await,
        Some(wait) => tunnel::retry(wait, || app.attach()).await,
    }
}

/// Says what becomes of one connection; the others go on.
fn spawn(
    place: OwnedSemaphorePermit,
    connection: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            say(&format!("error: a connection failed: {}", advice::line(&error)));
        }
        drop(place);
    });
}
