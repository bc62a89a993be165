//! `nymea-remoteproxy-monitor` on a terminal, and writing lines of JSON of a real node.

mod support;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU16;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nymea_remoteproxy::monitor::{self, App, Gateway, Report, Statistics, TunnelProxy};
use nymea_remoteproxy::unix_socket::UnixSocket;
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use procfs::process::Process;
use serde_json::Value;
use support::{DEADLINE, Running, command};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nymea-remoteproxy-monitor");

/// Three gateways, one of them without apps. The traffic of one app grows with each report.
#[derive(Default)]
struct Houses(AtomicU64);

impl Statistics for Houses {
    fn report(&self, print_all: bool) -> Report {
        let received = self.0.fetch_add(1 << 20, Ordering::Relaxed);
        let app = |name: &str, received| App {
            id: name.into(),
            name: name.into(),
            address: "192.0.2.1:4711".into(),
            received,
            ..App::default()
        };
        let gateway = |name: &str, apps| Gateway {
            id: name.into(),
            name: name.into(),
            uuid: format!("{{uuid of {name}}}"),
            apps,
            ..Gateway::default()
        };
        let mut gateways = vec![
            gateway("Windmill", vec![app("Phone", received)]),
            gateway("Attic\x1b[31m", vec![app("Tablet", 5), app("Laptop", 6)]),
        ];
        if print_all {
            gateways.push(gateway("Empty house", Vec::new()));
        }
        let tunnel_proxy = TunnelProxy {
            total_client_count: 6,
            gateway_count: 3,
            app_count: 3,
            transports: [("tcp".to_owned(), 6)].into(),
            throughput: 0,
            gateways,
        };
        Report { server_name: "made up".into(), tunnel_proxy, ..Report::default() }
    }

    fn relayed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A monitor socket in a directory of its own.
struct Served {
    directory: TempDir,
    runtime: Option<Runtime>,
}

impl Served {
    fn start() -> Self {
        let mut served = Self { directory: TempDir::new().expect("a directory"), runtime: None };
        served.again();
        served
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("monitor.sock")
    }

    fn again(&mut self) {
        let runtime = Runtime::new().expect("a runtime");
        let socket = {
            let _within = runtime.enter();
            UnixSocket::bind(&self.path(), "monitor.socket").expect("bound")
        };
        runtime.spawn(monitor::serve(socket, Arc::new(Houses::default())));
        self.runtime = Some(runtime);
    }

    fn stop(&mut self) {
        self.runtime = None;
    }
}

/// The program on a terminal.
struct Screen {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    terminal: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
    is_read: Arc<AtomicBool>,
}

impl Screen {
    fn start(socket: &Path) -> Self {
        Self::with(socket, |_| {})
    }

    fn with(socket: &Path, change: impl FnOnce(&mut CommandBuilder)) -> Self {
        let mut screen = Self::unread(socket, |_| {}, change);
        let mut reader = screen.master.try_clone_reader().expect("a reader");
        let (terminal, is_read) = (Arc::clone(&screen.terminal), Arc::clone(&screen.is_read));
        screen.reader = Some(thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut piece) {
                terminal.lock().expect("no panic").process(&piece[..read]);
                if !is_read.load(Ordering::Relaxed) {
                    return;
                }
            }
        }));
        screen
    }

    /// Starts the program on a terminal that is not read.
    fn unread(
        socket: &Path,
        prepare: impl FnOnce(&dyn MasterPty),
        change: impl FnOnce(&mut CommandBuilder),
    ) -> Self {
        let (rows, cols) = (24, 100);
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a terminal");
        prepare(&*pair.master);
        let mut command = CommandBuilder::new(PROGRAM);
        command.args(["--interval", "100ms", "--socket"]);
        command.arg(socket);
        change(&mut command);
        let child = pair.slave.spawn_command(command).expect("spawned");
        let keys = pair.master.take_writer().expect("a writer");
        Self {
            child,
            master: pair.master,
            keys,
            terminal: Arc::new(Mutex::new(parser(rows, cols))),
            reader: None,
            is_read: Arc::new(AtomicBool::new(true)),
        }
    }

    fn resize(&self, rows: u16, cols: u16) {
        *self.terminal.lock().expect("no panic") = parser(rows, cols);
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        self.master.resize(size).expect("resized");
    }

    fn contents(&self) -> String {
        self.terminal.lock().expect("no panic").screen().contents()
    }

    fn is_put_away(&self) -> bool {
        !self.terminal.lock().expect("no panic").screen().alternate_screen()
    }

    /// Waits until the screen is so, and gives what is on it.
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let found = at_last(|| Some(self.contents()).filter(|contents| is_so(contents)));
        found.unwrap_or_else(|| panic!("waited for {what} in:\n{}", self.contents()))
    }

    fn shows(&self, part: &str) -> String {
        self.until(part, |contents| contents.contains(part))
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("typed");
    }

    fn signal(&self, name: &str) {
        let id = self.child.process_id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill").success());
    }

    fn ends(&mut self) -> u32 {
        match at_last(|| self.child.try_wait().expect("a child")) {
            Some(status) => status.exit_code(),
            None => panic!("it goes on:\n{}", self.contents()),
        }
    }

    /// The terminal goes away.
    fn hang_up(mut self) -> Box<dyn Child + Send + Sync> {
        self.is_read.store(false, Ordering::Relaxed);
        // So that there is something to be read, and the reader sees it.
        self.type_in("\t");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        self.child
    }
}

