//! Two endpoints meet by a token and exchange a line.
//!
//! Start a node with its defaults (`cargo run --release`), then:
//!
//! ```sh
//! cargo run -p nymea-remoteproxy-node --example pair
//! ```
//!
//! Both endpoints are in this program, and all they share is the token: in practice they are on
//! different machines, and may connect to different nodes of a cluster. Another node is given as an
//! argument, as in `wss://proxy.example.com:1212`.
#![expect(clippy::print_stdout, reason = "the lines are the result of this program")]

use anyhow::Result;
use nymea_remoteproxy::client::{Connector, Tunnel};
use nymea_remoteproxy::protocol::Token;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "wss://127.0.0.1:1212".into());
    // A program that knows the token can be the other endpoint: choose one that cannot be guessed.
    let token = Token::new(Uuid::new_v4().to_string());
    tokio::try_join!(answer(&url, &token), ask(&url, &token))?;
    Ok(())
}

/// Receives a line, answers with another one, and closes the tunnel.
async fn answer(url: &str, token: &Token) -> Result<()> {
    let mut tunnel = BufReader::new(meet(url, token, "kitchen").await?);
    let mut line = String::new();
    tunnel.read_line(&mut line).await?;
    println!("{} asks: {}", tunnel.get_ref().other().name, line.trim_end());
    tunnel.write_all(b"21 degrees\n").await?;
    // Succeeds when the proxy has confirmed the answer.
    tunnel.shutdown().await?;
    Ok(())
}

/// Sends a line, and reads until the other endpoint closes the tunnel.
async fn ask(url: &str, token: &Token) -> Result<()> {
    let mut tunnel = meet(url, token, "phone").await?;
    tunnel.write_all(b"how warm is it?\n").await?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await?;
    println!("{} answers: {}", tunnel.other().name, answer.trim_end());
    Ok(())
}

/// Connects, authenticates, and waits for the endpoint with the same token.
async fn meet(url: &str, token: &Token, name: &str) -> Result<Tunnel> {
    // A node with its defaults has a self-signed certificate. Elsewhere, leave `insecure` out: then
    // the certificates of the system decide, or those of `Connector::ca`.
    let connector = Connector::new(url)?.name(name).insecure();
    Ok(connector.connect(token, None).await?.partner().await?)
}
