//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use nymea_remoteproxy::client::{Connector, SetupError};
use nymea_remoteproxy::protocol::Token;
use nymea_remoteproxy::trace_parent::TraceParent;
use uuid::Uuid;

const TOKEN_VARIABLE: &str = "REMOTEPROXY_TOKEN";
/// Where the standard says that a parent process leaves its trace.
const TRACE_VARIABLE: &str = "TRACEPARENT";
/// A node takes requests of 10 KiB; anything near that is not a token.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// Connect to a remote proxy, wait for the endpoint with the same token, and exchange data.
///
/// Without a mode, stdin is sent into the tunnel, and received data is written to stdout. At the end
/// of stdin the tunnel is closed; if stdin was empty (as with </dev/null), data is received until
/// the other endpoint leaves. The exit code is 0 only if the proxy has confirmed all data sent and
/// the tunnel was closed normally.
///
/// With --gateway and --app, many connections at a time reach one server that a NAT hides. They need
/// no token: apps find the gateway by its UUID.
#[derive(Debug, Parser)]
#[command(version)]
#[expect(clippy::struct_excessive_bools, reason = "a command line has switches")]
pub(crate) struct Options {
    /// The proxy: wss://host:port, or ws:// for one without TLS. With --gateway and --app also
    /// without WebSocket: tls://host:port, or tcp:// without TLS.
    #[arg(short, long, default_value = "wss://127.0.0.1:1212", value_parser = url)]
    pub(crate) url: String,
    /// The token. The list of processes shows it to all users of this machine; use
    /// --token-file or the environment variable `REMOTEPROXY_TOKEN` to avoid that.
    #[arg(short, long, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token in its first line.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Distinguishes tunnels with the same token; equal on both ends.
    #[arg(short, long, conflicts_with_all = ["gateway", "app"])]
    pub(crate) nonce: Option<String>,
    /// The name to send to the other endpoint.
    #[arg(long)]
    name: Option<String>,
    /// The UUID to send to the other endpoint [default: a random one], or to register a gateway
    /// under.
    #[arg(long, conflicts_with = "app")]
    uuid: Option<Uuid>,
    /// Accept any certificate. For tests only.
    #[arg(short, long, conflicts_with_all = ["ca", "fingerprint"])]
    pub(crate) ignore_ssl: bool,
    /// Trust the certificates in this PEM file instead of the system's.
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
    /// Trust the certificate with this SHA-256, as a node with a self-signed one logs it.
    #[arg(long, value_name = "SHA256", value_parser = fingerprint)]
    fingerprint: Option<String>,
    /// Log to stderr what happens; twice: in more detail.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Try again for this long (as in 90s, 1h) while the other endpoint does not connect or the
    /// proxy is temporarily not available.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
    /// Have the proxy record a trace of this connection, and show its id. With TRACEPARENT in the
    /// environment (W3C Trace Context), that trace is continued, with or without this option.
    #[arg(long)]
    trace: bool,
    /// After the end of input, receive until no data has arrived for this long
    /// [default: 0s, with --listen and --connect 5s, with --gateway 0s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    linger: Option<Duration>,
    /// Show on stderr how much data has been transferred.
    #[arg(long, conflicts_with_all = ["pingpong", "gateway", "app"])]
    pub(crate) progress: bool,

    /// Register as the gateway with this --uuid, stay registered, and connect each app that
    /// attaches to the address of --connect.
    #[arg(long, requires_all = ["uuid", "connect"], conflicts_with = "app",
        help_heading = "Modes")]
    gateway: bool,
    /// Attach each TCP connection to the address of --listen, as a separate app, to the gateway
    /// with this --server-uuid.
    #[arg(long, requires_all = ["server_uuid", "listen"], help_heading = "Modes")]
    app: bool,
    /// The UUID of the gateway for --app.
    #[arg(long, value_name = "UUID", requires = "app", help_heading = "Modes")]
    server_uuid: Option<Uuid>,
    /// Let one TCP connection to this address through the tunnel, as in 127.0.0.1:2222.
    #[arg(long, value_name = "ADDRESS", group = "mode", help_heading = "Modes")]
    listen: Option<String>,
    /// Connect the tunnel to this address, as in 127.0.0.1:22.
    #[arg(long, value_name = "ADDRESS", group = "mode", help_heading = "Modes")]
    connect: Option<String>,
    /// Measure round trips; to be run on both ends.
    #[arg(long, group = "mode", help_heading = "Modes")]
    pingpong: bool,
    /// Number of pings to send.
    #[arg(long, default_value_t = 100, requires = "pingpong", help_heading = "Modes",
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) count: u64,
    /// Size of a ping, in bytes.
    // A ping and an answer fit into the buffers of a tunnel, so that neither end has to read in
    // order to write.
    #[arg(long, default_value_t = 64, requires = "pingpong", help_heading = "Modes",
        value_parser = clap::value_parser!(u32).range(9..=32_768))]
    pub(crate) size: u32,
    /// Time between two pings.
    #[arg(long, default_value = "10ms", requires = "pingpong", help_heading = "Modes",
        value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
}

