//! Reads the configuration files of the original server, releases 0.1.x and 1.x, and translates them
//! into settings of this one.
//!
//! The loader checks [`is_ini`] first, and then uses the settings found by [`Legacy::read`] like those
//! of a TOML file. Values are not validated here. Where a file sets nothing, the defaults of this
//! server apply, not those of the original.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ini::{self, Entry};

/// The settings from a file of the original server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legacy {
    /// Settings by their keys here, as in `timeouts.waiting`, with their values as text.
    pub settings: Vec<(String, String)>,
    /// The listeners of the node.
    pub listeners: Vec<Listener>,
    /// Warnings about keys without a meaning here, or with another one, each with advice.
    pub warnings: Vec<String>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// WebSocket.
    WebSocket {
        /// `host:port`
        address: String,
        /// `wss://` or `ws://`
        tls: bool,
    },
    /// Messages on plain TCP, or on TLS.
    Tcp {
        /// `host:port`
        address: String,
        /// TLS or not.
        tls: bool,
    },
    /// A unix socket.
    Unix {
        /// Its file.
        path: String,
    },
}

const SERVER: &str = "ProxyServer";
const TLS: &str = "SSL";
const AWS: &str = "AWS";
const UNIX: &str = "UnixSocketServerTunnelProxy";
const SECTIONS: [&str; 8] = [
    SERVER,
    TLS,
    AWS,
    "WebSocketServer",
    "TcpServer",
    UNIX,
    "WebSocketServerTunnelProxy",
    "TcpServerTunnelProxy",
];
const SERVER_KEYS: [&str; 9] = [
    "name",
    "writeLogs",
    "logFile",
    "logEngineEnabled",
    "monitorSocket",
    "jsonRpcTimeout",
    "authenticationTimeout",
    "inactiveTimeout",
    "aloneTimeout",
];
const TLS_KEYS: [&str; 3] = ["certificate", "certificateKey", "certificateChain"];

/// Sections by which the original listens on TCP, with the port if none is given, and what its
/// releases 1.x added.
const LISTENERS: [(&str, u16, Kind, Generation); 4] = [
    ("WebSocketServer", 1212, Kind::WebSocket, Generation::Token),
    ("TcpServer", 1213, Kind::Tcp, Generation::Token),
    ("WebSocketServerTunnelProxy", 2212, Kind::WebSocket, Generation::TunnelProxy),
    ("TcpServerTunnelProxy", 2213, Kind::Tcp, Generation::TunnelProxy),
];

#[derive(Clone, Copy)]
enum Kind {
    WebSocket,
    Tcp,
}

#[derive(Clone, Copy, PartialEq)]
enum Generation {
    Token,
    TunnelProxy,
}

/// Whether this is a file of the original server and not one of ours: it has one of its sections,
/// or, as the first releases wrote it, one of its keys in front of all sections. In TOML as it is
/// written for this server there is neither.
pub fn is_ini(text: &str) -> bool {
    let mut in_front = true;
    text.lines().map(str::trim).any(|line| {
        if let Some(section) = line.strip_prefix('[') {
            in_front = false;
            return section.strip_suffix(']').is_some_and(|name| SECTIONS.contains(&name));
        }
        let key = line.split('=').next().unwrap_or_default().trim();
        let is_assignment = line.contains('=');
        in_front && is_assignment && (SERVER_KEYS.contains(&key) || TLS_KEYS.contains(&key))
    })
}

impl Legacy {
    /// Reads such a file. There are no errors: what cannot be read is warned of.
    pub fn read(text: &str) -> Self {
        let file = ini::parse(text);
        let mut reader = Reader { entries: file.entries, found: Self::default() };
        for line in file.not_understood {
            reader.warn(format!("line {line} is neither a [section] nor key=value; ignored"));
        }
        for entry in &mut reader.entries {
            adopt(entry);
        }
        reader.server();
        reader.timeouts();
        let tls = reader.tls();
        reader.listeners(tls, &file.sections);
        reader.aws();
        reader.rest();
        reader.found
    }
}

/// Puts a key of the first releases, which had no section for it, into the one it got later.
fn adopt(entry: &mut Entry) {
    if entry.section.is_empty() {
        let section = if TLS_KEYS.contains(&&*entry.key) { TLS } else { SERVER };
        entry.section = section.into();
    }
}

/// Takes keys from a file, each once.
struct Reader {
    entries: Vec<Entry>,
    found: Legacy,
}

impl Reader {
    fn server(&mut self) {
        if let Some(name) = self.take(SERVER, "name") {
            self.set("server.name", name);
        }
        let is_written = self.take_bool(SERVER, "writeLogs").unwrap_or(false);
        if let (Some(file), true) = (self.take(SERVER, "logFile"), is_written) {
            self.set("log.file", file);
        }
        if self.take_bool(SERVER, "logEngineEnabled") == Some(true) {
            self.warn_key(
                SERVER,
                "logEngineEnabled",
                "no statistics are written to files; collect /metrics of admin.listen instead",
            );
        }
        if let Some(path) = self.take(SERVER, "monitorSocket") {
            self.set("monitor.socket", path);
        }
    }

