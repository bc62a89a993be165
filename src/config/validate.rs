//! Validates settings, each by itself and in combination. Above all: no listener is open to the
//! network without a certificate and an authentication server, unless an option says so explicitly.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::{
    Admin, Config, ConfigError, Fault, Listen, Redis, Secret, Telemetry, TokenFor, TunnelProxy,
    listen,
};

const MAX_MESSAGE_SIZE: usize = 1 << 30;
/// The limits of `bridge.buffer`. Half of it, for data that arrives, has to fit
/// into the window of one connection between nodes.
const BUFFERS: RangeInclusive<usize> = 16 << 20..=2 << 30;
/// Smaller ones would hardly hold one piece of a large frame.
const BACKLOGS: RangeInclusive<usize> = 64 << 10..=1 << 30;
/// Without any, an app has its backlog and no more.
const OVERFLOWS: RangeInclusive<usize> = 0..=64 << 30;
const MAX_COUNT: usize = 1_000_000_000;
/// Far beyond any sense, and far below what a clock can add.
const MAX_DURATION: Duration = Duration::from_hours(365 * 24);

impl Config {
    /// Whether the settings make sense; those that were [loaded](Self::load) do.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let faults = self.faults();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(faults)) }
    }

    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults(Vec::new());
        faults.names(self);
        faults.durations(self);
        faults.limits(self);
        faults.tls(self);
        faults.authentication(self);
        faults.redis(&self.redis);
        faults.tunnel_proxy(self);
        faults.admin(&self.admin);
        faults.telemetry(&self.telemetry);
        faults.0.extend(listen::faults(self));
        faults.0
    }
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Fault { key: key.into(), origin: None, problem: problem.into() });
    }

    fn names(&mut self, config: &Config) {
        for (key, name) in [("server.name", &config.server.name), ("node.name", &config.node.name)]
        {
            if name.trim().is_empty() {
                self.add(key, "must not be empty");
            }
        }
        for (key, file) in [
            ("tls.certificate", &config.tls.certificate),
            ("tls.certificate_key", &config.tls.certificate_key),
            ("authentication.ca", &config.authentication.ca),
            ("redis.url_file", &config.redis.url_file),
            ("redis.ca", &config.redis.ca),
            ("log.file", &config.log.file),
            ("admin.token_file", &config.admin.token_file),
            ("admin.certificate", &config.admin.certificate),
            ("admin.certificate_key", &config.admin.certificate_key),
            ("monitor.socket", &config.monitor.socket),
        ] {
            if file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
                self.add(key, "must not be empty, expected the path of a file");
            }
        }
    }

    fn durations(&mut self, config: &Config) {
        let timeouts = &config.timeouts;
        for (key, duration) in [
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.inactivity", timeouts.inactivity),
            ("timeouts.authentication", timeouts.authentication),
            ("timeouts.waiting", timeouts.waiting),
            ("timeouts.stalled", timeouts.stalled),
            ("timeouts.close", timeouts.close),
            ("authentication.timeout", config.authentication.timeout),
            ("keepalive.interval", config.keepalive.interval),
            ("redis.timeout", config.redis.timeout),
            ("tunnel_proxy.inactivity", config.tunnel_proxy.inactivity),
        ] {
            if duration.is_zero() {
                self.add(key, "must be longer than zero, expected a duration such as 8s");
            }
            self.finite(key, duration);
        }
        self.finite("drain.grace", config.drain.grace);
    }

    fn finite(&mut self, key: &str, duration: Duration) {
        if duration > MAX_DURATION {
            self.add(key, "is too long, expected at most 365d");
        }
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        let requests = limits.requests.try_into().unwrap_or(usize::MAX);
        self.within("limits.connections", limits.connections, 1..=MAX_COUNT);
        for (key, share) in [
            ("limits.network_share", limits.network_share),
            ("limits.user_share", limits.user_share),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                self.add(key, "expected a number above 0, up to 1");
            }
        }
        if !(0.0..=0.9).contains(&limits.reserve) {
            self.add("limits.reserve", "expected a number from 0 to 0.9");
        }
        self.within("limits.unauthenticated", limits.unauthenticated, 1..=MAX_COUNT);
        self.within("limits.unauthenticated_per_ip", limits.unauthenticated_per_ip, 1..=MAX_COUNT);
        self.within("limits.requests", requests, 1..=MAX_COUNT);
        self.within("authentication.concurrency", config.authentication.concurrency, 1..=MAX_COUNT);
        if !(1..=MAX_MESSAGE_SIZE).contains(&limits.message_size) {
            self.add("limits.message_size", "expected a size from 1 byte to 1GiB");
        }
        if !BUFFERS.contains(&config.bridge.buffer) {
            self.add("bridge.buffer", "expected a size from 16MiB to 2GiB");
        }
    }

    fn tunnel_proxy(&mut self, config: &Config) {
        let TunnelProxy { token, backlog, overflow, .. } = config.tunnel_proxy;
        if !BACKLOGS.contains(&backlog) {
            self.add("tunnel_proxy.backlog", "expected a size from 64KiB to 1GiB");
        }
        if !OVERFLOWS.contains(&overflow) {
            self.add("tunnel_proxy.overflow", "expected a size up to 64GiB");
        }
        if token != TokenFor::None && config.authentication.server.is_none() {
            self.add(
                "tunnel_proxy.token",
                "needs an authentication server to check the tokens; set authentication.server",
            );
        }
    }

    fn within(&mut self, key: &str, count: usize, range: RangeInclusive<usize>) {
        if !range.contains(&count) {
            self.add(key, format!("expected a number from {} to {}", range.start(), range.end()));
        }
    }

    fn tls(&mut self, config: &Config) {
        let tls = &config.tls;
        match (&tls.certificate, &tls.certificate_key) {
            (Some(_), None) => self.add(
                "tls.certificate_key",
                "missing: a certificate needs its key, give it with -k/--certificate-key <file>",
            ),
            (None, Some(_)) => self.add(
                "tls.certificate",
                "missing: a key needs its certificate, give it with -c/--certificate <file>",
            ),
            (Some(_), Some(_)) => {}
            (None, None) => {
                let is_secure = |listen: &Listen| listen.ip().is_some_and(|(_, tls)| tls);
                let mut listeners = config.listeners();
                listeners.retain(is_secure);
                let open = listeners.into_iter().find_map(|listen| listen.open_to_others());
                if let (Some(address), false) = (open, tls.insecure_self_signed) {
                    self.add("tls.certificate", needs_certificate(address));
                }
            }
        }
    }

    fn authentication(&mut self, config: &Config) {
        let authentication = &config.authentication;
        match &authentication.server {
            Some(server) if !is_http(server) => self.add(
                "authentication.server",
                "expected a URL such as https://auth.example.com/verify",
            ),
            Some(_) => {}
            None => {
                let open = config.listeners().iter().find_map(Listen::open_to_others);
                if let (Some(address), false) = (open, authentication.insecure_accept_any) {
                    self.add("authentication.server", needs_authentication(address));
                }
            }
        }
    }
}

