//! Input that costs its sender nothing does not hold up the tunnels of others: the measurement of
//! `nymea-remoteproxy-bench hostile`, with bounds for a debug build on a machine that is busy.

use std::process::Command;

fn measure(only: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-bench"))
        .args(["hostile", "--seconds", "0.8", "--max-p90-ms", "250", "--only", only])
        .output()
        .expect("ran");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let measured = text(&output.stderr);
    assert!(output.status.success(), "{measured}");
    assert!(measured.contains("p99"), "no attack has `{only}` in its name");
}

#[test]
fn empty_and_blank_messages_of_strangers_hold_nobody_up() {
    for only in ["messages", "fragments of", "empty fragments"] {
        measure(only);
    }
}

#[test]
fn control_frames_hold_nobody_up() {
    for only in ["pings", "pongs", "closes"] {
        measure(only);
    }
}

#[test]
fn white_space_and_requests_of_strangers_hold_nobody_up() {
    for only in ["white space", "request"] {
        measure(only);
    }
}

#[test]
fn frames_of_a_gateway_that_mean_nothing_hold_nobody_up() {
    measure("gateway");
}

#[test]
fn small_pieces_in_a_tunnel_hold_no_other_tunnel_up() {
    measure("in a tunnel");
}
