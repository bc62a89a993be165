//! Attaches to a gateway, sends a line, and prints the answer.
//!
//! Start a node with its defaults (`cargo run --release`) and the example `gateway`, then with the
//! UUID of the gateway:
//!
//! ```sh
//! cargo run -p nymea-remoteproxy-node --example app -- $uuid "how warm is it?"
//! ```
//!
//! Another node is given as a third argument, as in `wss://proxy.example.com:1212`: any node of the
//! cluster in which the gateway has registered.
#![expect(clippy::print_stdout, reason = "the answer is the result of this program")]

use anyhow::{Context, Result};
use nymea_remoteproxy::client::{App, Connector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const USAGE: &str = "usage: app <uuid of the gateway> <line> [url]";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let gateway: Uuid = arguments.next().context(USAGE)?.parse()?;
    let line = arguments.next().context(USAGE)?;
    let url = arguments.next().unwrap_or_else(|| "wss://127.0.0.1:1212".into());
    // A node with its defaults has a self-signed certificate. Elsewhere, leave `insecure` out: then
    // the certificates of the system decide, or those of `Connector::ca`.
    let connector = Connector::new(&url)?.name("phone").insecure();
    let mut attachment = App::new(connector, gateway).attach().await?;
    attachment.write_all(format!("{line}\n").as_bytes()).await?;
    // The gateway closes the attachment after its answer.
    let mut answer = String::new();
    attachment.read_to_string(&mut answer).await?;
    println!("{}", answer.trim_end());
    Ok(())
}
