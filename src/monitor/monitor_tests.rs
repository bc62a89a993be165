//! Monitors as a node meets them: what they may send, in whatever pieces, and what they may not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, sleep};

use super::*;

const REFRESH: &[u8] = br#"{"method":"refresh","params":{"printAll":true}}"#;
const DEADLINE: Duration = Duration::from_secs(20);

/// A given number of gateways, every second one with an app.
struct Made {
    gateways: usize,
    relayed: AtomicU64,
    was_asked: AtomicBool,
}

impl Statistics for Made {
    fn report(&self, print_all: bool) -> Report {
        self.was_asked.store(true, Ordering::Relaxed);
        let app = App { id: "7".into(), name: "Phone".into(), ..App::default() };
        let gateways = (0..self.gateways).map(|number| Gateway {
            id: number.to_string(),
            name: "x".repeat(1000),
            apps: if number % 2 == 0 { vec![app.clone()] } else { Vec::new() },
            ..Gateway::default()
        });
        let gateways = gateways.filter(|gateway| print_all || !gateway.apps.is_empty()).collect();
        let tunnel_proxy = TunnelProxy { gateways, ..TunnelProxy::default() };
        Report { server_name: "test".into(), tunnel_proxy, ..Report::default() }
    }

    fn relayed(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }
}

/// A monitor socket that is served in a directory of its own.
struct Served {
    directory: TempDir,
    statistics: Arc<Made>,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    fn with(gateways: usize) -> Self {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("monitor");
        let socket = UnixSocket::bind(&path, "monitor.socket").expect("bound");
        let (relayed, was_asked) = (AtomicU64::new(0), AtomicBool::new(false));
        let statistics = Arc::new(Made { gateways, relayed, was_asked });
        let serving = tokio::spawn(serve(socket, Arc::clone(&statistics) as _));
        Self { directory, statistics, serving }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("monitor")
    }

    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.path()).await.expect("connected"))
    }
}

