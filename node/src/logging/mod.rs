//! The log: to standard error and, if wanted, to a file; for people or as JSON lines.
//!
//! Separate threads write the lines, so that a slow disk or an unread pipe never stalls the node:
//! lines are dropped when the queue or the disk is full, or the pipe is closed. All dropped lines are
//! counted.

mod human;
mod json;
mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use nymea_remoteproxy::config::{Log, LogFormat};
use nymea_remoteproxy::observability::LogControl;
use tracing::Metadata;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use self::json::JsonLines;
use self::writer::Steadfast;

/// The target of events that standard error learns in another way.
pub(crate) const FILE_ONLY: &str = "nymea_remoteproxy::exit";
/// What the libraries that export say, each time; the node says it once, in its own words.
const QUIET: &str = "opentelemetry";
/// Lines that wait for their writer; more are dropped, and counted. The memory for so many is taken at
/// once, and what lines once were in is never given back.
const QUEUE: usize = 16 * 1024;

/// The log is open as long as this lives; what is queued is written when it is dropped.
pub(crate) struct LogGuard {
    _writers: Vec<WorkerGuard>,
    control: Arc<dyn LogControl>,
}

impl LogGuard {
    /// What may be changed of it.
    pub(crate) fn control(&self) -> Arc<dyn LogControl> {
        Arc::clone(&self.control)
    }
}

/// Starts the log of this process.
pub(crate) fn start(log: &Log, verbosity: u8) -> anyhow::Result<LogGuard> {
    let (filter, handle) = reload::Layer::new(filter(log, verbosity)?);
    let (mut writers, mut losses) = (Vec::new(), Vec::new());
    let mut queued = |queued: Queued| {
        writers.push(queued.guard);
        losses.push(queued.losses);
        queued.writer
    };
    let stderr = queued(Queued::new(io::stderr(), "standard error".into()));
    let is_terminal = io::stderr().is_terminal();
    let is_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let not_for_stderr = filter_fn(|event: &Metadata<'_>| event.target() != FILE_ONLY);
    let to_stderr = layer(stderr, is_json, is_terminal).with_filter(not_for_stderr);
    let to_file = match &log.file {
        Some(path) => {
            let file = Queued::new(append(path, true)?, path.display().to_string());
            let file = queued(file);
            Some(layer(file, log.format == LogFormat::Json, false))
        }
        None => None,
    };
    registry().with(filter).with(to_stderr).with(to_file).init();
    Ok(LogGuard { _writers: writers, control: Arc::new(Control { filter: handle, losses }) })
}

/// A writer with a thread of its own.
struct Queued {
    writer: NonBlocking,
    guard: WorkerGuard,
    losses: Losses,
}

/// The lines that a writer has lost.
struct Losses {
    not_queued: ErrorCounter,
    not_written: Arc<AtomicU64>,
}

impl Queued {
    fn new(writer: impl Write + Send + 'static, name: String) -> Self {
        let writer = Steadfast::new(writer, name);
        let not_written = writer.lost();
        let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUE);
        let (writer, guard) = builder.finish(writer);
        let losses = Losses { not_queued: writer.error_counter(), not_written };
        Self { writer, guard, losses }
    }
}

impl Losses {
    fn count(&self) -> u64 {
        self.not_queued.dropped_lines() as u64 + self.not_written.load(Ordering::Relaxed)
    }
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

struct Control<S> {
    filter: reload::Handle<EnvFilter, S>,
    losses: Vec<Losses>,
}

impl<S> LogControl for Control<S> {
    fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    fn set_filter(&self, directives: &str) -> Result<(), String> {
        let filter = parse(directives).map_err(|error| format!("{error:#}"))?;
        self.filter.reload(filter).map_err(|error| error.to_string())
    }

    fn dropped(&self) -> u64 {
        self.losses.iter().map(Losses::count).sum()
    }
}

fn layer<S>(writer: NonBlocking, is_json: bool, has_colors: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    if is_json {
        let lines = fmt::layer().fmt_fields(JsonFields::new()).event_format(JsonLines);
        Box::new(lines.with_ansi(false).with_writer(writer))
    } else {
        let lines = fmt::layer().fmt_fields(human::fields());
        Box::new(lines.with_ansi(has_colors).with_writer(writer))
    }
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
        (None, 3..) => "debug,nymea_remoteproxy=trace,opentelemetry=info",
    };
    parse(directives).context("log.filter")
}

fn parse(directives: &str) -> anyhow::Result<EnvFilter> {
    let quiet = if directives.contains(QUIET) { String::new() } else { format!(",{QUIET}=off") };
    EnvFilter::builder().parse(format!("{directives}{quiet}")).with_context(|| {
        format!("expected one such as info,nymea_remoteproxy=debug, not {directives:?}")
    })
}
