//! A log that cannot be written: the node goes on, counts the lines that are lost, says so where it
//! still can, and writes again when there is room.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::endpoints::redis::until;
use cluster::endpoints::{Endpoint, Listening};
use support::Running;

const LOST: &str = "the log cannot be written, lines are lost";
const WRITTEN_AGAIN: &str = "the log is written again, lines are missing";

struct Node {
    process: Running,
    address: SocketAddr,
    admin: SocketAddr,
    /// The lines of its start: the first lines are lost among them.
    start: String,
}

impl Listening for Node {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Node {
    fn start(log: &Path) -> Self {
        let process = Running::start(&["-p", "0", "-l", log.to_str().expect("UTF-8")]);
        let start = process.lines_until("try it, in another").join("\n");
        let line = |part| start.lines().find(|line| line.contains(part)).expect("a line");
        let address = address_in(line("listening on wss://"));
        let admin = address_in(line("metrics on http://"));
        Self { process, address, admin, start }
    }

    fn get(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.admin).expect("the admin listener");
        write!(tcp, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.admin).expect("asked");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Lines that are lost.
    fn lost(&self) -> u64 {
        let metrics = self.get("/metrics");
        let line = metrics.lines().find_map(|it| it.strip_prefix("remoteproxy_log_dropped_total "));
        line.expect("the metric").parse().expect("a number")
    }

    /// Connects and disconnects an endpoint, which is logged.
    async fn is_used(&self) {
        Endpoint::waiting(self, "t").await.leave().await;
    }
}

fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("://").expect("a URL");
    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
    address[..end.unwrap_or(address.len())].parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_find_no_room_are_counted_and_reported_once() {
    let node = Node::start(Path::new("/dev/full"));
    for _ in 0..10 {
        node.is_used().await;
    }
    until("the lines are counted", async || node.lost() >= 10).await;
    until("the event is listed", async || {
        node.get("/api/v1/events").contains("lines of the log are lost")
    })
    .await;
    node.process.signal("TERM");
    let (code, rest) = node.process.end();
    assert_eq!(code, Some(0));
    let stderr = node.start + &rest;
    assert_eq!(stderr.matches(LOST).count(), 1, "{stderr}");
    assert!(stderr.contains("/dev/full") && stderr.contains("No space left"), "{stderr}");
}

/// A small disk of its own. Needs root.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=64k", "log"];
        let mounted = Command::new("mount").args(options).arg(folder).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount needs root");
        Self(folder.to_owned())
    }

    /// Leaves no room on it, until the file is removed.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = File::create(&path).expect("a file");
        while filler.write_all(&[0; 512]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_only_the_lines_written_meanwhile() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let disk = Disk::new(folder.path());
    let file = folder.path().join("node.log");
    let node = Node::start(&file);
    let filler = disk.fill();
    // What is left of the last page of the log is used up, too.
    until("lines are lost", async || {
        node.is_used().await;
        node.lost() > 0
    })
    .await;
    node.process.line(LOST);

    fs::remove_file(filler).expect("removed");
    let log = || fs::read_to_string(&file).expect("a log");
    until("the log is written again", async || {
        node.is_used().await;
        log().contains(WRITTEN_AGAIN)
    })
    .await;
    let said = log();
    let line = said.lines().find(|line| line.contains(WRITTEN_AGAIN)).expect("a line");
    let (_, lost) = line.split_once("lost=").expect("how many");
    let lost: u64 = lost.split(' ').next().and_then(|it| it.parse().ok()).expect("a number");
    assert_eq!(lost, node.lost(), "{line}");
    // One line was torn at most, and none was appended to it.
    let torn = said.lines().filter(|line| !line.starts_with("20")).count();
    assert_eq!(torn, 0, "{said}");
    drop(node);
}
