//! The examples as users run them: each in a process of its own, against a real node.
//!
//! `cargo test` builds them. With `--test examples` alone it does not: add `--examples`.

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use support::Running;

const UUID: &str = "6c5f1d2e-4b3a-4c7d-9e8f-0123456789ab";

/// The example of this name, which lies beside the tests of the same build.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the path of this test");
    let build = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let program: PathBuf = build.join("examples").join(name);
    assert!(program.is_file(), "no {}: add --examples to cargo test", program.display());
    Command::new(program)
}

/// A process that is killed when dropped.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Runs the command until it ends, which must be a success. Returns what it printed.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("the example runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_pair_exchanges_a_line_and_its_answer() {
    let node = Running::start(&["-p", "0"]);
    let printed = output(example("pair").arg(node.url()));
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines, ["phone asks: how warm is it?", "kitchen answers: 21 degrees"]);
}

#[test]
fn a_gateway_answers_its_apps() {
    let node = Running::start(&["-p", "0"]);
    let url = node.url();
    let mut gateway =
        example("gateway").args([UUID, &url]).stdout(Stdio::piped()).spawn().expect("started");
    let mut lines = BufReader::new(gateway.stdout.take().expect("piped")).lines();
    let _gateway = Background(gateway);
    let mut line = || lines.next().expect("a line").expect("UTF-8");
    assert_eq!(line(), format!("registered as {UUID}"));
    for question in ["how warm is it?", "and now?"] {
        let printed = output(example("app").args([UUID, question, &url]));
        assert_eq!(printed, format!("phone asked: {question}\n"));
        assert_eq!(line(), format!("phone asks: {question}"));
    }
}
