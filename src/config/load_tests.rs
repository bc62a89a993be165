//! Settings from file, environment and flags, and the texts of errors in them.

use std::io::Write;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::super::Listen;
use super::*;

const EXAMPLE: &str = include_str!("../../deploy/nymea-remoteproxy.toml");

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn load(text: &str, variables: &[(&str, &str)], flags: &[Override]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Config::load_from(Some(file(text).path()), variables, flags.to_vec())
}

fn flag(key: &'static str, value: &str, flag: &'static str) -> Override {
    Override { key, value: value.to_owned(), flag }
}

fn faults(result: Result<Config, ConfigError>) -> Vec<Fault> {
    match result {
        Err(ConfigError::Invalid(faults)) => faults,
        other => panic!("expected faults, got {other:?}"),
    }
}

fn fault(result: Result<Config, ConfigError>) -> Fault {
    let mut faults = faults(result);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn nothing_given() {
    assert_eq!(Config::load_from(None, [], Vec::new()).expect("valid"), Config::default());
}

#[test]
fn every_source_overrides_the_one_before() {
    let text = "[timeouts]\nwaiting = '1s'\nclose = '1s'\nstalled = '1s'\n[server]\nport = 1\n";
    let variables = [
        ("REMOTEPROXY__TIMEOUTS__CLOSE", "2s"),
        ("REMOTEPROXY__TIMEOUTS__STALLED", "2s"),
        ("REMOTEPROXY__LIMITS__UNAUTHENTICATED_PER_IP", "7"),
        ("REMOTEPROXY__LIMITS__MESSAGE_SIZE", "64KiB"),
        ("REMOTEPROXY__TLS__INSECURE_SELF_SIGNED", "true"),
        ("REMOTEPROXY__NODE__NAME", "12"),
    ];
    let flags = [flag("timeouts.stalled", "3s", "--stalled"), flag("server.port", "3", "--port")];
    let config = load(text, &variables, &flags).expect("valid");
    assert_eq!(config.timeouts.waiting, Duration::from_secs(1));
    assert_eq!(config.timeouts.close, Duration::from_secs(2));
    assert_eq!(config.timeouts.stalled, Duration::from_secs(3));
    assert_eq!(config.timeouts.handshake, Config::default().timeouts.handshake);
    assert_eq!(config.server.port, 3);
    assert_eq!(config.limits.unauthenticated_per_ip, 7);
    assert_eq!(config.limits.message_size, 64 << 10);
    assert!(config.tls.insecure_self_signed);
    assert_eq!(config.node.name, "12");
}

#[test]
fn other_variables_are_not_ours() {
    let variables = [("REMOTEPROXY_TOKEN", "secret"), ("REMOTEPROXY", "x"), ("PATH", "/bin")];
    assert!(load("", &variables, &[]).is_ok());
}

#[test]
fn wrong_values_name_key_place_and_expectation() {
    let written = file("[timeouts]\nwaiting = 5\n");
    let found = fault(Config::load_from(Some(written.path()), [], Vec::new()));
    assert_eq!(found.key, "timeouts.waiting");
    assert_eq!(found.origin, Some(written.path().display().to_string()));
    assert!(found.problem.contains("a duration such as 500ms, 8s or 2m"), "{found}");

    let found = fault(load("", &[("REMOTEPROXY__LIMITS__CONNECTIONS", "many")], &[]));
    assert_eq!(found.key, "limits.connections");
    assert_eq!(found.origin.as_deref(), Some("REMOTEPROXY__LIMITS__CONNECTIONS"));
    assert!(found.problem.ends_with("\"many\", expected a whole number"), "{found}");

    let found = fault(load("", &[], &[flag("server.address", "no such host", "--server")]));
    assert_eq!(found.key, "server.address");
    assert_eq!(found.origin.as_deref(), Some("--server"));
    assert!(found.problem.contains("expected an IP address"), "{found}");
}

#[test]
fn types_in_a_file_are_strict() {
    for (text, key) in [
        ("[server]\nport = '1212'", "server.port"),
        ("[server]\nport = 1.5", "server.port"),
        ("[server]\nport = 70000", "server.port"),
        ("[server]\nname = 5", "server.name"),
        ("[tls]\nenabled = 'no'", "tls.enabled"),
        ("[tls]\ncertificate = 1", "tls.certificate"),
        ("[limits]\nconnections = -1", "limits.connections"),
        ("[log.filter]\nlevel = 'info'", "log.filter"),
        ("server = 5", "server"),
    ] {
        assert_eq!(fault(load(text, &[], &[])).key, key, "{text}");
    }
}

#[test]
fn unknown_keys_are_told_with_the_known_ones() {
    let found = fault(load("[timeouts]\nwating = '5s'\n", &[], &[]));
    assert_eq!(found.key, "timeouts.wating");
    assert!(found.problem.contains("unknown setting, expected one of"), "{found}");
    assert!(found.problem.contains("waiting"), "{found}");

    let found = fault(load("[timeout]\nwaiting = '5s'\n", &[], &[]));
    assert_eq!(found.key, "timeout");
    assert!(found.problem.contains("timeouts"), "{found}");

    let found = fault(load("port = 5\n", &[], &[]));
    assert_eq!(found.key, "port");

    let found = fault(load("", &[("REMOTEPROXY__SERVER__PROT", "1")], &[]));
    assert_eq!(found.key, "server.prot");
    assert_eq!(found.origin.as_deref(), Some("REMOTEPROXY__SERVER__PROT"));

    for name in ["REMOTEPROXY__SERVER", "REMOTEPROXY__PORT"] {
        let found = fault(load("", &[(name, "1")], &[]));
        assert_eq!(found.origin.as_deref(), Some(name));
    }
}

#[test]
fn unknown_sections_in_the_environment_are_told_by_the_variable() {
    for (name, key) in
        [("REMOTEPROXY__SEVER__PORT", "sever"), ("REMOTEPROXY__LOG__FILTER__LEVEL", "log.filter")]
    {
        let found = fault(load("", &[(name, "1")], &[]));
        assert_eq!(found.key, key);
        assert_eq!(found.origin.as_deref(), Some(name));
    }
}

#[test]
fn all_faults_are_told() {
    let text = "[server]\nport = 'x'\n[limits]\nfoo = 1\n[bar]\n";
    let variables = [("REMOTEPROXY__TIMEOUTS__CLOSE", "soon")];
    let error = load(text, &variables, &[]).expect_err("invalid");
    let told = error.to_string();
    for part in ["bar", "limits.foo", "server.port", "timeouts.close (from REMOTEPROXY__"] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
}

#[test]
fn what_makes_no_sense_names_its_place() {
    let found = fault(load("", &[("REMOTEPROXY__DRAIN__GRACE", "9999d")], &[]));
    assert_eq!(found.key, "drain.grace");
    assert_eq!(found.origin.as_deref(), Some("REMOTEPROXY__DRAIN__GRACE"));

    let found = faults(load("", &[], &[flag("server.address", "0.0.0.0", "--server")]));
    let keys: Vec<_> = found.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["authentication.server", "tls.certificate"]);
}

