//! Programs of others talk to the node: OpenSSL's and Python's.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::Running;

/// Debian's Python: another one in the PATH may lack the module.
const PYTHON: &str = "/usr/bin/python3";

fn address(node: &Running) -> String {
    let line = node.line("listening on wss://");
    line.rsplit("wss://").next().expect("an address").trim().to_owned()
}

/// Runs a program with this input.
fn run(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("this test needs {program}: {error}; tests/run installs it")
        });
    // A program that has ended already does not read it.
    let _result = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("it ends")
}

#[test]
fn openssl_finds_tls_1_2_and_1_3_and_nothing_older() {
    let node = Running::start(&["-p", "0"]);
    let address = address(&node);
    let connect = |version| {
        let arguments = ["s_client", "-connect", &address, "-ign_eof", version];
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let output = run("openssl", &arguments, request);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (flag, version) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let output = connect(flag);
        assert!(output.contains(&format!("New, {version}")), "{output}");
        assert!(output.contains("HTTP/1.1 426 Upgrade Required"), "{output}");
    }
    let output = connect("-tls1_1");
    assert!(output.contains("Cipher is (NONE)"), "{output}");
}

#[test]
fn python_clients_are_paired() {
    let node = Running::start(&["-p", "0"]);
    let url = format!("wss://{}/", address(&node));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/pair.py");
    let output = run(PYTHON, &[script.to_str().expect("UTF-8"), &url], b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("No module named"),
        "this test needs python3-websockets; tests/run installs it"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "paired\n", "{errors}");
}
