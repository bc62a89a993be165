//! Registers a UUID as a gateway and answers its apps, many at a time.
//!
//! Start a node with its defaults (`cargo run --release`), then:
//!
//! ```sh
//! uuid=$(cat /proc/sys/kernel/random/uuid)
//! cargo run -p nymea-remoteproxy-node --example gateway -- $uuid
//! ```
//!
//! The example `app` attaches to it. Another node is given as a second argument, as in
//! `wss://proxy.example.com:1212`.
#![expect(clippy::print_stdout, reason = "the lines are the result of this program")]

use anyhow::{Context, Result};
use nymea_remoteproxy::client::{AppStream, Connector, Gateway};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let uuid: Uuid = arguments.next().context("usage: gateway <uuid> [url]")?.parse()?;
    let url = arguments.next().unwrap_or_else(|| "wss://127.0.0.1:1212".into());
    // A node with its defaults has a self-signed certificate. Elsewhere, leave `insecure` out: then
    // the certificates of the system decide, or those of `Connector::ca`.
    let connector = Connector::new(&url)?.name("kitchen").insecure();
    let mut apps = Gateway::new(connector, uuid).register().await?;
    println!("registered as {uuid}");
    loop {
        // From now on the gateway is registered again whenever the connection is lost. An error is
        // final, such as a token that the proxy refuses.
        let app = apps.accept().await?;
        // One task for each app: it ends with the stream of the app, and all of them with this program.
        tokio::spawn(async move {
            let name = app.info().name.clone();
            if let Err(error) = serve(app).await {
                println!("{name}: {error}");
            }
        });
    }
}

/// Receives a line, answers with another one, and closes the app after it.
async fn serve(app: AppStream) -> Result<()> {
    let name = app.info().name.clone();
    let mut app = BufReader::new(app);
    let mut line = String::new();
    app.read_line(&mut line).await?;
    println!("{name} asks: {}", line.trim_end());
    app.write_all(format!("{name} asked: {}\n", line.trim_end()).as_bytes()).await?;
    app.shutdown().await?;
    Ok(())
}