const TWO: &str = "[[listen]]\nkind = 'tcp'\naddress = '127.0.0.1:1'\ntls = false\n\
                   [[listen]]\nkind = 'unix'\npath = '/run/x'\n";

#[test]
fn listeners() {
    let config = load(TWO, &[], &[]).expect("valid");
    let two = [
        Listen::Tcp { address: ([127, 0, 0, 1], 1).into(), tls: false },
        Listen::Unix { path: "/run/x".into() },
    ];
    assert_eq!(config.listeners(), two);
    let variable = r#"[{"kind":"websocket","address":"127.0.0.1:2"}]"#;
    let config = load(TWO, &[("REMOTEPROXY__LISTEN", variable)], &[]).expect("valid");
    let address = ([127, 0, 0, 1], 2).into();
    assert_eq!(config.listeners(), [Listen::WebSocket { address, tls: true }]);
    let config = load("[server]\nport = 7", &[], &[]).expect("valid");
    assert_eq!(config.listeners()[0].ip(), Some((([127, 0, 0, 1], 7).into(), true)));
}

#[test]
fn listeners_that_are_wrong() {
    let wrong = format!("{TWO}[[listen]]\nkind = 'tcp'\naddress = 'x'\n[[listen]]\nkind = 'udp'");
    let written = file(&wrong);
    let found = faults(Config::load_from(Some(written.path()), [], Vec::new()));
    let keys: Vec<_> = found.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["[[listen]] no. 3", "[[listen]] no. 4"]);
    assert_eq!(found[0].origin, Some(written.path().display().to_string()));
    assert!(found[0].problem.contains("not a host:port"), "{found:?}");
    for (text, variables) in [
        ("listen = 5", &[][..]),
        ("[listen]\nkind = 'tcp'", &[]),
        ("", &[("REMOTEPROXY__LISTEN", "0.0.0.0:1")]),
    ] {
        let found = fault(load(text, variables, &[]));
        assert_eq!(found.key, "listen");
        assert!(found.problem.contains("expected [[listen]] sections"), "{found}");
    }
    let both = faults(load(&format!("{TWO}{TWO}"), &[], &[]));
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn flags_have_no_effect_beside_listeners_and_that_is_said() {
    let flags =
        [flag("server.port", "3", "--port"), flag("tls.enabled", "false", "--insecure-no-tls")];
    let found = faults(load(TWO, &[], &flags));
    let keys: Vec<_> = found.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["server.port", "tls.enabled"]);
    assert_eq!(found[0].origin.as_deref(), Some("--port"));
    assert!(found[0].problem.contains("leave it out"), "{found:?}");
}