/// What to do with the tunnel.
pub(crate) enum Mode<'a> {
    Pipe,
    Listen(&'a str),
    Connect(&'a str),
    Gateway { uuid: Uuid, connect: &'a str },
    App { gateway: Uuid, listen: &'a str },
    PingPong,
}

impl Options {
    pub(crate) fn mode(&self) -> Mode<'_> {
        match (self.uuid, &self.connect, self.server_uuid, &self.listen) {
            (Some(uuid), Some(connect), ..) if self.gateway => {
                return Mode::Gateway { uuid, connect };
            }
            (_, _, Some(gateway), Some(listen)) if self.app => {
                return Mode::App { gateway, listen };
            }
            _ => {}
        }
        match (&self.listen, &self.connect, self.pingpong) {
            (Some(address), ..) => Mode::Listen(address),
            (_, Some(address), _) => Mode::Connect(address),
            (_, _, true) => Mode::PingPong,
            _ => Mode::Pipe,
        }
    }

    pub(crate) fn linger(&self) -> Duration {
        self.linger.unwrap_or(match self.mode() {
            Mode::Listen(_) | Mode::Connect(_) | Mode::App { .. } => Duration::from_secs(5),
            Mode::Pipe | Mode::PingPong | Mode::Gateway { .. } => Duration::ZERO,
        })
    }

    /// Ends the program with a usage error where options do not fit together.
    pub(crate) fn check(&self) {
        let Ok(connector) = Connector::new(&self.url) else { return };
        if !connector.is_websocket() && !self.gateway && !self.app {
            let message = "without --gateway or --app, --url must begin with wss:// or ws://";
            Self::command().error(ErrorKind::ArgumentConflict, message).exit();
        }
    }

    /// As [`Options::some_token`]. Ends the program with the usage error that there is none.
    pub(crate) fn token(&self) -> anyhow::Result<Token> {
        let Some(token) = self.some_token()? else {
            let message = "no token: give one with --token-file, REMOTEPROXY_TOKEN or --token";
            Self::command().error(ErrorKind::MissingRequiredArgument, message).exit();
        };
        Ok(token)
    }

    /// From the option, the file or the environment, in this order.
    pub(crate) fn some_token(&self) -> anyhow::Result<Option<Token>> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (_, Some(file)) => {
                first_line(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            _ => std::env::var(TOKEN_VARIABLE).unwrap_or_default(),
        };
        Ok((!token.is_empty()).then(|| Token::new(token)))
    }

    pub(crate) fn connector(&self) -> Result<Connector, SetupError> {
        let mut connector = Connector::new(&self.url)?;
        if let Some(name) = &self.name {
            connector = connector.name(name);
        }
        if let Some(uuid) = self.uuid {
            connector = connector.uuid(uuid);
        }
        let parent = std::env::var(TRACE_VARIABLE).ok().and_then(|text| text.parse().ok());
        if let Some(parent) = parent.or_else(|| self.trace.then(|| TraceParent::new(true))) {
            let sampled = parent.sampled || self.trace;
            connector = connector.trace_parent(TraceParent { sampled, ..parent });
            if self.trace {
                crate::say(&format!("trace id: {}", parent.trace_id()));
            }
        }
        match (&self.ca, &self.fingerprint) {
            (Some(file), _) => connector.ca(file),
            (_, Some(sha256)) => connector.fingerprint(sha256),
            _ if self.ignore_ssl => Ok(connector.insecure()),
            _ => Ok(connector),
        }
    }
}

fn first_line(file: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Checked here already, so that a wrong value is a usage error.
fn url(text: &str) -> Result<String, String> {
    Connector::new(text).map(|_| text.to_owned()).map_err(|error| with_source(&error))
}

fn fingerprint(text: &str) -> Result<String, String> {
    let connector = Connector::new("wss://localhost").map_err(|error| with_source(&error))?;
    connector.fingerprint(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_token_file_may_end_with_a_line_feed() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "secret\r\n").expect("writable");
        assert_eq!(first_line(file.path()).expect("readable"), "secret");
    }
}
