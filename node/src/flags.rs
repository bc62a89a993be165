//! The command line of the node, and the settings that its flags set.

use std::path::PathBuf;

use clap::{ArgAction, Parser};
use nymea_remoteproxy::config::Override;

/// Pairs two endpoints that show equal tokens, and relays every byte between them.
#[derive(Parser)]
#[command(name = "nymea-remoteproxy", version, after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "a command line has switches")]
pub(crate) struct Flags {
    /// Address or host name to listen on [default: 127.0.0.1]
    #[arg(short, long, value_name = "hostaddress")]
    server: Option<String>,

    /// Port to listen on [default: 1212]
    #[arg(short, long, value_name = "port")]
    port: Option<u16>,

    /// PEM file with the certificate chain [default: self-signed, made in memory]
    #[arg(short, long, value_name = "file")]
    certificate: Option<String>,

    /// PEM file with the key of the certificate
    #[arg(short = 'k', long, value_name = "file")]
    certificate_key: Option<String>,

    /// URL of the authentication server that checks tokens [default: any token is accepted]
    #[arg(short, long, value_name = "url")]
    authentication_server: Option<String>,

    /// URL of the Redis server that all nodes of the cluster share: redis://, rediss:// or unix:
    /// [default: a single node without Redis]
    #[arg(long, value_name = "url")]
    redis: Option<String>,

    /// Also log to this file
    #[arg(short, long, value_name = "logfile")]
    logging: Option<String>,

    /// Format of log lines: human, json, or auto (human on a terminal and in a file)
    #[arg(long, value_name = "format")]
    log_format: Option<String>,

    /// Log more; -vv and -vvv even more
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// TOML file with settings, or the file of the original server
    #[arg(long, value_name = "file")]
    pub(crate) config: Option<PathBuf>,

    /// Check settings and certificates, print what would be started, and exit
    #[arg(long)]
    pub(crate) check: bool,

    /// Accept any token, also from other machines
    #[arg(long)]
    insecure_accept_any: bool,

    /// Use a self-signed certificate, also for other machines
    #[arg(long)]
    insecure_self_signed: bool,

    /// No TLS: for a node with a load balancer in front that terminates it
    #[arg(long)]
    insecure_no_tls: bool,
}

const AFTER_HELP: &str = "\
Settings come from defaults, the --config file, the environment (REMOTEPROXY__SECTION__KEY, as in
REMOTEPROXY__TIMEOUTS__WAITING=5s) and flags; what comes later wins.";

impl Flags {
    /// The settings that were given as flags.
    pub(crate) fn overrides(&self) -> Vec<Override> {
        let port = self.port.map(|port| port.to_string());
        let set = |given: bool, value: &str| given.then(|| value.to_owned());
        [
            ("server.address", self.server.clone(), "--server"),
            ("server.port", port, "--port"),
            ("tls.certificate", self.certificate.clone(), "--certificate"),
            ("tls.certificate_key", self.certificate_key.clone(), "--certificate-key"),
            (
                "authentication.server",
                self.authentication_server.clone(),
                "--authentication-server",
            ),
            ("redis.url", self.redis.clone(), "--redis"),
            ("log.file", self.logging.clone(), "--logging"),
            ("log.format", self.log_format.clone(), "--log-format"),
            (
                "authentication.insecure_accept_any",
                set(self.insecure_accept_any, "true"),
                "--insecure-accept-any",
            ),
            (
                "tls.insecure_self_signed",
                set(self.insecure_self_signed, "true"),
                "--insecure-self-signed",
            ),
            ("tls.enabled", set(self.insecure_no_tls, "false"), "--insecure-no-tls"),
        ]
        .into_iter()
        .filter_map(|(key, value, flag)| value.map(|value| Override { key, value, flag }))
        .collect()
    }
}
