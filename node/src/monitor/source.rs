//! Asks a monitor socket. A connection that broke is made again with the next question.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nymea_remoteproxy::monitor::{Report, Request};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest line that is taken for an answer: of hundreds of thousands of apps.
const MAX_LINE: u64 = 64 << 20;

/// Why there is no report.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    /// No node listens on the socket, or this process lacks the permission to connect.
    #[error("no connection to {}: {}", .path.display(), advice(.error))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the system. It is part of the text, with advice, and so not a source.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the node broke")]
    Broken(#[source] io::Error),
    /// The node closed it.
    #[error("the node closed the connection: it is shutting down, or has too many monitors")]
    Closed,
    /// The node is busy, or not one.
    #[error("no answer within {PATIENCE:?}")]
    Silent,
    /// The other end is not a node.
    #[error("the program at this socket is not a remote proxy")]
    NoReport(#[source] serde_json::Error),
    /// The same.
    #[error("the program at this socket is not a remote proxy: its line exceeds {MAX_LINE} bytes")]
    TooLong,
}

fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; does a node run that has it as \
                                    monitor.socket? --socket names another one"
            .into(),
        io::ErrorKind::ConnectionRefused => "the node that made it has ended".into(),
        io::ErrorKind::PermissionDenied => {
            "it is for the user and the group that the node runs as".into()
        }
        _ => error.to_string(),
    }
}

/// A report, and as it came.
pub(crate) struct Answer {
    pub(crate) report: Report,
    /// With its line feed.
    pub(crate) line: Vec<u8>,
}

/// A monitor socket.
pub(crate) struct Source {
    path: PathBuf,
    connection: Option<BufReader<UnixStream>>,
}

impl Source {
    /// Creates a source that has not connected yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.into(), connection: None }
    }

    /// Requests a report.
    pub(crate) async fn refresh(&mut self, print_all: bool) -> Result<Answer, SourceError> {
        // It is put back only when it is of further use.
        let connection = self.connection.take();
        let asking = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => connect(&self.path).await?,
            };
            let answer = ask(&mut connection, print_all).await?;
            Ok((connection, answer))
        };
        let (connection, answer) =
            timeout(PATIENCE, asking).await.unwrap_or(Err(SourceError::Silent))?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

async fn connect(path: &Path) -> Result<BufReader<UnixStream>, SourceError> {
    let connected = UnixStream::connect(path).await;
    let stream = connected.map_err(|error| SourceError::Connect { path: path.into(), error })?;
    Ok(BufReader::new(stream))
}

async fn ask(
    connection: &mut BufReader<UnixStream>,
    print_all: bool,
) -> Result<Answer, SourceError> {
    let mut request =
        serde_json::to_vec(&Request::Refresh { print_all }).expect("a constant and a boolean");
    request.push(b'\n');
    connection.get_mut().write_all(&request).await.map_err(SourceError::Broken)?;
    let mut line = Vec::new();
    let read = connection.take(MAX_LINE).read_until(b'\n', &mut line).await;
    match read.map_err(SourceError::Broken)? {
        0 => return Err(SourceError::Closed),
        _ if line.len() as u64 == MAX_LINE => return Err(SourceError::TooLong),
        _ => {}
    }
    if !line.ends_with(b"\n") {
        return Err(SourceError::Closed);
    }
    let report = serde_json::from_slice(&line).map_err(SourceError::NoReport)?;
    Ok(Answer { report, line })
}