/// What there is at last; none if there is nothing within [`DEADLINE`].
fn at_last<T>(mut find: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let found = find();
        if found.is_some() || began.elapsed() > DEADLINE {
            return found;
        }
        sleep(Duration::from_millis(10));
    }
}

fn parser(rows: u16, cols: u16) -> vt100::Parser {
    let size = |size| NonZeroU16::new(size).expect("not empty");
    vt100::Parser::new(size(rows), size(cols), 0)
}

/// Lines in the order in which they are on the screen.
fn order(contents: &str, names: &[&str]) -> bool {
    let places: Option<Vec<_>> = names.iter().map(|name| contents.find(name)).collect();
    places.is_some_and(|places| places.is_sorted())
}

#[test]
fn keys_sort_filter_and_quit() {
    let served = Served::start();
    let mut screen = Screen::start(&served.path());
    let first = screen.shows("Empty house");
    assert!(first.contains("made up"), "{first}");
    assert!(first.contains("6 connections (tcp 6)  3 gateways  3 apps"), "{first}");
    assert!(order(&first, &["Attic", "Laptop", "Tablet", "Empty", "Windmill", "Phone"]), "{first}");
    assert!(first.contains(r"Attic\u{1b}[31m"), "{first}");
    screen.until("a rate", |contents| {
        let line = contents.lines().find(|line| line.contains("Phone")).unwrap_or_default();
        // 1 MiB in each 100 ms, or a little later.
        line.matches("MiB").count() == 2
    });

    screen.type_in("d");
    screen.until("the most data first", |contents| order(contents, &["Attic", "Empty", "Wind"]));
    screen.type_in("\t");
    screen.until("tunnels", |contents| order(contents, &["Phone", "Windmill", "Laptop", "Attic"]));
    screen.type_in("\tn");
    screen.until("names", |contents| order(contents, &["Attic", "Empty", "Windmill"]));
    screen.type_in("n");
    screen.until("names from the end", |contents| order(contents, &["Wind", "Empty", "Attic"]));

    screen.type_in("/lapx\x7f");
    let filtered = screen.until("less", |contents| !contents.contains("Windmill"));
    assert!(order(&filtered, &["Attic", "Laptop", "filter: lap"]), "{filtered}");
    screen.type_in("\x1b");
    screen.shows("Windmill");
    screen.type_in("g");
    screen.until("no idle gateways", |contents| !contents.contains("Empty house"));
    screen.type_in("q");
    assert_eq!(screen.ends(), 0);
}

#[test]
fn the_screen_may_change_its_size() {
    let served = Served::start();
    let screen = Screen::start(&served.path());
    let narrow = screen.shows("Windmill");
    assert!(!narrow.contains("uuid of"), "{narrow}");
    screen.resize(30, 160);
    screen.shows("{uuid of Windmill}");
    screen.resize(3, 20);
    screen.shows("made up");
    assert!(!screen.contents().contains("uuid of"));
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    let served = Served::start();
    for end in ["TERM", "INT", "QUIT", "HUP", "q", "\x03"] {
        let mut screen = Screen::start(&served.path());
        // As it was: the program may have taken it already.
        let fresh = native_pty_system().openpty(PtySize::default()).expect("a terminal");
        let before = fresh.master.get_termios().expect("its settings");
        screen.shows("Windmill");
        let taken = screen.master.get_termios().expect("its settings");
        assert_ne!(before.local_flags, taken.local_flags);
        if end.len() > 1 {
            screen.signal(end);
        } else {
            screen.type_in(end);
        }
        assert_eq!(screen.ends(), 0, "{end}");
        let after = screen.master.get_termios().expect("its settings");
        assert_eq!(before.local_flags, after.local_flags, "{end}");
        assert_eq!(before.input_flags, after.input_flags, "{end}");
        let put_away = at_last(|| screen.is_put_away().then_some(()));
        assert!(put_away.is_some(), "{end}: {}", screen.contents());
        assert!(!screen.terminal.lock().expect("no panic").screen().hide_cursor(), "{end}");
    }
}

