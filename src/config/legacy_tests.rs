//! Files as the original's releases ship them.

use proptest::prelude::*;

use super::*;

const RELEASE_1: &str = "\
[ProxyServer]
name=nymea-remoteproxy
writeLogs=false
logFile=/var/log/nymea-remoteproxy.log
logEngineEnabled=false
monitorSocket=/tmp/nymea-remoteproxy-monitor.sock
jsonRpcTimeout=10000
inactiveTimeout=8000

[SSL]
enabled=false
certificate=/etc/ssl/certs/ssl-cert-snakeoil.pem
certificateKey=/etc/ssl/private/ssl-cert-snakeoil.key
certificateChain=

[UnixSocketServerTunnelProxy]
unixSocketFileName=/run/nymea-remoteproxy.socket

[WebSocketServerTunnelProxy]
host=127.0.0.1
port=2212

[TcpServerTunnelProxy]
host=127.0.0.1
port=2213
";

const RELEASE_0_1: &str = "\
[ProxyServer]
name=nymea-remoteproxy
writeLogs=true
logFile=/var/log/nymea-remoteproxy.log
logEngineEnabled=true
monitorSocket=/tmp/nymea-remoteproxy-monitor.sock
jsonRpcTimeout=10000
authenticationTimeout=8000
inactiveTimeout=8000
aloneTimeout=8500

[AWS]
region=eu-west-1
authorizerLambdaFunction=system-services-authorizer-dev-checkToken
awsCredentialsUrl=http://169.254.169.254/latest/meta-data/iam/security-credentials/EC2-Remote-Connection-Proxy-Role

[SSL]
certificate=/etc/ssl/certs/ssl-cert-snakeoil.pem
certificateKey=/etc/ssl/private/ssl-cert-snakeoil.key
certificateChain=/etc/ssl/certs/chain.pem

[WebSocketServer]
host=0.0.0.0
port=443

[TcpServer]
host=::
port=80
";

const FIRST_RELEASE: &str = "\
name=test-nymea-remoteproxy
writeLogs=false
logFile=/var/log/nymea-remoteproxy.log
certificate=:/test-certificate.crt
certificateKey=/etc/ssl/private/ssl-cert-snakeoil.key

[WebSocketServer]
host=127.0.0.1
port=1212

[TcpServer]
host=127.0.0.1
port=1213
";

fn settings(legacy: &Legacy) -> Vec<(&str, &str)> {
    legacy.settings.iter().map(|(key, value)| (&**key, &**value)).collect()
}

/// What the warnings are about.
fn warned_of(legacy: &Legacy) -> Vec<&str> {
    legacy.warnings.iter().map(|warning| warning.split(": ").next().unwrap_or_default()).collect()
}

fn web_socket(address: &str, tls: bool) -> Listener {
    Listener::WebSocket { address: address.into(), tls }
}

fn tcp(address: &str, tls: bool) -> Listener {
    Listener::Tcp { address: address.into(), tls }
}

#[test]
fn release_1() {
    let legacy = Legacy::read(RELEASE_1);
    let expected = [
        ("server.name", "nymea-remoteproxy"),
        ("monitor.socket", "/tmp/nymea-remoteproxy-monitor.sock"),
        ("timeouts.inactivity", "8s"),
        ("tunnel_proxy.enabled", "true"),
    ];
    assert_eq!(settings(&legacy), expected);
    let path = "/run/nymea-remoteproxy.socket".into();
    let expected = [
        web_socket("127.0.0.1:2212", false),
        tcp("127.0.0.1:2213", false),
        Listener::Unix { path },
    ];
    assert_eq!(legacy.listeners, expected);
    assert_eq!(warned_of(&legacy), ["[ProxyServer] jsonRpcTimeout"]);
}

#[test]
fn release_1_with_tls() {
    let legacy = Legacy::read(&RELEASE_1.replace("enabled=false", "enabled=true"));
    let expected = [
        ("tls.certificate", "/etc/ssl/certs/ssl-cert-snakeoil.pem"),
        ("tls.certificate_key", "/etc/ssl/private/ssl-cert-snakeoil.key"),
    ];
    assert!(expected.iter().all(|setting| settings(&legacy).contains(setting)));
    let expected = [web_socket("127.0.0.1:2212", true), tcp("127.0.0.1:2213", true)];
    assert_eq!(legacy.listeners[..2], expected);
}

