//! `nymea-remoteproxy-bench`, with little to do: what it measures is for releases.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

fn bench(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-bench"));
    let output = command.args(arguments).output().expect("ran");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

/// What it prints with a node of its own, when all is well.
fn measured(arguments: &[&str]) -> String {
    let (code, output) = bench(arguments);
    assert_eq!(code, Some(0), "{output}");
    output
}

#[test]
fn it_starts_a_node_and_prints_json() {
    let output = measured(&["idle", "--tunnels", "10"]);
    assert!(output.contains(r#""tunnels":10"#) && output.contains("kib_per_endpoint"), "{output}");
}

#[test]
fn too_much_memory_is_a_failure() {
    // Nothing takes less than nothing at all.
    let (code, output) = bench(&["idle", "--tunnels", "10", "--max-kib-per-endpoint=-1000"]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("kib_per_endpoint"), "{output}");
}

#[test]
fn floods_of_all_kinds_arrive_as_they_were_sent() {
    let flood = ["throughput", "--tunnels", "2", "--seconds", "0.3", "--warm-up", "0.1"];
    for more in [&["--size", "8"][..], &["--text", "--both"], &["--size", "100000"]] {
        let output = measured(&[&flood, more].concat());
        assert!(output.contains("cpu_s_per_gib"), "{output}");
    }
}

#[test]
fn round_trips_and_set_ups_are_timed() {
    let output = measured(&["latency", "--seconds", "0.3", "--beside", "2", "--text"]);
    assert!(output.contains("p99_ms"), "{output}");
    let output = measured(&["setup", "--count", "20", "--concurrency", "4"]);
    assert!(output.contains(r#""count":20"#) && output.contains("cpu_ms_per_tunnel"), "{output}");
}

#[test]
fn what_was_held_by_stalled_tunnels_arrives_later() {
    let output = measured(&["stalled", "--tunnels", "1", "--both"]);
    assert!(output.contains("mib_more_at_peak"), "{output}");
}

#[test]
fn fixed_work_is_done() {
    let output = measured(&["work", "--setups", "2", "--bursts", "3", "--burst", "4"]);
    assert!(output.contains(r#""bursts":3"#), "{output}");
}

#[test]
fn a_relay_that_is_no_node_is_measured_in_the_same_way() {
    let (relay, backend) = (free_address(), free_address());
    let mut floor = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy-bench"))
        .args(["floor", "--listen", &relay, "--backend", &backend])
        .stderr(Stdio::null())
        .spawn()
        .expect("ran");
    while TcpStream::connect(&relay).is_err() {
        assert!(floor.try_wait().expect("asked").is_none(), "the relay ended");
        thread::sleep(Duration::from_millis(20));
    }
    let (url, pid) = (format!("tls://{relay}"), floor.id().to_string());
    let target = ["--url", &url, "-i", "--direct", &backend, "--pid", &pid];
    let results = [
        bench(&[&["throughput", "--seconds", "0.3"][..], &target].concat()),
        bench(&[&["setup", "--count", "10"][..], &target].concat()),
        bench(&[&["idle", "--tunnels", "5", "--message", "1000", "--close"][..], &target].concat()),
    ];
    floor.kill().expect("killed");
    floor.wait().expect("ended");
    for (code, output) in results {
        assert_eq!(code, Some(0), "{output}");
    }
}

#[test]
fn damage_on_the_way_is_a_failure() {
    let damages: [(&str, Damage); 4] = [
        ("changed", |data| data[100] ^= 1),
        ("lost, doubled or overtaken", |data| *data = data.repeat(2)),
        ("lost, doubled or overtaken", Vec::clear),
        ("changed", |data| data.truncate(10)),
    ];
    for (said, damage) in damages {
        let (relay, backend) = (free_address(), free_address());
        damaging_relay(&relay, &backend, damage);
        let url = format!("tcp://{relay}");
        let load = ["throughput", "--tunnels", "1", "--seconds", "1", "--size", "1024"];
        // Without --pid, no memory or CPU time is measured.
        let (code, output) = bench(&[&load[..], &["--url", &url, "--direct", &backend]].concat());
        assert!(code == Some(1) && output.contains(said), "{said}: {output}");
    }
}

type Damage = fn(&mut Vec<u8>);

/// Forwards all data, but damages one piece.
fn damaging_relay(relay: &str, backend: &str, damage: Damage) {
    let listener = TcpListener::bind(relay).expect("a free port");
    let backend = backend.to_owned();
    thread::spawn(move || {
        let (near, _) = listener.accept().expect("a client");
        let far = TcpStream::connect(backend).expect("a backend");
        let (mut back, mut to) = (far.try_clone().expect("a socket"), &near);
        thread::scope(|scope| {
            scope.spawn(|| pass(&mut &near, &mut &far, Some(damage)));
            pass(&mut back, &mut to, None);
        });
    });
}

fn pass(from: &mut impl Read, to: &mut impl Write, damage: Option<Damage>) {
    // In the middle of the load, and as a whole message.
    const DAMAGED: usize = 50;
    let mut data = vec![0; 16];
    for piece in 0.. {
        if from.read_exact(&mut data).is_err() {
            return;
        }
        if let (DAMAGED, Some(damage)) = (piece, damage) {
            damage(&mut data);
        }
        if to.write_all(&data).is_err() {
            return;
        }
        data.resize(1024, 0);
    }
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    for wrong in [&["throughput", "--pid", "1"][..], &["throughput", "--size", "7"], &["nothing"]] {
        assert_eq!(bench(wrong).0, Some(2), "{wrong:?}");
    }
    let (code, output) = bench(&["latency", "--url", "tls://127.0.0.1:1", "-i"]);
    assert!(code == Some(1) && output.contains("--direct"), "{output}");
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}
