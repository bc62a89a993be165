//! `nymea-remoteproxy-bench`, with few tunnels: what it measures is for releases.

use std::process::Command;

fn idle(options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-bench"));
    let output = command.args(["idle", "--tunnels", "10"]).args(options).output().expect("ran");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

#[test]
fn it_starts_a_node_and_prints_json() {
    let (code, output) = idle(&[]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(r#""tunnels":10"#) && output.contains("kib_per_endpoint"), "{output}");
}

#[test]
fn too_much_memory_is_a_failure() {
    // Nothing takes less than nothing at all.
    let (code, output) = idle(&["--max-kib-per-endpoint=-1000"]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("kib_per_endpoint"), "{output}");
}