async fn line(monitor: &mut BufReader<UnixStream>) -> Option<Value> {
    let mut line = String::new();
    let read = timeout(DEADLINE, monitor.read_line(&mut line)).await.expect("in time");
    // Closed with something unread is a reset.
    match read {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(serde_json::from_str(&line).expect("JSON")),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_is_for_user_and_group_and_goes_with_the_socket() {
    let served = Served::with(0);
    assert_eq!(mode(&served.path()), 0o660);
    served.serving.abort();
    assert!(served.serving.await.expect_err("aborted").is_cancelled());
    assert!(!served.directory.path().join("monitor").exists());
}

#[tokio::test]
async fn requests_come_in_any_pieces() {
    let served = Served::with(2);
    let mut monitor = served.connect().await;
    for byte in REFRESH {
        monitor.get_mut().write_all(&[*byte]).await.expect("sent");
    }
    assert_eq!(line(&mut monitor).await.expect("a report")["serverName"], "test");
    let fewer = br#"{"params":{"printAll":false},"method":"refresh"}"#;
    let several = [REFRESH, b"\n ", fewer, REFRESH].concat();
    monitor.get_mut().write_all(&several).await.expect("sent");
    for expected in [2, 1, 2] {
        let report = line(&mut monitor).await.expect("a report");
        let listed = &report["tunnelProxyStatistic"]["tunnelConnections"];
        assert_eq!(listed.as_array().expect("a list").len(), expected);
    }
}

#[tokio::test]
async fn anything_else_ends_the_connection() {
    let served = Served::with(1);
    for wrong in [
        "refresh",
        "[]",
        "{}",
        r#"{"method":"refresh"}"#,
        r#"{"method":"refresh","params":{}}"#,
        r#"{"method":"refresh","params":{"printAll":1}}"#,
        r#"{"method":"refresh","params":{"printAll":true,"more":1}}"#,
        r#"{"method":"close","params":{"printAll":true}}"#,
        r#"{"method":"refresh","params":{"printAll":true},"more":1}"#,
        &format!("{{\"method\":\"{}\"}}", "x".repeat(11_000)),
    ] {
        let mut monitor = served.connect().await;
        monitor.get_mut().write_all(wrong.as_bytes()).await.expect("sent");
        assert_eq!(line(&mut monitor).await, None, "{wrong}");
    }
    assert!(!served.statistics.was_asked.load(Ordering::Relaxed));
    // Others do not notice.
    let mut monitor = served.connect().await;
    monitor.get_mut().write_all(REFRESH).await.expect("sent");
    assert!(line(&mut monitor).await.is_some());
}

#[tokio::test]
async fn there_is_room_for_some_only_and_again_when_one_leaves() {
    let served = Served::with(1);
    let mut monitors = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut monitor = served.connect().await;
        monitor.get_mut().write_all(REFRESH).await.expect("sent");
        assert!(line(&mut monitor).await.is_some());
        monitors.push(monitor);
    }
    assert_eq!(line(&mut served.connect().await).await, None);
    drop(monitors.pop());
    let again = async {
        loop {
            let mut monitor = served.connect().await;
            // Fails where it is closed again at once.
            let _sent = monitor.get_mut().write_all(REFRESH).await;
            if line(&mut monitor).await.is_some() {
                return;
            }
        }
    };
    timeout(DEADLINE, again).await.expect("room");
}

#[tokio::test]
async fn who_does_not_take_its_report_is_closed() {
    // Far more than a socket holds.
    let served = Served::with(5_000);
    let mut monitor = served.connect().await;
    monitor.get_mut().write_all(REFRESH).await.expect("sent");
    let closed = async {
        while monitor.get_mut().write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, closed).await.expect("in time");
    // What it finds is cut off.
    let mut rest = Vec::new();
    let _end = monitor.read_to_end(&mut rest).await;
    assert!(!rest.is_empty() && !rest.ends_with(b"\n"), "{} bytes", rest.len());
}

#[tokio::test]
async fn the_throughput_is_that_of_the_last_second() {
    let served = Served::with(1);
    let mut monitor = served.connect().await;
    let since = Instant::now();
    let mut seen = Vec::new();
    while seen.iter().filter(|&&rate| rate > 0).count() < 3 {
        served.statistics.relayed.fetch_add(1_000, Ordering::Relaxed);
        sleep(Duration::from_millis(10)).await;
        monitor.get_mut().write_all(REFRESH).await.expect("sent");
        let report = line(&mut monitor).await.expect("a report");
        let rate = report["tunnelProxyStatistic"]["troughput"].as_u64().expect("a number");
        if seen.last() != Some(&rate) {
            seen.push(rate);
        }
        assert!(since.elapsed() < DEADLINE, "{seen:?}");
    }
    // A hundred times 1000 at most; fewer on a busy machine.
    assert!(seen.iter().all(|&rate| rate <= 110_000), "{seen:?}");
}

#[test]
fn a_report_is_as_the_protocol_says() {
    let app = App {
        id: "2".into(),
        address: "192.0.2.2".into(),
        timestamp: 20,
        name: "Phone".into(),
        uuid: "{b}".into(),
        received: 5,
        sent: 6,
    };
    let gateway = Gateway {
        id: "1".into(),
        address: "192.0.2.1".into(),
        timestamp: 10,
        name: "Home".into(),
        uuid: "{a}".into(),
        received: 3,
        sent: 4,
        apps: vec![app],
    };
    let report = Report {
        server_name: "proxy".into(),
        server_version: "1".into(),
        api_version: "0.6".into(),
        tunnel_proxy: TunnelProxy {
            total_client_count: 4,
            gateway_count: 1,
            app_count: 1,
            transports: [("tcp".to_owned(), 3), ("unix".to_owned(), 1)].into(),
            throughput: 9,
            gateways: vec![gateway],
        },
    };
    let expected = concat!(
        r#"{"serverName":"proxy","serverVersion":"1","apiVersion":"0.6","tunnelProxyStatistic":"#,
        r#"{"totalClientCount":4,"serverConnectionsCount":1,"clientConnectionsCount":1,"#,
        r#""transports":{"tcp":3,"unix":1},"troughput":9,"tunnelConnections":[{"id":"1","#,
        r#""address":"192.0.2.1","timestamp":10,"name":"Home","serverUuid":"{a}","#,
        r#""rxDataCount":3,"txDataCount":4,"clientConnections":[{"id":"2","#,
        r#""address":"192.0.2.2","timestamp":20,"name":"Phone","clientUuid":"{b}","#,
        r#""rxDataCount":5,"txDataCount":6}]}]}}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(report.to_line()).expect("UTF-8"), expected);
    assert_eq!(serde_json::from_str::<Report>(expected).expect("readable"), report);
}

#[test]
fn a_report_of_another_server_is_read() {
    let line = r#"{"serverName":"original","more":[],"tunnelProxyStatistic":{"troughput":1.5e3,
        "totalClientCount":2.0,"tunnelConnections":[{"id":12,"clientConnections":[{"id":null}]}]}}"#;
    let report: Report = serde_json::from_str(line).expect("readable");
    assert_eq!(report.tunnel_proxy.throughput, 1500);
    assert_eq!(report.tunnel_proxy.total_client_count, 2);
    assert_eq!(report.tunnel_proxy.gateways[0].id, "12");
    assert_eq!(report.tunnel_proxy.gateways[0].apps[0].id, "");
}
