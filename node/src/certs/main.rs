//! `nymea-remoteproxy-certs`: certificates for a cluster that is to be tried or developed.
//!
//! It makes a certificate authority, certificates for the bridges between nodes, and one that the
//! nodes show their clients. What exists is kept, so that it can run before every start. It is not
//! for production: the key of the authority lies beside all others.
//!
//! Exit codes: 0 when everything is there, 1 when something cannot be made, 2 for wrong usage.

mod authority;
mod files;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use authority::{Authority, Purpose};
use files::{Outcome, Pair};

/// Create certificates for a test or development cluster.
#[derive(Parser)]
#[command(name = "nymea-remoteproxy-certs", version, after_help = AFTER_HELP)]
struct Flags {
    /// Directory for the files; created if it does not exist
    #[arg(long, value_name = "dir")]
    out: PathBuf,

    /// Name of the certificate authority
    #[arg(long, value_name = "name", default_value = "nymea-remoteproxy development")]
    ca_name: String,

    /// A node: NODE.pem and NODE.key for its bridge, valid for all these names; repeatable
    #[arg(long = "node", value_name = "node[,dns or ip...]", value_parser = node)]
    nodes: Vec<Names>,

    /// server.pem and server.key for the listeners of clients, valid for all these names
    #[arg(long, value_name = "dns or ip,...", value_parser = names)]
    server: Option<Names>,

    /// Validity of the certificates; the authority is valid for ten years
    #[arg(long, value_name = "days", default_value_t = 825,
        value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
}

const AFTER_HELP: &str = "\
ca.pem and ca.key are made first, if they are not there. All files that exist are kept: remove a
pair to have it created again.";

const SERVER: &str = "server";
const CA: &str = "ca";

/// The names that a certificate is valid for; at least one.
#[derive(Clone)]
struct Names(Vec<String>);

fn names(list: &str) -> Result<Names, String> {
    let names: Vec<_> = list.split(',').map(|name| name.trim().to_owned()).collect();
    match names.iter().find(|name| !authority::is_valid_name(name)) {
        Some(name) => Err(format!("{name:?} is neither a DNS name nor an IP address")),
        None => Ok(Names(names)),
    }
}

/// As [`names`]; the first one is also the name of the files.
fn node(list: &str) -> Result<Names, String> {
    let names = names(list)?;
    match names.0[0].as_str() {
        name if name.contains(['*', ':']) => Err(format!("{name:?} cannot name a file")),
        name @ (CA | SERVER) => Err(format!("{name:?} is the name of other files")),
        _ => Ok(names),
    }
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the exit code has to do.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let out = &flags.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let days = |days: u16| Duration::from_hours(24 * u64::from(days));

    let pair = Pair::new(out, CA);
    let outcome = pair.keep_or_make(|| authority::create(&flags.ca_name, days(3650)))?;
    say(&pair, outcome)?;
    let (certificate, key) = pair.read()?;
    let Some(authority) = Authority::load(&certificate, &key)
        .with_context(|| format!("cannot use {}", pair.certificate.display()))?
    else {
        bail!("{} does not belong to {}", pair.key.display(), pair.certificate.display());
    };

    let nodes = flags.nodes.iter().map(|names| (names.0[0].as_str(), names, Purpose::Bridge));
    let server = flags.server.iter().map(|names| (SERVER, names, Purpose::Server));
    for (name, Names(names), purpose) in nodes.chain(server) {
        let pair = Pair::new(out, name);
        let outcome = pair.keep_or_make(|| authority.issue(names, purpose, days(flags.days)))?;
        say(&pair, outcome)?;
    }
    Ok(())
}

fn say(pair: &Pair, outcome: Outcome) -> anyhow::Result<()> {
    let did = match outcome {
        Outcome::Kept => "kept",
        Outcome::Made => "made",
    };
    writeln!(io::stdout(), "{did} {}, {}", pair.certificate.display(), pair.key.display())
        .context("cannot write the output")
}
