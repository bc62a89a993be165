//! The listeners for endpoints, `[[listen]]`, and load balancers in front of them, `[proxies]`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Config, Fault, Networks, units};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Section", into = "Section")]
pub enum Listen {
    /// WebSocket: `wss://`, or `ws://` without TLS.
    WebSocket {
        /// Port 0 lets the system choose one.
        address: SocketAddr,
        /// Off: a load balancer in front must terminate TLS.
        tls: bool,
    },
    /// A stream of bytes on TCP, with TLS or without.
    Tcp {
        /// Port 0 lets the system choose one.
        address: SocketAddr,
        /// Off: a load balancer in front must terminate TLS.
        tls: bool,
    },
    /// A stream of bytes on a unix socket.
    Unix {
        /// The file of the socket.
        path: PathBuf,
    },
}

impl Listen {
    /// The IP address, and whether there is TLS.
    pub fn ip(&self) -> Option<(SocketAddr, bool)> {
        match *self {
            Self::WebSocket { address, tls } | Self::Tcp { address, tls } => Some((address, tls)),
            Self::Unix { .. } => None,
        }
    }

    /// The address if other machines can connect to it; `0.0.0.0` and `::` are every address of
    /// this machine.
    pub fn open_to_others(&self) -> Option<IpAddr> {
        let (address, _) = self.ip()?;
        (!address.ip().to_canonical().is_loopback()).then_some(address.ip())
    }
}

/// A listener as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    WebSocket,
    Tcp,
    Unix,
}

impl TryFrom<Section> for Listen {
    type Error = String;

    fn try_from(section: Section) -> Result<Self, String> {
        let Section { kind, address, tls, path } = section;
        if matches!(kind, Kind::Unix) {
            return match (path, address, tls) {
                (Some(path), None, None) if !path.as_os_str().is_empty() => Ok(Self::Unix { path }),
                (Some(_), None, None) => Err("path must not be empty".into()),
                (None, ..) => {
                    Err("missing path: kind = \"unix\" needs the file of the socket".into())
                }
                (_, Some(_), _) => Err("address: kind = \"unix\" has none, only a path".into()),
                (_, _, Some(_)) => {
                    Err("tls: kind = \"unix\" has none; the permissions of its file protect it"
                        .into())
                }
            };
        }
        if path.is_some() {
            return Err("path: only kind = \"unix\" has one".into());
        }
        let Some(written) = address else {
            return Err("missing address to listen on, as in address = \"127.0.0.1:2213\"".into());
        };
        let address = units::socket_address(&written).ok_or_else(|| {
            format!(
                "address: `{written}` is not a host:port such as 127.0.0.1:2213, [::1]:2213 or \
                 localhost:2213, or the name of the host cannot be resolved"
            )
        })?;
        let tls = tls.unwrap_or(true);
        Ok(match kind {
            Kind::WebSocket => Self::WebSocket { address, tls },
            Kind::Tcp | Kind::Unix => Self::Tcp { address, tls },
        })
    }
}

impl From<Listen> for Section {
    fn from(listen: Listen) -> Self {
        let ip = listen.ip().map(|(address, tls)| (address.to_string(), tls));
        let (address, tls) = ip.unzip();
        let (kind, path) = match listen {
            Listen::WebSocket { .. } => (Kind::WebSocket, None),
            Listen::Tcp { .. } => (Kind::Tcp, None),
            Listen::Unix { path } => (Kind::Unix, Some(path)),
        };
        Self { kind, address, tls, path }
    }
}

/// `proxies.*`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxies {
    /// Load balancers and reverse proxies that are trusted to name the client of a connection.
    pub trusted: Networks,
    /// Trusted proxies send a PROXY protocol header first on each connection.
    pub protocol: bool,
    /// Trusted proxies name the client in this header of each WebSocket upgrade.
    pub header: Option<ForwardingHeader>,
}

/// Which header a load balancer writes. There must be one answer to this, and it is the
/// operator's: most load balancers add to one of the two and let pass whatever a client wrote into
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardingHeader {
    /// `Forwarded: for=192.0.2.43;proto=https, for="[2001:db8::1]:4711"`
    Forwarded,
    /// `X-Forwarded-For: 192.0.2.43, 2001:db8::1`
    XForwardedFor,
}

impl ForwardingHeader {
    /// The name of the header, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::XForwardedFor => "x-forwarded-for",
        }
    }
}

impl Config {
    /// All listeners: those that are written, or the one of `server.address` and `server.port`.
    pub fn listeners(&self) -> Vec<Listen> {
        if !self.listen.is_empty() {
            return self.listen.clone();
        }
        let address = SocketAddr::new(self.server.address, self.server.port);
        vec![Listen::WebSocket { address, tls: self.tls.enabled }]
    }
}

