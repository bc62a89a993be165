//! The program `nymea-remoteproxy` as others see it: flags, settings, messages, exit codes.

mod support;

use std::fs;
use std::net::TcpListener;

use support::{Running, command, fails, run};
use tempfile::TempDir;

#[test]
fn help_lists_every_option() {
    for flag in ["-h", "--help"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        for option in [
            "-s, --server <hostaddress>",
            "-p, --port <port>",
            "-c, --certificate <file>",
            "-k, --certificate-key <file>",
            "-a, --authentication-server <url>",
            "-l, --logging <logfile>",
            "-v, --verbose",
            "-h, --help",
            "-V, --version",
            "--config <file>",
            "--check",
            "--insecure-accept-any",
            "--insecure-self-signed",
            "--insecure-no-tls",
        ] {
            assert!(help.contains(option), "{option} is not in:\n{help}");
        }
    }
}

#[test]
fn version() {
    for flag in ["-V", "--version"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        let expected = concat!("nymea-remoteproxy ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), expected);
    }
}

#[test]
fn wrong_usage() {
    for arguments in [&["--no-such-flag"][..], &["-p", "70000"], &["-p"], &["stray"]] {
        fails(2, &mut command(arguments));
    }
}

#[test]
fn wrong_settings_name_key_and_place() {
    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("node.toml");
    fs::write(&file, "[timeouts]\nwaiting = 'soon'\nwating = '5s'\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let message = fails(2, &mut command(&["--config", file]));
    for part in ["timeouts.waiting", "timeouts.wating", file, "a duration such as", "inactivity"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }

    let variable = "REMOTEPROXY__LIMITS__CONNECTIONS";
    let message = fails(2, command(&[]).env(variable, "many"));
    for part in ["limits.connections", variable, "expected a whole number"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }

    let message = fails(2, &mut command(&["-a", "auth.example.com"]));
    for part in ["authentication.server", "--authentication-server", "https://"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }

    let message = fails(2, &mut command(&["-c", "chain.pem"]));
    assert!(message.contains("--certificate-key"), "{message}");
}

#[test]
fn files_that_cannot_be_read() {
    let message = fails(2, &mut command(&["--config", "/nonexistent/node.toml"]));
    assert!(message.contains("/nonexistent/node.toml"), "{message}");
    assert!(message.contains("No such file"), "{message}");

    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("node.toml");
    fs::write(&file, "[server]\nport = \n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let message = fails(2, &mut command(&["--config", file]));
    assert!(message.contains(file) && message.contains("line 2"), "{message}");
}

#[test]
fn open_addresses_are_refused_without_certificate_and_authentication() {
    for address in ["0.0.0.0", "::"] {
        let message = fails(2, &mut command(&["-s", address]));
        for part in [
            "--certificate",
            "--insecure-self-signed",
            "--insecure-no-tls",
            "--authentication-server",
            "--insecure-accept-any",
        ] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
    let message = fails(2, &mut command(&["-s", "0.0.0.0", "--insecure-self-signed"]));
    assert!(!message.contains("--insecure-no-tls"), "{message}");
    let message = fails(2, &mut command(&["-s", "0.0.0.0", "--insecure-accept-any"]));
    assert!(!message.contains("--authentication-server"), "{message}");
}

#[test]
fn log_files_that_cannot_be_opened() {
    for check in [&[][..], &["--check"]] {
        let mut command = command(&["-p", "0", "-l", "/nonexistent/node.log"]);
        let message = fails(2, command.args(check));
        assert!(message.contains("/nonexistent/node.log"), "{message}");
    }
    let filter = ("REMOTEPROXY__LOG__FILTER", "nymea_remoteproxy=loud");
    let message = fails(2, command(&["-p", "0"]).env(filter.0, filter.1));
    assert!(message.contains("log.filter") && message.contains(filter.1), "{message}");
}

#[test]
fn check_says_what_would_be_started() {
    let directory = TempDir::new().expect("directory");
    let log = directory.path().join("node.log");
    let output = run(&["--check", "-s", "127.0.0.7", "-l", log.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("127.0.0.7:1212"));
    assert!(!log.exists());
    fails(2, &mut command(&["--check", "-s", "0.0.0.0"]));
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("address");
    let directory = TempDir::new().expect("directory");
    let log = directory.path().join("node.log");
    let port = address.port().to_string();
    let mut command = command(&["-p", &port, "-l", log.to_str().expect("UTF-8")]);
    let message = fails(1, &mut command);
    assert!(message.contains(&address.to_string()) && message.contains("-p"), "{message}");
    assert_eq!(message.matches(&address.to_string()).count(), 1, "told once: {message}");
    let logged = fs::read_to_string(log).expect("the log file");
    assert!(logged.contains(&address.to_string()), "{logged}");
}

#[test]
fn a_signal_ends_the_node_in_order() {
    for name in ["TERM", "INT"] {
        let node = Running::start(&["-p", "0"]);
        node.line("listening on wss://127.0.0.1:");
        node.line("nymea-remoteproxy-client --url wss://127.0.0.1:");
        node.signal(name);
        let (code, rest) = node.end();
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("drained"), "{rest}");
    }
}

#[test]
fn the_log_goes_to_the_file_as_well() {
    let directory = TempDir::new().expect("directory");
    let path = directory.path().join("node.log");
    fs::write(&path, "what was there\n").expect("written");
    let node = Running::start(&["-p", "0", "-l", path.to_str().expect("UTF-8")]);
    let listening = node.line("listening on");
    node.signal("TERM");
    node.end();
    let logged = fs::read_to_string(path).expect("the log file");
    assert!(logged.starts_with("what was there\n"), "{logged}");
    let (_time, listening) = listening.split_once(" INFO ").expect("a line with its level");
    assert!(logged.contains(listening) && logged.contains("drained"), "{logged}");
    assert!(!logged.contains('\u{1b}'), "{logged}");
}
