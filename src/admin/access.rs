//! Access rules. Health is public; all else requires the token, or, if there
//! is none, a connection from this machine. Other machines can only read metrics then.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Method, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::transport::tls::ServerTls;

/// Where there is a token, only its hash is kept: comparing hashes tells nothing by the time it
/// takes.
pub struct Access {
    token: Option<[u8; 32]>,
    /// The listener is on an address of this machine only.
    is_local: bool,
    pub(super) tls: Option<ServerTls>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) why: &'static str,
}

impl Access {
    /// For a listener on this address.
    pub fn new(token: Option<&str>, listener: SocketAddr, tls: Option<ServerTls>) -> Self {
        let token = token.map(|token| Sha256::digest(token).into());
        Self { token, is_local: listener.ip().to_canonical().is_loopback(), tls }
    }

    /// Whether a request may be answered.
    pub(super) fn check(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<(), Denied> {
        // The page holds nothing but itself; what it shows it must ask for.
        if matches!(path, "/" | "/healthz" | "/readyz") {
            return Ok(());
        }
        if let Some(token) = self.token {
            let shown: Option<[u8; 32]> = bearer(headers).map(|shown| Sha256::digest(shown).into());
            return if shown == Some(token) { Ok(()) } else { Err(Denied::NO_TOKEN) };
        }
        if !(self.is_local && peer.ip().to_canonical().is_loopback()) {
            return if path == "/metrics" { Ok(()) } else { Err(Denied::NOT_LOCAL) };
        }
        // A page from elsewhere, in a browser on this machine, is not a program on this machine.
        let host = header(headers, &header::HOST).unwrap_or_default();
        if !is_local_name(host) {
            return Err(Denied::OTHER_HOST);
        }
        let origin = header(headers, &header::ORIGIN);
        let is_own = origin.is_none_or(|origin| {
            origin.split_once("://").is_some_and(|(_, authority)| authority == host)
        });
        if !is_own && !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Denied::OTHER_ORIGIN);
        }
        Ok(())
    }
}

impl Denied {
    const NO_TOKEN: Self = Self {
        status: StatusCode::UNAUTHORIZED,
        why: "the header \"Authorization: Bearer …\" with the token of admin.token is needed",
    };
    const NOT_LOCAL: Self = Self {
        status: StatusCode::FORBIDDEN,
        why: "set admin.token: without, only programs on the node's machine get this, and only \
              if admin.listen is a loopback address",
    };
    const OTHER_HOST: Self = Self {
        status: StatusCode::FORBIDDEN,
        why: "set admin.token to use a host name: without, the address must be an IP address or \
              localhost",
    };
    const OTHER_ORIGIN: Self =
        Self { status: StatusCode::FORBIDDEN, why: "pages from elsewhere may not change anything" };
}

fn header<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = header(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether `host[:port]` is `localhost` or an IP address, and not a name that a foreign DNS server has
/// pointed at this machine.
fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(access: &Access, path: &str, peer: &str, headers: &[(&str, &str)]) -> u16 {
        asked_by(&Method::GET, access, path, peer, headers)
    }

    fn asked_by(
        method: &Method,
        access: &Access,
        path: &str,
        peer: &str,
        headers: &[(&str, &str)],
    ) -> u16 {
        let peer = SocketAddr::new(peer.parse().expect("an address"), 1000);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().expect("a name");
            map.insert(name, value.parse().expect("a value"));
        }
        match access.check(method, path, &map, peer) {
            Ok(()) => 200,
            Err(denied) => denied.status.as_u16(),
        }
    }

    fn access(token: Option<&str>, listener: &str) -> Access {
        Access::new(token, listener.parse().expect("an address"), None)
    }

    #[test]
    fn health_is_for_everybody() {
        let access = access(Some("t"), "0.0.0.0:1");
        for path in ["/", "/healthz", "/readyz"] {
            assert_eq!(asked(&access, path, "192.0.2.1", &[]), 200, "{path}");
        }
    }

    #[test]
    fn the_token_opens_everything_and_nothing_else_does() {
        let access = access(Some("sesame"), "127.0.0.1:1");
        let by = |value| asked(&access, "/api/v1/node", "192.0.2.1", &[("authorization", value)]);
        assert_eq!(by("Bearer sesame"), 200);
        assert_eq!(by("bearer  sesame"), 200);
        for wrong in ["Bearer sesam", "Bearer sesamee", "Basic sesame", "sesame", "Bearer "] {
            assert_eq!(by(wrong), 401, "{wrong}");
        }
        assert_eq!(asked(&access, "/metrics", "127.0.0.1", &[("host", "localhost")]), 401);
    }

    #[test]
    fn without_a_token_only_this_machine_gets_more_than_metrics() {
        let (local, open) = (access(None, "127.0.0.1:1"), access(None, "0.0.0.0:1"));
        let host = [("host", "127.0.0.1:9100")];
        assert_eq!(asked(&local, "/api/v1/node", "127.0.0.1", &host), 200);
        assert_eq!(asked(&open, "/api/v1/node", "127.0.0.1", &host), 403);
        assert_eq!(asked(&open, "/api/v1/node", "192.0.2.1", &host), 403);
        assert_eq!(asked(&open, "/metrics", "192.0.2.1", &[("host", "node1")]), 200);
    }

    #[test]
    fn a_page_from_elsewhere_gets_nothing_of_this_machine() {
        let local = access(None, "[::1]:1");
        for (host, expected) in
            [("localhost:9100", 200), ("[::1]:9100", 200), ("evil.example:9100", 403), ("", 403)]
        {
            let status = asked(&local, "/api/v1/node", "::1", &[("host", host)]);
            assert_eq!(status, expected, "{host}");
        }
        let post = |origin| {
            let headers = [("host", "localhost:9100"), ("origin", origin)];
            asked_by(&Method::POST, &local, "/api/v1/node/drain", "::1", &headers)
        };
        assert_eq!(post("http://localhost:9100"), 200);
        assert_eq!(post("http://evil.example"), 403);
        assert_eq!(post("null"), 403);
    }
}