/// The faults in the settings of listeners.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let fault = |key: String, problem: &str| Fault { key, origin: None, problem: problem.into() };
    let mut faults = Vec::new();
    for (at, listen) in config.listen.iter().enumerate() {
        let is_same = |other: &&Listen| match (listen.ip(), other.ip()) {
            (Some((one, _)), Some((other, _))) => one == other && one.port() != 0,
            _ => listen == *other,
        };
        if config.listen[..at].iter().any(|other| is_same(&other)) {
            let problem = "another listener has the same address or path; each needs its own";
            faults.push(fault(name(at), problem));
        }
    }
    let Proxies { trusted, protocol, header } = &config.proxies;
    if trusted.is_empty() && (*protocol || header.is_some()) {
        let problem = "missing: proxies.protocol and proxies.header need the addresses of the \
                       load balancers to trust, as in trusted = [\"10.0.0.0/8\"]";
        faults.push(fault("proxies.trusted".into(), problem));
    }
    if !trusted.is_empty() && !*protocol && header.is_none() {
        let problem = "has no effect alone; set proxies.protocol = true, or proxies.header to \
                       \"x-forwarded-for\" or \"forwarded\"";
        faults.push(fault("proxies.trusted".into(), problem));
    }
    faults
}

/// The name of a listener in messages, by its position.
pub(super) fn name(at: usize) -> String {
    format!("[[listen]] no. {}", at + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(section: serde_json::Value) -> Result<Listen, String> {
        serde_json::from_value(section).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_has_its_fields() {
        let address: SocketAddr = "127.0.0.1:2213".parse().expect("an address");
        let tcp = json!({ "kind": "tcp", "address": "localhost:2213" });
        assert_eq!(read(tcp), Ok(Listen::Tcp { address, tls: true }));
        let plain = json!({ "kind": "websocket", "address": "127.0.0.1:2213", "tls": false });
        assert_eq!(read(plain), Ok(Listen::WebSocket { address, tls: false }));
        let unix = Listen::Unix { path: "/run/x".into() };
        assert_eq!(read(json!({ "kind": "unix", "path": "/run/x" })), Ok(unix.clone()));
        for listen in [unix, Listen::Tcp { address, tls: false }] {
            assert_eq!(read(json!(listen)), Ok(listen));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        for (section, part) in [
            (json!({ "address": "127.0.0.1:1" }), "missing field `kind`"),
            (json!({ "kind": "udp" }), "expected one of `websocket`, `tcp`, `unix`"),
            (json!({ "kind": "tcp" }), "missing address"),
            (json!({ "kind": "tcp", "address": "127.0.0.1" }), "not a host:port"),
            (json!({ "kind": "tcp", "address": ":80" }), "not a host:port"),
            (json!({ "kind": "tcp", "address": "::1:80000" }), "not a host:port"),
            (json!({ "kind": "tcp", "address": "127.0.0.1:1", "path": "/x" }), "only kind"),
            (json!({ "kind": "tcp", "address": "127.0.0.1:1", "tsl": true }), "unknown field"),
            (json!({ "kind": "tcp", "address": "127.0.0.1:1", "tls": "no" }), "a boolean"),
            (json!({ "kind": "unix" }), "missing path"),
            (json!({ "kind": "unix", "path": "" }), "must not be empty"),
            (json!({ "kind": "unix", "path": "/x", "tls": true }), "has none"),
            (json!({ "kind": "unix", "path": "/x", "address": "127.0.0.1:1" }), "has none"),
        ] {
            let why = read(section.clone()).expect_err("must be refused");
            assert!(why.contains(part), "{section}: {why}");
        }
    }

    #[test]
    fn places_and_trust() {
        let keys = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            faults(&config).into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        let listen = |port| Listen::Tcp { address: ([127, 0, 0, 1], port).into(), tls: true };
        let unix = || Listen::Unix { path: "/x".into() };
        let mut config = Config { listen: vec![listen(1), unix(), listen(1)], ..Config::default() };
        assert_eq!(faults(&config)[0].key, "[[listen]] no. 3");
        config.listen = vec![unix(), unix()];
        assert_eq!(faults(&config).len(), 1);
        config.listen = vec![listen(0), listen(0), listen(1), unix()];
        assert_eq!(faults(&config), []);
        assert_eq!(keys(|config| config.proxies.protocol = true), ["proxies.trusted"]);
        let header = |config: &mut Config| {
            config.proxies.header = Some(ForwardingHeader::Forwarded);
        };
        assert_eq!(keys(header), ["proxies.trusted"]);
        let trusting = |config: &mut Config| {
            config.proxies.trusted = "10.0.0.0/8".parse().expect("a network");
        };
        assert_eq!(keys(trusting), ["proxies.trusted"]);
    }
}