#[test]
fn switches_may_be_set_by_variables() {
    let name = "REMOTEPROXY__TUNNEL_PROXY__ENABLED";
    let config = load("[tunnel_proxy]\nenabled = false", &[(name, "true")], &[]).expect("valid");
    assert_eq!(config.tunnel_proxy.enabled, Some(true));
    assert_eq!(fault(load("", &[(name, "maybe")], &[])).origin.as_deref(), Some(name));
}

#[test]
fn a_file_of_the_original_server_is_read() {
    let ini =
        "[ProxyServer]\nname=x\njsonRpcTimeout=1\naloneTimeout=8500\n[TcpServerTunnelProxy]\n";
    let written = file(ini);
    let variables = [("REMOTEPROXY__TIMEOUTS__WAITING".to_owned(), "1s".to_owned())];
    let config = Config::load_from(Some(written.path()), variables, Vec::new()).expect("valid");
    assert_eq!(config.server.name, "x");
    assert_eq!(config.timeouts.waiting, Duration::from_secs(1));
    assert_eq!(config.tunnel_proxy.enabled, Some(true));
    let address = ([127, 0, 0, 1], 2213).into();
    assert_eq!(config.listen, [Listen::Tcp { address, tls: true }]);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].starts_with("[ProxyServer] jsonRpcTimeout: "));

    let written = file("[ProxyServer]\nname=\n[TcpServer]\nhost=0.0.0.0\nport=1\n");
    let found = faults(Config::load_from(Some(written.path()), [], Vec::new()));
    let keys: Vec<_> = found.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["authentication.server", "tls.certificate"]);
}

#[test]
fn broken_files() {
    let missing = Path::new("/nonexistent/remoteproxy.toml");
    let error = Config::load_from(Some(missing), [], Vec::new()).expect_err("missing");
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert!(error.to_string().contains("/nonexistent/remoteproxy.toml"));

    let error = load("[server]\nport = \n", &[], &[]).expect_err("broken");
    let ConfigError::Syntax { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("line 2"), "{source}");
}

#[test]
fn the_example_changes_nothing() {
    assert_eq!(load(EXAMPLE, &[], &[]).expect("valid"), Config::default());
}

/// Settings stand in the example as `#key = value`, prose as `# text`.
#[test]
fn the_example_shows_every_setting_with_its_default() {
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && *line != "#";
    let shown = EXAMPLE.lines().filter(is_setting).count();
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| if is_setting(&line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    // Alternatives stand side by side: each setting is read, but they do not go together.
    let file = file(&uncommented);
    let mut reading = Reading::new(Some(file.path()));
    let merged = merge(Some(file.path()), &uncommented, [].iter(), [], Vec::new());
    for (section, value) in merged.expect("TOML") {
        reading.section(&section, value);
    }
    assert_eq!(reading.faults, []);
    let config: Config = serde_json::from_value(reading.settings).expect("readable");
    let [Listen::WebSocket { .. }, Listen::Tcp { .. }, Listen::Unix { .. }] = config.listen[..]
    else {
        panic!("a listener of each kind: {:?}", config.listen)
    };
    let example = json!(config);

    // Of the listeners: each with its title, its kind and its place, and TLS for two.
    let mut settings = 3 * 3 + 2;
    for (section, defaults) in json!(Config::default()).as_object().expect("sections") {
        for (name, default) in defaults.as_object().into_iter().flatten() {
            settings += 1;
            let key = format!("{section}.{name}");
            let line = format!("\n#{name} = ");
            assert!(EXAMPLE.contains(&line), "{key} is not in the example");
            // What has no default, or one that differs between machines, is shown by an example.
            if !default.is_null() && key != "node.name" {
                assert_eq!(&example[section][name], default, "{key}");
            } else {
                assert_ne!(&example[section][name], default, "{key}");
            }
        }
    }
    assert_eq!(shown, settings);
}
