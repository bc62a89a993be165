//! The program `nymea-remoteproxy-certs`: what it makes convinces OpenSSL, and what is there stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn certs(out: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-certs"))
        .arg("--out")
        .arg(out)
        .args(arguments)
        .output()
        .expect("the program runs")
}

fn succeeds(out: &Path, arguments: &[&str]) -> String {
    let output = certs(out, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(code: i32, out: &Path, arguments: &[&str]) -> String {
    let output = certs(out, arguments);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains("error: ") && !message.contains("panicked"), "{message}");
    message
}

fn openssl(directory: &Path, arguments: &str) -> Output {
    Command::new("openssl")
        .current_dir(directory)
        .args(arguments.split_whitespace())
        .output()
        .expect("openssl runs")
}

/// What `openssl x509` prints for these options.
fn shown(directory: &Path, file: &str, options: &str) -> String {
    let output = openssl(directory, &format!("x509 -noout -in {file} {options}"));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn openssl_accepts_the_chain() {
    let directory = TempDir::new().expect("directory");
    // Made with the directories above it.
    let out = directory.path().join("a/b");
    succeeds(
        &out,
        &[
            "--ca-name",
            "a cluster",
            "--node",
            "node1,10.0.0.1,*.bridge.space.svc",
            "--node",
            "node-2.example",
            "--server",
            "localhost,127.0.0.1,::1",
        ],
    );
    let accepts = |arguments: &str| {
        let verify = "verify -x509_strict -CAfile ca.pem -purpose";
        openssl(&out, &format!("{verify} {arguments}")).status.success()
    };
    for purpose in ["sslserver", "sslclient"] {
        assert!(accepts(&format!("{purpose} -verify_hostname node1 node1.pem")));
        assert!(accepts(&format!("{purpose} -verify_ip 10.0.0.1 node1.pem")));
        assert!(accepts(&format!("{purpose} -verify_hostname a.bridge.space.svc node1.pem")));
        assert!(accepts(&format!("{purpose} -verify_hostname node-2.example node-2.example.pem")));
    }
    assert!(!accepts("sslserver -verify_hostname node1 node-2.example.pem"));
    for name in ["-verify_hostname localhost", "-verify_ip 127.0.0.1", "-verify_ip ::1"] {
        assert!(accepts(&format!("sslserver {name} server.pem")));
    }
    assert!(!accepts("sslclient server.pem"), "the clients' certificate opens no bridge");

    assert!(shown(&out, "ca.pem", "-subject").contains("a cluster"));
    for name in ["ca", "node1", "node-2.example", "server"] {
        let text = shown(&out, &format!("{name}.pem"), "-text");
        assert!(text.contains("prime256v1") && text.contains("ecdsa-with-SHA256"), "{text}");
        let of_key = openssl(&out, &format!("pkey -pubout -in {name}.key")).stdout;
        let of_certificate = shown(&out, &format!("{name}.pem"), "-pubkey");
        assert_eq!(String::from_utf8_lossy(&of_key), of_certificate);
        let mode = fs::metadata(out.join(format!("{name}.key"))).expect("there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

#[test]
fn certificates_last_as_long_as_asked() {
    let directory = TempDir::new().expect("directory");
    let out = directory.path();
    succeeds(out, &["--node", "node1", "--days", "3"]);
    let lasts = |file: &str, days: u32| {
        let seconds = days * 24 * 60 * 60;
        openssl(out, &format!("x509 -noout -in {file} -checkend {seconds}")).status.success()
    };
    assert!(lasts("node1.pem", 2) && !lasts("node1.pem", 4));
    assert!(lasts("ca.pem", 3000));
}

#[test]
fn what_is_there_is_kept() {
    let directory = TempDir::new().expect("directory");
    let out = directory.path();
    let first = succeeds(out, &["--node", "node1"]);
    assert_eq!(first.matches("made").count(), 2, "{first}");
    let read = |file: &str| fs::read(out.join(file)).expect("there");
    let files = ["ca.pem", "ca.key", "node1.pem", "node1.key"];
    let before = files.map(read);

    let second = succeeds(out, &["--node", "node1", "--node", "node2", "--server", "localhost"]);
    assert_eq!((second.matches("kept").count(), second.matches("made").count()), (2, 2));
    assert_eq!(files.map(read), before);
    let verify = "verify -x509_strict -CAfile ca.pem node1.pem node2.pem server.pem";
    assert!(openssl(out, verify).status.success());
    assert_eq!(fs::read_dir(out).expect("directory").count(), 8, "nothing else is left");
}

#[test]
fn wrong_usage() {
    let directory = TempDir::new().expect("directory");
    let out = directory.path();
    for arguments in [
        &["--node", ""][..],
        &["--node", "../node1"],
        &["--node", "*.example.com"],
        &["--node", "::1"],
        &["--node", "ca"],
        &["--node", "server"],
        &["--node", "node1,,10.0.0.1"],
        &["--server", "a name"],
        &["--days", "0"],
        &["stray"],
    ] {
        fails(2, out, arguments);
    }
    let none = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-certs")).output().expect("runs");
    assert_eq!(none.status.code(), Some(2), "--out is needed");
    assert_eq!(fs::read_dir(out).expect("directory").count(), 0, "nothing was made");
}

#[test]
fn what_cannot_be_made_is_said() {
    let directory = TempDir::new().expect("directory");
    let out = directory.path();
    let message = fails(1, Path::new("/dev/null/certs"), &[]);
    assert!(message.contains("/dev/null/certs"), "{message}");

    succeeds(out, &["--node", "node1"]);
    fs::remove_file(out.join("node1.key")).expect("removed");
    let message = fails(1, out, &["--node", "node1"]);
    assert!(message.contains("node1.key is not"), "{message}");

    let other = TempDir::new().expect("directory");
    succeeds(other.path(), &[]);
    fs::copy(other.path().join("ca.key"), out.join("ca.key")).expect("copied");
    let message = fails(1, out, &["--node", "node2"]);
    assert!(message.contains("ca.key does not belong to"), "{message}");

    fs::write(out.join("ca.pem"), "no certificate").expect("written");
    let message = fails(1, out, &["--node", "node2"]);
    assert!(message.contains("ca.pem"), "{message}");
}
