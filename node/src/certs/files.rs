//! A certificate and its key as two files, which are made together or not at all.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::authority::Made;

/// Where a certificate and its key are.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Kept,
    Made,
}

impl Pair {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        // Not with_extension(): a name may contain dots.
        let file = |kind| directory.join(format!("{name}.{kind}"));
        Self { certificate: file("pem"), key: file("key") }
    }

    pub(crate) fn keep_or_make(
        &self,
        make: impl FnOnce() -> anyhow::Result<Made>,
    ) -> anyhow::Result<Outcome> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        match (exists(&self.certificate)?, exists(&self.key)?) {
            (true, true) => return Ok(Outcome::Kept),
            (true, false) => bail!("{certificate} is there, but {key} is not: remove or add one"),
            (false, true) => bail!("{key} is there, but {certificate} is not: remove or add one"),
            (false, false) => {}
        }
        let pem = make().with_context(|| format!("cannot make {certificate}"))?;
        write(&self.key, &pem.key, 0o600)?;
        write(&self.certificate, &pem.certificate, 0o644)?;
        Ok(Outcome::Made)
    }

    /// The certificate and the key.
    pub(crate) fn read(&self) -> anyhow::Result<(String, String)> {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok((read(&self.certificate)?, read(&self.key)?))
    }
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| format!("cannot look for {}", path.display()))
}

/// Writes a file atomically: a reader finds all of it or nothing.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let attempt = || {
        // One that an interrupted run has left may have another mode.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}