/// Settings for operators: admin, log, telemetry.
impl Faults {
    fn admin(&mut self, admin: &Admin) {
        if admin.token.is_some() && admin.token_file.is_some() {
            self.add("admin.token_file", "give either this or admin.token, not both");
        }
        if admin.token.as_ref().is_some_and(|token| token.reveal().trim().is_empty()) {
            self.add("admin.token", "must not be empty");
        }
        match (&admin.certificate, &admin.certificate_key) {
            (Some(_), None) => {
                self.add("admin.certificate_key", "missing: a certificate needs its key");
            }
            (None, Some(_)) => {
                self.add("admin.certificate", "missing: a key needs its certificate");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn telemetry(&mut self, telemetry: &Telemetry) {
        if telemetry.endpoint.as_ref().is_some_and(|endpoint| !is_http(endpoint)) {
            self.add("telemetry.endpoint", "expected a URL such as http://collector:4317");
        }
        if !(0.0..=1.0).contains(&telemetry.sample) {
            self.add("telemetry.sample", "expected a number from 0 to 1");
        }
    }
}

/// These messages never repeat a URL: it may hold a password.
impl Faults {
    fn redis(&mut self, redis: &Redis) {
        if redis.url.is_some() && redis.url_file.is_some() {
            self.add("redis.url_file", "give either this or redis.url, not both");
        }
        let has_server = redis.url.is_some() || redis.url_file.is_some();
        if !redis.cluster.is_empty() && (has_server || !redis.sentinels.is_empty()) {
            self.add(
                "redis.cluster",
                "give either a server (redis.url), sentinels (redis.sentinels) or a cluster, not \
                 several of them",
            );
        }
        match &redis.sentinel_master {
            None if !redis.sentinels.is_empty() => self.add(
                "redis.sentinel_master",
                "missing: the sentinels know the master by this name",
            ),
            Some(_) if redis.sentinels.is_empty() => {
                self.add("redis.sentinels", "missing: give the URLs of the sentinels");
            }
            Some(master) if master.trim().is_empty() => {
                self.add("redis.sentinel_master", "must not be empty");
            }
            Some(master)
                if redis.url.as_ref().is_some_and(|url| host_of(url).as_ref() != Some(master)) =>
            {
                self.add(
                    "redis.url",
                    "its host must be redis.sentinel_master, as the sentinels provide the address \
                     of the master",
                );
            }
            Some(_) | None => {}
        }
        if redis.prefix.is_empty() || redis.prefix.contains(['{', '}']) {
            self.add("redis.prefix", "expected a text without braces that is not empty");
        }
        self.redis_urls("redis.url", redis.url.as_slice());
        self.redis_urls("redis.sentinels", &redis.sentinels);
        self.redis_urls("redis.cluster", &redis.cluster);
    }

    fn redis_urls(&mut self, key: &str, urls: &[Secret]) {
        let is_redis = |url: &Secret| {
            Url::parse(url.reveal()).is_ok_and(|url| match url.scheme() {
                "redis" | "rediss" => url.has_host() && url.fragment().is_none(),
                "unix" | "redis+unix" => key == "redis.url",
                _ => false,
            })
        };
        if !urls.iter().all(is_redis) {
            self.add(
                key,
                "expected a URL such as redis://user:password@host:6379/0, rediss:// for TLS, or \
                 for a single server unix:///run/redis.sock",
            );
        }
    }
}

fn host_of(url: &Secret) -> Option<String> {
    Url::parse(url.reveal()).ok()?.host_str().map(Into::into)
}

fn is_http(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

fn needs_certificate(address: IpAddr) -> String {
    format!(
        "missing: other machines can connect to {address}, so give -c/--certificate <file> and \
         -k/--certificate-key <file>, or accept the risk with --insecure-self-signed \
         (tls.insecure_self_signed = true), or leave TLS to a load balancer with \
         --insecure-no-tls (tls.enabled = false, or tls = false of a [[listen]])"
    )
}

fn needs_authentication(address: IpAddr) -> String {
    format!(
        "missing: other machines can connect to {address}, so give -a/--authentication-server \
         <url>, or let any token in with --insecure-accept-any \
         (authentication.insecure_accept_any = true)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys at fault once `change` has been made to the defaults.
    fn keys(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        config.faults().into_iter().map(|fault| fault.key).collect()
    }

    fn open(change: impl FnOnce(&mut Config)) -> Vec<String> {
        keys(|config| {
            config.server.address = IpAddr::from([0, 0, 0, 0]);
            change(config);
        })
    }

    #[test]
    fn defaults_are_valid() {
        assert!(Config::default().validate().is_ok());
    }

    #[test]
    fn zero_and_endless_durations() {
        assert_eq!(keys(|c| c.timeouts.handshake = Duration::ZERO), ["timeouts.handshake"]);
        assert_eq!(keys(|c| c.keepalive.interval = Duration::ZERO), ["keepalive.interval"]);
        assert_eq!(keys(|c| c.timeouts.waiting = Duration::MAX), ["timeouts.waiting"]);
        assert_eq!(keys(|c| c.drain.grace = Duration::MAX), ["drain.grace"]);
        assert!(keys(|c| c.drain.grace = Duration::ZERO).is_empty());
    }

    #[test]
    fn limits() {
        assert_eq!(keys(|c| c.limits.connections = 0), ["limits.connections"]);
        assert_eq!(keys(|c| c.limits.requests = 0), ["limits.requests"]);
        for wrong in [0.0, -0.5, 1.1, f64::NAN] {
            assert_eq!(keys(|c| c.limits.network_share = wrong), ["limits.network_share"]);
            assert_eq!(keys(|c| c.limits.user_share = wrong), ["limits.user_share"]);
        }
        for wrong in [-0.1, 0.95, f64::NAN] {
            assert_eq!(keys(|c| c.limits.reserve = wrong), ["limits.reserve"]);
        }
        assert!(keys(|c| (c.limits.network_share, c.limits.reserve) = (1.0, 0.0)).is_empty());
        assert_eq!(keys(|c| c.limits.message_size = 0), ["limits.message_size"]);
        assert_eq!(keys(|c| c.limits.message_size = (1 << 30) + 1), ["limits.message_size"]);
        assert!(keys(|c| c.limits.message_size = 1 << 30).is_empty());
        assert_eq!(keys(|c| c.bridge.buffer = (16 << 20) - 1), ["bridge.buffer"]);
        assert_eq!(keys(|c| c.bridge.buffer = (2 << 30) + 1), ["bridge.buffer"]);
        assert!(keys(|c| c.bridge.buffer = 2 << 30).is_empty());
        assert_eq!(keys(|c| c.authentication.concurrency = 0), ["authentication.concurrency"]);
    }

    #[test]
    fn empty_texts() {
        assert_eq!(keys(|c| c.server.name.clear()), ["server.name"]);
        assert_eq!(keys(|c| c.node.name = " ".into()), ["node.name"]);
        assert_eq!(keys(|c| c.log.file = Some("".into())), ["log.file"]);
    }

    #[test]
    fn certificate_and_key_belong_together() {
        assert_eq!(keys(|c| c.tls.certificate = Some("a".into())), ["tls.certificate_key"]);
        assert_eq!(keys(|c| c.tls.certificate_key = Some("a".into())), ["tls.certificate"]);
    }

    #[test]
    fn authentication_url() {
        for url in ["", "auth.example.com", "ftp://auth.example.com", "http://"] {
            let found = keys(|c| c.authentication.server = Some(url.into()));
            assert_eq!(found, ["authentication.server"], "{url}");
        }
        assert!(keys(|c| c.authentication.server = Some("http://[::1]:80/x".into())).is_empty());
    }

    #[test]
    fn one_kind_of_redis() {
        let url = |text: &str| Some(Secret::new(text));
        let list = |text: &str| vec![Secret::new(text)];
        for good in ["redis://h", "rediss://:p@h:1/2", "unix:/run/x", "redis+unix:///run/x"] {
            assert!(keys(|c| c.redis.url = url(good)).is_empty(), "{good}");
        }
        for wrong in ["", "h:6379", "http://h", "redis://", "rediss://h#insecure"] {
            assert_eq!(keys(|c| c.redis.url = url(wrong)), ["redis.url"], "{wrong}");
        }
        assert_eq!(keys(|c| c.redis.prefix = "a{b}".into()), ["redis.prefix"]);
        assert_eq!(keys(|c| c.redis.sentinels = list("redis://h")), ["redis.sentinel_master"]);
        assert_eq!(keys(|c| c.redis.sentinel_master = Some("m".into())), ["redis.sentinels"]);
        let both = keys(|c| {
            c.redis.url = url("redis://h");
            c.redis.cluster = list("redis://h");
            c.redis.url_file = Some("f".into());
        });
        assert_eq!(both, ["redis.url_file", "redis.cluster"]);
        for (host, expected) in [("m", &[][..]), ("h", &["redis.url"])] {
            let found = keys(|c| {
                c.redis.url = url(&format!("redis://:p@{host}/1"));
                c.redis.sentinels = list("redis://h:26379");
                c.redis.sentinel_master = Some("m".into());
            });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let mut config = Config::default();
        config.redis.url = Some(Secret::new("redis:geheim@h"));
        config.redis.cluster = vec![Secret::new("geheim")];
        let told = config.validate().expect_err("wrong").to_string();
        assert!(!told.contains("geheim"), "{told}");
        assert!(!format!("{config:?}").contains("geheim"));
    }

    #[test]
    fn loopback_needs_nothing() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let address = address.parse().expect("address");
            assert!(keys(|c| c.server.address = address).is_empty(), "{address}");
        }
    }

    #[test]
    fn open_addresses_need_certificate_and_authentication() {
        for address in ["0.0.0.0", "::", "192.168.1.1", "fe80::1", "::ffff:10.0.0.1"] {
            let address = address.parse().expect("address");
            let found = keys(|c| c.server.address = address);
            assert_eq!(found, ["tls.certificate", "authentication.server"], "{address}");
        }
        let given = open(|c| {
            c.tls.certificate = Some("a".into());
            c.tls.certificate_key = Some("b".into());
            c.authentication.server = Some("https://auth.example.com".into());
        });
        assert!(given.is_empty());
    }

    #[test]
    fn every_listener_must_be_secure() {
        let tcp = |address: &str, tls| {
            let address = address.parse().expect("an address");
            vec![Listen::Tcp { address, tls }, Listen::Unix { path: "/x".into() }]
        };
        assert!(keys(|c| c.listen = tcp("127.0.0.1:1", true)).is_empty());
        // What would be listened on otherwise does not count.
        assert!(open(|c| c.listen = tcp("[::1]:1", true)).is_empty());
        let found = keys(|c| c.listen = tcp("10.0.0.1:1", true));
        assert_eq!(found, ["tls.certificate", "authentication.server"]);
        assert_eq!(keys(|c| c.listen = tcp("10.0.0.1:1", false)), ["authentication.server"]);
    }

    #[test]
    fn absence_must_be_spelled_out() {
        assert_eq!(open(|c| c.tls.insecure_self_signed = true), ["authentication.server"]);
        assert_eq!(open(|c| c.tls.enabled = false), ["authentication.server"]);
        assert_eq!(open(|c| c.authentication.insecure_accept_any = true), ["tls.certificate"]);
    }
}