    fn timeouts(&mut self) {
        for (key, here) in [
            ("authenticationTimeout", "authentication.timeout"),
            ("inactiveTimeout", "timeouts.inactivity"),
            ("aloneTimeout", "timeouts.waiting"),
        ] {
            let Some(written) = self.take(SERVER, key) else { continue };
            if let Ok(millis @ 1..) = written.parse() {
                let duration = humantime::format_duration(Duration::from_millis(millis));
                self.set(here, duration.to_string());
            } else {
                let why = format!("`{written}` is no number of milliseconds; set {here}");
                self.warn_key(SERVER, key, &why);
            }
        }
        if self.take(SERVER, "jsonRpcTimeout").is_some() {
            self.warn_key(
                SERVER,
                "jsonRpcTimeout",
                "all requests but one are answered at once; how long it may take to authenticate \
                 is authentication.timeout",
            );
        }
    }

    /// Whether there is TLS.
    fn tls(&mut self) -> bool {
        let is_enabled = self.take_bool(TLS, "enabled").unwrap_or(true);
        for (key, here) in
            [("certificate", "tls.certificate"), ("certificateKey", "tls.certificate_key")]
        {
            match self.take(TLS, key) {
                Some(path) if path.starts_with(":/") => {
                    let why =
                        format!("`{path}` is compiled into the original; set {here} to a file");
                    self.warn_key(TLS, key, &why);
                }
                // The files need not even exist then.
                Some(path) if is_enabled => self.set(here, path),
                Some(_) | None => {}
            }
        }
        if self.take(TLS, "certificateChain").is_some() && is_enabled {
            self.warn_key(
                TLS,
                "certificateChain",
                "tls.certificate holds the whole chain; append this file to that one, the \
                 server's own certificate first",
            );
        }
        is_enabled
    }

    fn listeners(&mut self, tls: bool, sections: &[String]) {
        let is_there = |section: &str| sections.iter().any(|there| there == section);
        let mut has_tunnel_proxy = is_there(UNIX);
        for (section, default_port, kind, generation) in LISTENERS {
            if !is_there(section) {
                continue;
            }
            has_tunnel_proxy |= generation == Generation::TunnelProxy;
            let address = self.address(section, default_port);
            self.found.listeners.push(match kind {
                Kind::WebSocket => Listener::WebSocket { address, tls },
                Kind::Tcp => Listener::Tcp { address, tls },
            });
        }
        if is_there(UNIX) {
            let path = self.take(UNIX, "unixSocketFileName");
            let path = path.unwrap_or_else(|| "/run/nymea-remoteproxy.socket".into());
            self.found.listeners.push(Listener::Unix { path });
        }
        if has_tunnel_proxy {
            self.set("tunnel_proxy.enabled", "true".into());
        }
        if self.found.listeners.is_empty() {
            self.warn(
                "the file does not say where to listen, so the defaults hold, which are not those \
                 of the original"
                    .into(),
            );
        }
    }

    /// `host:port` of a section.
    fn address(&mut self, section: &str, default_port: u16) -> String {
        let host = self.take(section, "host").unwrap_or_else(|| "127.0.0.1".into());
        let port = match self.take(section, "port") {
            None => default_port,
            Some(written) => written.parse().unwrap_or_else(|_| {
                let why = format!("`{written}` is no port; {default_port} is taken instead");
                self.warn_key(section, "port", &why);
                default_port
            }),
        };
        match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).to_string(),
            Err(_) => format!("{host}:{port}"),
        }
    }

    fn aws(&mut self) {
        for key in ["region", "authorizerLambdaFunction", "awsCredentialsUrl"] {
            if self.take(AWS, key).is_some() {
                self.warn_key(
                    AWS,
                    key,
                    "tokens are not checked by AWS; set authentication.server to the URL of a \
                     service that does",
                );
            }
        }
    }

    /// Warns of all keys that no setting was made from.
    fn rest(&mut self) {
        for Entry { section, key, .. } in std::mem::take(&mut self.entries) {
            self.warn_key(&section, &key, "unknown to the original server, too; ignored");
        }
    }

    /// The value of a key; none if it is empty. The last one counts.
    fn take(&mut self, section: &str, key: &str) -> Option<String> {
        let is_it = |entry: &mut Entry| entry.section == section && entry.key == key;
        let value = self.entries.extract_if(.., is_it).last()?.value;
        (!value.is_empty()).then_some(value)
    }

    /// Reads a boolean like the original: all values except `0` and `false` are true. An empty value is
    /// treated as missing.
    fn take_bool(&mut self, section: &str, key: &str) -> Option<bool> {
        let value = self.take(section, key)?;
        Some(value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn set(&mut self, key: &str, value: String) {
        self.found.settings.push((key.into(), value));
    }

    fn warn_key(&mut self, section: &str, key: &str, why: &str) {
        self.warn(format!("[{section}] {key}: {why}"));
    }

    fn warn(&mut self, warning: String) {
        self.found.warnings.push(warning);
    }
}

#[cfg(test)]
#[path = "legacy_tests.rs"]
mod tests;