#[test]
fn release_0_1() {
    let legacy = Legacy::read(RELEASE_0_1);
    let expected = [
        ("server.name", "nymea-remoteproxy"),
        ("log.file", "/var/log/nymea-remoteproxy.log"),
        ("monitor.socket", "/tmp/nymea-remoteproxy-monitor.sock"),
        ("authentication.timeout", "8s"),
        ("timeouts.inactivity", "8s"),
        ("timeouts.waiting", "8s 500ms"),
        ("tls.certificate", "/etc/ssl/certs/ssl-cert-snakeoil.pem"),
        ("tls.certificate_key", "/etc/ssl/private/ssl-cert-snakeoil.key"),
    ];
    assert_eq!(settings(&legacy), expected);
    assert_eq!(legacy.listeners, [web_socket("0.0.0.0:443", true), tcp("[::]:80", true)]);
    let expected = [
        "[ProxyServer] logEngineEnabled",
        "[ProxyServer] jsonRpcTimeout",
        "[SSL] certificateChain",
        "[AWS] region",
        "[AWS] authorizerLambdaFunction",
        "[AWS] awsCredentialsUrl",
    ];
    assert_eq!(warned_of(&legacy), expected);
}

#[test]
fn the_first_release_had_no_sections_for_most() {
    let legacy = Legacy::read(FIRST_RELEASE);
    let expected = [
        ("server.name", "test-nymea-remoteproxy"),
        ("tls.certificate_key", "/etc/ssl/private/ssl-cert-snakeoil.key"),
    ];
    assert_eq!(settings(&legacy), expected);
    assert_eq!(legacy.listeners, [web_socket("127.0.0.1:1212", true), tcp("127.0.0.1:1213", true)]);
    assert_eq!(warned_of(&legacy), ["[SSL] certificate"]);
}

#[test]
fn the_last_releases_0_1_listen_for_both_kinds() {
    let tunnel_proxy =
        "[WebSocketServerTunnelProxy]\nport=2212\n[TcpServerTunnelProxy]\nhost=::1\n";
    let legacy = Legacy::read(&[RELEASE_0_1, tunnel_proxy].concat());
    let expected = [
        web_socket("0.0.0.0:443", true),
        tcp("[::]:80", true),
        web_socket("127.0.0.1:2212", true),
        tcp("[::1]:2213", true),
    ];
    assert_eq!(legacy.listeners, expected);
    assert!(settings(&legacy).contains(&("tunnel_proxy.enabled", "true")));
}

#[test]
fn what_is_not_understood_is_warned_of() {
    let legacy = Legacy::read(
        "[ProxyServer]\nNAME=x\nwhat\naloneTimeout=soon\ninactiveTimeout=0\n\
         [TcpServer]\nhost=example.com\nport=http\n[Else]\nkey=1\n",
    );
    assert_eq!(
        legacy.warnings,
        [
            "line 3 is neither a [section] nor key=value; ignored",
            "[ProxyServer] inactiveTimeout: `0` is no number of milliseconds; set timeouts.inactivity",
            "[ProxyServer] aloneTimeout: `soon` is no number of milliseconds; set timeouts.waiting",
            "[TcpServer] port: `http` is no port; 1213 is taken instead",
            "[ProxyServer] NAME: unknown to the original server, too; ignored",
            "[Else] key: unknown to the original server, too; ignored",
        ]
    );
    assert_eq!(legacy.listeners, [tcp("example.com:1213", true)]);
}

#[test]
fn a_file_without_listeners_is_warned_of() {
    let legacy = Legacy::read("[ProxyServer]\nname=\"Büro; 2\"\nname=x, y\n");
    assert_eq!(settings(&legacy), [("server.name", "x, y")]);
    assert!(legacy.warnings[0].contains("does not say where to listen"));
}

#[test]
fn an_ini_file_is_told_from_ours() {
    for ini in [RELEASE_1, RELEASE_0_1, FIRST_RELEASE, "# x\r\n [SSL] \r\n", "writeLogs = 1"] {
        assert!(is_ini(ini), "{ini}");
    }
    let ours = include_str!("../../deploy/nymea-remoteproxy.toml");
    for toml in [
        "",
        ours,
        &ours.replace("\n#", "\n"),
        "[server]\nname = \"x\"\nport = 1212",
        "[[listen]]\nkind = \"tcp\"",
        "[tls]\ncertificate = \"/x\"",
        "# [SSL]\n",
    ] {
        assert!(!is_ini(toml), "{toml}");
    }
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(
        lines in prop::collection::vec(
            (prop::sample::select(&SECTIONS[..]), "[a-zA-Z]{0,9}", "[\\PC]{0,9}"), 0..10),
    ) {
        let lines = lines.iter().map(|(section, key, value)| format!("[{section}]\n{key}={value}\n"));
        let text: String = lines.collect();
        Legacy::read(&text);
        is_ini(&text);
    }
}
