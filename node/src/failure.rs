//! Why the program ends in failure: one message on standard error, and the exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::logging;

/// A failure that ends the program.
pub(crate) struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl Failure {
    /// The node cannot run.
    pub(crate) fn runtime(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code: 1 }
    }

    /// The settings are wrong.
    pub(crate) fn configuration(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code: 2 }
    }

    /// Writes it to the log file, if there is one; [`report`](Self::report) tells standard error.
    pub(crate) fn log(&self) {
        tracing::error!(target: logging::FILE_ONLY, "{:#}", self.error);
    }

    /// Writes it to standard error.
    pub(crate) fn report(&self) -> ExitCode {
        // If standard error is closed, the exit code has to do.
        let _ = writeln!(io::stderr(), "error: {:#}", self.error);
        ExitCode::from(self.code)
    }
}
