//! The other end of the wire: be an endpoint, and talk through a tunnel.
//!
//! There are two ways. Endpoints that share a token are paired:
//! [`Connector::connect`] connects and authenticates, [`Waiting::partner`] waits for the other
//! endpoint, and the resulting [`Tunnel`] is a byte stream and a message stream.
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
//!
//! And many apps attach to one gateway, which they know by its UUID: [`Gateway::register`] and
//! [`Apps::accept`] there, [`App::attach`] here.
//!
//! ```no_run
//! use nymea_remoteproxy::client::{App, Connector, Gateway};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use uuid::Uuid;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let uuid = Uuid::new_v4();
//! let connector = Connector::new("tls://127.0.0.1:2213")?.name("example");
//! let mut apps = Gateway::new(connector.clone(), uuid).register().await?;
//! let mut there = App::new(connector, uuid).attach().await?;
//! let mut here = apps.accept().await?;
//! there.write_all(b"hello").await?;
//! here.read_exact(&mut [0; 5]).await?;
//! here.shutdown().await?; // The app is closed after all data.
//! # Ok(())
//! # }
//! ```

mod app;
mod app_stream;
mod connector;
mod conversation;
mod error;
mod flow;
mod gateway;
mod message;
mod multiplexer;
mod registration;
mod tls;
mod tunnel;
mod waiting;
mod wire;

pub use app::{App, Attachment};
pub use app_stream::{AppInfo, AppStream};
pub use connector::Connector;
pub use error::{ConnectError, SetupError, TunnelError};
pub use gateway::{Apps, Gateway};
pub use message::Message;
pub use tunnel::Tunnel;
pub use waiting::Waiting;
