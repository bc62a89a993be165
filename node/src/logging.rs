//! The log: to standard error for people and, if wanted, to a file.
//!
//! Lines are written by threads of their own, so that a slow disk or a pipe that nobody reads
//! never stalls the node: when their queue is full, lines are dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, ensure};
use nymea_remoteproxy::config::Log;
use tracing::Metadata;
use tracing_appender::non_blocking;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

/// The target of events that standard error learns in another way.
pub(crate) const FILE_ONLY: &str = "nymea_remoteproxy::exit";

/// The log is open as long as this lives; what is queued is written when it is dropped.
pub(crate) struct LogGuard(#[expect(dead_code, reason = "held to be dropped")] Vec<WorkerGuard>);

/// Starts the log of this process.
pub(crate) fn start(log: &Log, verbosity: u8) -> anyhow::Result<LogGuard> {
    let filter = filter(log, verbosity)?;
    let (stderr, guard) = non_blocking(io::stderr());
    let mut guards = vec![guard];
    let to_stderr = fmt::layer()
        .with_writer(stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(filter_fn(|event: &Metadata<'_>| event.target() != FILE_ONLY));
    let to_file = match &log.file {
        Some(path) => {
            let (file, guard) = non_blocking(append(path, true)?);
            guards.push(guard);
            Some(fmt::layer().with_writer(file).with_ansi(false))
        }
        None => None,
    };
    registry().with(filter).with(to_stderr).with(to_file).init();
    Ok(LogGuard(guards))
}

/// Whether the log could be started. It makes no file: one made by another user than the node's
/// would be in the node's way.
pub(crate) fn check(log: &Log) -> anyhow::Result<()> {
    filter(log, 0)?;
    let Some(path) = &log.file else { return Ok(()) };
    if path.exists() {
        append(path, false)?;
    } else {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        ensure!(
            directory.unwrap_or(Path::new(".")).is_dir(),
            "{}: no such directory",
            unopenable(path)
        );
    }
    Ok(())
}

fn append(path: &Path, create: bool) -> anyhow::Result<File> {
    let opened = OpenOptions::new().append(true).create(create).open(path);
    opened.with_context(|| unopenable(path))
}

fn unopenable(path: &Path) -> String {
    format!("log.file (-l/--logging): cannot open {} to append to it", path.display())
}

fn filter(log: &Log, verbosity: u8) -> anyhow::Result<EnvFilter> {
    let directives = match (&log.filter, verbosity) {
        (Some(given), _) => given,
        (None, 0) => "info",
        (None, 1) => "info,nymea_remoteproxy=debug",
        (None, 2) => "info,nymea_remoteproxy=trace",
        (None, 3..) => "debug,nymea_remoteproxy=trace",
    };
    EnvFilter::builder().parse(directives).with_context(|| {
        format!("log.filter: expected one such as info,nymea_remoteproxy=debug, not {directives:?}")
    })
}
