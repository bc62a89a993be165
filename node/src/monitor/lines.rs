//! `--non-interactive`: each report as it came, a line of JSON.

use std::io::{self, Write};

use nymea_remoteproxy::printable::PlainJson;
use tokio::time::{MissedTickBehavior, interval};

use crate::options::Options;
use crate::say;
use crate::source::{Source, SourceError};

/// Writes reports until there are enough of them. A node that does not answer at the beginning is an
/// error; one that goes away later is waited for.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut source = Source::new(&options.socket);
    let mut ticks = interval(options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written = 0;
    let mut is_away = false;
    while options.count.is_none_or(|count| written < count.get()) {
        ticks.tick().await;
        match source.refresh(!options.with_apps).await {
            Ok(answer) => {
                if std::mem::take(&mut is_away) {
                    say("the node is back");
                }
                if !write(&answer.line)? {
                    return Ok(());
                }
                written += 1;
            }
            Err(error) if written == 0 => return Err(error.into()),
            Err(error) if !is_away => {
                is_away = true;
                say(&format!("{}; trying again", with_source(&error)));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Returns false if the reader has closed the output.
fn write(line: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout();
    // It may be a terminal that shows the names.
    let line = PlainJson(&String::from_utf8_lossy(line)).to_string();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// An error and its cause, in one line.
pub(crate) fn with_source(error: &SourceError) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
