//! The programs of this package as processes, for the tests.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

pub const DEADLINE: Duration = Duration::from_secs(30);

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nymea-remoteproxy"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REMOTEPROXY") {
            command.env_remove(name);
        }
    }
    // What is looked for in the log is written for people.
    command
        .args(arguments)
        .env("REMOTEPROXY__LOG__FORMAT", "human")
        .env("REMOTEPROXY__ADMIN__LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

/// Runs what must fail with `code`, and gives the message.
pub fn fails(code: i32, command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// A node that runs, and its log line by line.
pub struct Running {
    pub child: Child,
    log: Receiver<String>,
}

impl Running {
    pub fn start(arguments: &[&str]) -> Self {
        Self::of(&mut command(arguments))
    }

    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("spawned");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (lines, log) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, log }
    }

    /// Waits for a line of the log.
    pub fn line(&self, part: &str) -> String {
        loop {
            let line = self.log.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// All lines of the log up to one with this.
    pub fn lines_until(&self, part: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.log.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no {part:?}"));
            if line.contains(part) {
                return lines;
            }
            lines.push(line);
        }
    }

    /// Where it listens for clients. To be asked once.
    pub fn url(&self) -> String {
        let line = self.line("listening on wss://");
        format!("wss://{}", line.rsplit("wss://").next().expect("an address").trim())
    }

    /// Resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Waits for the end, and gives the exit code and the rest of the log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        loop {
            match self.log.recv_timeout(DEADLINE) {
                Ok(line) => rest = rest + &line + "\n",
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("still running: {rest}"),
            }
        }
        (self.child.wait().expect("ended").code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
