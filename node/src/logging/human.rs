//! The fields of a line for people: as usual, but whatever is in one stays within its line and
//! does nothing to the terminal.

use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;

use nymea_remoteproxy::printable::write_debug;

/// Formats the fields of events and of spans.
pub(crate) fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    let fields = debug_fn(|writer, field, value| {
        match (field.name(), writer.has_ansi_escapes()) {
            ("message", _) => {}
            // Italic, and then faint.
            (name, true) => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            (name, false) => write!(writer, "{name}=")?,
        }
        write_debug(writer, value)
    });
    fields.delimited(" ")
}