#[test]
fn it_ends_when_the_terminal_hangs_up() {
    let served = Served::start();
    // With the signal that a closed terminal causes, and without.
    for has_signal in [true, false] {
        let screen = Screen::with(&served.path(), |command| {
            command.set_controlling_tty(has_signal);
        });
        screen.shows("Windmill");
        let mut child = screen.hang_up();
        if at_last(|| child.try_wait().expect("a child")).is_none() {
            child.kill().expect("killed");
            panic!("it goes on without a terminal; signal: {has_signal}");
        }
    }
}

#[test]
fn it_ends_when_told_to_while_the_terminal_takes_nothing() {
    let served = Served::start();
    let mut screen = Screen::unread(&served.path(), fill, |_| {});
    let id = screen.child.process_id().expect("it runs");
    let program = Process::new(i32::try_from(id).expect("an id")).expect("it runs");
    let hears = || program.status().expect("it runs").sigcgt & (1 << (SIGTERM - 1)) != 0;
    at_last(|| hears().then_some(())).expect("it waits for signals");
    screen.signal("TERM");
    assert_eq!(screen.ends(), 1, "it could not give the terminal back");
}

const SIGTERM: u32 = 15;

/// Writes to a terminal until it takes no more, also after what was written has settled.
fn fill(terminal: &dyn MasterPty) {
    const O_NONBLOCK: i32 = 0o4000;
    const O_NOCTTY: i32 = 0o400;
    let name = terminal.tty_name().expect("a name");
    let mut options = OpenOptions::new();
    let opened = options.write(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(name);
    let mut opened = opened.expect("opened");
    let mut refused = 0;
    while refused < 100 {
        match opened.write(&[b'.'; 1024]) {
            Ok(_) => refused = 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_node_that_goes_is_waited_for() {
    let mut served = Served::start();
    let mut screen = Screen::start(&served.path());
    screen.shows("Windmill");
    served.stop();
    let away = screen.shows("trying again");
    assert!(away.contains("Windmill"), "what was seen last stays:\n{away}");
    served.again();
    screen.until("the node", |contents| !contents.contains("trying again"));
    screen.type_in("q");
    assert_eq!(screen.ends(), 0);

    served.stop();
    let mut screen = Screen::start(&served.path());
    screen.shows("no such file");
    served.again();
    screen.shows("Windmill");
    screen.type_in("q");
    assert_eq!(screen.ends(), 0);
}

fn node(socket: &Path) -> Running {
    let mut command = command(&["-p", "0"]);
    let node = Running::of(command.env("REMOTEPROXY__MONITOR__SOCKET", socket));
    node.url();
    node
}

#[test]
fn lines_of_json_of_a_real_node_that_is_killed_and_comes_again() {
    let directory = TempDir::new().expect("a directory");
    let socket = directory.path().join("monitor.sock");
    let mut first = node(&socket);
    let program = |count: &str| {
        let mut program = Command::new(PROGRAM);
        program.arg("--socket").arg(&socket).args(["--non-interactive", "--interval", "100ms"]);
        program.args(["--count", count]).stdin(Stdio::null());
        program
    };
    let output = program("2").output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let report: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(report["serverName"], "nymea-remoteproxy");
        assert_eq!(report["tunnelProxyStatistic"]["serverConnectionsCount"], 0);
    }

    let mut endless = program("1000000");
    let mut going = endless.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
    let mut lines = BufReader::new(going.stdout.take().expect("piped")).lines();
    let mut said = BufReader::new(going.stderr.take().expect("piped")).lines();
    lines.next().expect("a line").expect("UTF-8");
    first.child.kill().expect("killed");
    first.child.wait().expect("ended");
    let away = said.next().expect("a line").expect("UTF-8");
    assert!(away.contains("trying again"), "{away}");
    assert!(socket.exists(), "killed, it leaves its socket behind");
    let second = node(&socket);
    assert_eq!(said.next().expect("a line").expect("UTF-8"), "the node is back");
    lines.next().expect("a line").expect("UTF-8");
    // The reader has gone: the program ends.
    drop(lines);
    assert!(going.wait().expect("ended").success());

    second.signal("TERM");
    assert_eq!(second.end().0, Some(0));
    assert!(!socket.exists(), "drained, it takes its socket with it");
    let output = program("1").output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(message.contains("monitor.socket") && message.contains("--socket"), "{message}");
}

#[test]
fn wrong_usage() {
    for (arguments, expected, code) in [
        (&["--count", "3"][..], "--non-interactive", 2),
        (&["--non-interactive", "--count", "0"], "--count", 2),
        (&["--interval", "1ms"], "at least 100ms", 2),
        (&[], "no terminal; use --non-interactive", 1),
    ] {
        let output =
            Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(message.contains(expected), "{message}");
    }
}
