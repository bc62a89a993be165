//! The status page in a real browser, while tunnels come and go.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use cluster::Cluster;
use cluster::endpoints::{Endpoint, Listening};

/// Debian's Python: another one in the PATH may lack the module.
const PYTHON: &str = "/usr/bin/python3";
/// Where screenshots go, if anywhere.
const SCREENSHOTS: &str = "STATUS_PAGE_SCREENSHOTS";

/// Tunnels with something in them, more and more and then fewer, without end.
async fn come_and_go(nodes: &[&impl Listening]) {
    for wave in 0.. {
        let mut tunnels = JoinSet::new();
        for number in 0..6_u64 {
            let token = format!("{wave} {number}");
            let mut first = named(nodes[0], &token, "Heat pump <b>Süd</b>", wave, number).await;
            let at = nodes[usize::from(number % 2 == 1) % nodes.len()];
            let mut second = named(at, &token, "Phone", wave + 1000, number).await;
            first.established().await;
            second.established().await;
            tunnels.spawn(async move {
                for _ in 0..(10 + 10 * number) {
                    first.send(Message::binary(vec![7; 20_000])).await;
                    assert_eq!(second.message().await.len(), 20_000);
                    sleep(Duration::from_millis(30)).await;
                }
                first.leave().await;
                second.closed_with(1000).await;
            });
        }
        while let Some(done) = tunnels.join_next().await {
            done.expect("no panic");
        }
    }
}

async fn named(node: &impl Listening, token: &str, name: &str, wave: u64, number: u64) -> Endpoint {
    let mut endpoint = Endpoint::connect(node).await;
    let uuid = format!("00000000-0000-4000-8000-{wave:06}{number:06}");
    let params = format!(r#""token":"{token}","uuid":"{uuid}","name":"{name}""#);
    endpoint.authenticate(&params).await;
    endpoint
}

#[tokio::test]
async fn the_page_moves_and_asks_nobody_else() {
    let cluster = Cluster::<2>::start().await;
    let [one, other] = &cluster.nodes;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/status_page/check.py");
    let mut check = Command::new(PYTHON);
    check.arg(script).arg(format!("http://{}/", one.admin()));
    if let Some(directory) = std::env::var_os(SCREENSHOTS) {
        check.arg(directory);
    }
    check.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
    let checking = check.spawn().expect("this test needs python3; tests/run installs it");
    let nodes = [one, other];
    let output = tokio::select! {
        output = timeout(Duration::from_mins(3), checking.wait_with_output()) => output,
        () = come_and_go(&nodes) => unreachable!("it goes on and on"),
    };
    let output = output.expect("in time").expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("No such file or directory: 'chromium'") && !errors.contains("No module"),
        "this test needs chromium and python3-websockets; tests/run installs them"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "fine\n", "{errors}");
}
