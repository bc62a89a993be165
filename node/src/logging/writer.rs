//! Where lines go in the end: a writer that counts what it cannot write, logs that once, and goes on
//! as soon as it can. tracing-appender's thread drops such lines silently.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::{error, warn};

/// The time between two lines about the log itself: each of them is to be written, too.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes lines, or counts them as lost.
pub(super) struct Steadfast<W> {
    inner: W,
    /// The name of the target, for people.
    name: String,
    lost: Arc<AtomicU64>,
    /// Lines lost since it was logged how many are.
    missing: u64,
    /// It has been logged that lines are lost.
    is_reported: bool,
    next_report: Instant,
    /// The last line broke off: the next one must not be appended to it.
    is_torn: bool,
}

impl<W: Write> Steadfast<W> {
    pub(super) fn new(inner: W, name: String) -> Self {
        let (lost, next_report) = (Arc::default(), Instant::now());
        Self { inner, name, lost, missing: 0, is_reported: false, next_report, is_torn: false }
    }

    /// Counts the lines that are lost.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    fn may_report(&mut self) -> bool {
        let now = Instant::now();
        let may = now >= self.next_report;
        if may {
            self.next_report = now + PAUSE;
        }
        may
    }

    fn try_write(&mut self, mut line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.inner.write_all(b"\n")?;
            self.is_torn = false;
        }
        while !line.is_empty() {
            match self.inner.write(line) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    line = &line[written..];
                    self.is_torn = !line.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.inner.flush()
    }
}

impl<W: Write> Write for Steadfast<W> {
    /// Takes a whole line, whatever becomes of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.try_write(line) {
            Ok(()) if self.missing > 0 && self.may_report() => {
                let lost = std::mem::take(&mut self.missing);
                self.is_reported = false;
                warn!(lost, log = self.name, "the log is written again, lines are missing");
            }
            Ok(()) => {}
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.missing += 1;
                // Another part of the log may still work.
                if !self.is_reported && self.may_report() {
                    self.is_reported = true;
                    error!(%error, log = self.name, "the log cannot be written, lines are lost");
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.room);
            self.written.extend(&bytes[..taken]);
            self.room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_tear_no_other() {
        let disk = Disk { written: Vec::new(), room: 8 };
        let mut writer = Steadfast::new(disk, "a disk".into());
        let lost = writer.lost();
        for line in [&b"first\n"[..], b"second\n", b"third\n"] {
            assert_eq!(writer.write(line).expect("taken"), line.len());
        }
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        writer.inner.room = 100;
        writer.write_all(b"fourth\n").expect("taken");
        writer.write_all(b"fifth\n").expect("taken");
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        assert_eq!(writer.inner.written, b"first\nse\nfourth\nfifth\n");
    }
}
