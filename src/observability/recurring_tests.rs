//! Events logged at once, events summed up, and bounds for memory and lines.

use std::io;
use std::sync::Arc;

use super::*;

/// The lines that something logs.
pub(in crate::observability) fn logged(what: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let written = Written::default();
    let writer = written.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    tracing::subscriber::with_default(log.finish(), what);
    let bytes = written.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
}

fn refused(reason: &'static str, from: &str) -> Occurrence {
    let from = from.parse().expect("an address");
    Occurrence::refused("connection refused", reason).from(Some(from))
}

fn count_in(line: &str) -> u64 {
    let (_, count) = line.rsplit_once("count=").expect("a count");
    count.trim().parse().unwrap_or_else(|_| panic!("a number: {line}"))
}

#[test]
fn the_first_is_logged_at_once_and_the_others_are_summed_up() {
    let (recurring, start) = (Recurring::default(), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    let lines = logged(|| {
        assert!(recurring.count(&refused("full", "10.0.0.1"), at(0)));
        for port in 0..998 {
            assert!(!recurring.count(&refused("full", "10.0.0.1"), at(port)));
        }
        assert!(!recurring.count(&refused("full", "10.0.0.2"), at(999)));
        assert!(recurring.count(&refused("draining", "10.0.0.3"), at(999)));
        recurring.report(at(999));
        recurring.report(at(1000));
    });
    let [line] = &lines[..] else { panic!("one sum: {lines:?}") };
    let expected = "connection refused, 999 more within 1.0s, from 2 networks, 998 from 10.0.0.1";
    assert!(line.contains("INFO") && line.contains(expected), "{line}");
    assert!(line.contains("reason=\"full\" count=999"), "{line}");
}

#[test]
fn sums_get_rarer_and_what_has_stopped_is_logged_at_once_again() {
    let (recurring, start) = (Recurring::default(), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    let lines = logged(|| {
        assert!(recurring.count(&refused("full", "10.0.0.1"), at(0)));
        for second in 0..60 {
            for _ in 0..1000 {
                assert!(!recurring.count(&refused("full", "10.0.0.1"), at(second * 1000)));
            }
            recurring.report(at((second + 1) * 1000));
        }
        recurring.report_all(at(61_000));
        recurring.report(at(99_000));
        assert!(recurring.count(&refused("full", "10.0.0.1"), at(99_000)));
    });
    let sum: u64 = lines.iter().map(|line| count_in(line)).sum();
    assert_eq!((lines.len(), sum), (7, 60_000), "{lines:#?}");
}

#[test]
fn kinds_and_networks_are_bounded() {
    let (recurring, now) = (Recurring::default(), Instant::now());
    for kind in 0..10_000 {
        let occurrence = Occurrence::trouble("a node is away", format!("node {kind}"));
        let _first = recurring.count(&occurrence, now);
    }
    assert_eq!(recurring.tallies().len(), MAX_KINDS + 1);
    let recurring = Recurring::default();
    for network in 0..10_000_u32 {
        let from = IpAddr::from(std::net::Ipv4Addr::from(network));
        let occurrence = Occurrence::refused("connection refused", "full").from(Some(from));
        let _first = recurring.count(&occurrence, now);
    }
    let lines = logged(|| recurring.report_all(now));
    assert!(lines[0].contains("9999 more") && lines[0].contains("1024 networks or more"));
}

#[test]
fn an_ipv6_network_is_one_network() {
    let (recurring, now) = (Recurring::default(), Instant::now());
    for from in ["2001:db8::1", "2001:db8::2", "2001:db8::3"] {
        let _first = recurring.count(&refused("full", from), now);
    }
    let lines = logged(|| recurring.report_all(now));
    assert!(lines[0].contains("2 more") && lines[0].contains("all from 2001:db8::"), "{lines:?}");
}
