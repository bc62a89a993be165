//! Runs the fuzz targets of `tests/fuzz` on their corpus and on a bounded number of random inputs, so
//! that they stay correct between long runs.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[path = "fuzz/targets/json_stream.rs"]
mod json_stream;
#[path = "fuzz/targets/proxy_header.rs"]
mod proxy_header;
#[path = "fuzz/targets/slip.rs"]
mod slip;
#[path = "fuzz/targets/state_machines.rs"]
mod state_machines;

/// Runs `target` on its corpus, and on inputs of some random bytes and `words`.
fn run(name: &str, target: fn(&[u8]), words: &'static [&'static [u8]]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let inputs: Vec<_> = fs::read_dir(&corpus).expect("corpus").collect();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for input in inputs {
        let path = input.expect("input").path();
        let bytes = fs::read(&path).expect("input");
        let result = catch_unwind(|| target(&bytes));
        assert!(result.is_ok(), "failed on {}", path.display());
    }

    let word = prop::sample::select(words).prop_map(<[u8]>::to_vec);
    let input = vec(prop_oneof![3 => word, 1 => vec(any::<u8>(), 0..4)], 0..60);
    let checked = TestRunner::default().run(&input, |parts| {
        target(&parts.concat());
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn slip_target() {
    run("slip", slip::run, &[b"\xC0", b"\xDB", b"\xDC", b"\xDD", b"\0\x01", b"0123456789abcdef"]);
}

#[test]
fn json_stream_target() {
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b",",
        b":",
        b" \n",
        b"{}",
        b"{\"id\":1,\"method\":",
        b"\"A.B\"",
        b"\"params\":",
        b"null",
        b"{\"}\\\"{\":1}",
        b"{\"a\":[\"\\\\\",\"]\"]}\n",
    ];
    run("json_stream", json_stream::run, words);
}

#[test]
fn proxy_header_target() {
    let words: &[&[u8]] = &[
        b"1",
        b"2",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b"192.0.2.1 ",
        b"2001:db8::1 ",
        b"65535 ",
        b"443",
        b"\r\n",
        b"\x21\x11\0\x0c",
        b"\x21\x21\0\x24",
        b"\x20\0\0\0",
        b"\x03\0\x04",
    ];
    run("proxy_header", proxy_header::run, words);
}

#[test]
fn state_machines_target() {
    // What is switched on, steps by their number, and some of the items by theirs.
    let words: &[&[u8]] = &[
        b"\0",
        b"\x02",
        b"\x08",
        b"\0\0\x02",
        b"\0\0\x03",
        b"\0\0\x04",
        b"\0\0\x05\x08\0",
        b"\0\0\x04\x08\0",
        b"\0\0\x07",
        b"\x01\x0a\x02\x0c",
        b"\x04\x07\x0d\0\x1b",
        b"\x05\x08\0\x0a",
        b"\x06\x01",
        b"\x07\0",
        b"\x08\0",
        b"\x09\x02",
        b"\x0a\x07",
        b"\x0a\x3c",
    ];
    run("state_machines", state_machines::run, words);
}
