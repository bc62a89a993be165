//! The other end of the wire: be an endpoint, and talk through a tunnel.
//!
//! [`Connector::connect`] connects and authenticates, [`Waiting::partner`] waits for the other
//! endpoint, and the [`Tunnel`] that comes of it is a byte stream and a message stream.
//!
//! ```no_run
//! use nymea_remoteproxy::{client::Connector, protocol::Token};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let connector = Connector::new("wss://127.0.0.1:1212")?.name("example");
//! let waiting = connector.connect(&Token::new("secret"), None).await?;
//! let mut tunnel = waiting.partner().await?;
//! tunnel.write_all(b"hello").await?;
//! let mut answer = [0; 5];
//! tunnel.read_exact(&mut answer).await?;
//! tunnel.shutdown().await?; // Ok: the proxy has all that was written.
//! # Ok(())
//! # }
//! ```

mod connector;
mod error;
mod flow;
mod message;
mod tls;
mod tunnel;
mod waiting;

pub use connector::Connector;
pub use error::{ConnectError, SetupError, TunnelError};
pub use message::Message;
pub use tunnel::Tunnel;
pub use waiting::Waiting;
