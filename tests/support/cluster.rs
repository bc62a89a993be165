//! A cluster in this process: nodes that share a real Redis and trust each other's certificates.

use std::fs;
use std::path::{Path, PathBuf};

use nymea_remoteproxy::config::{Config, Secret};
use nymea_remoteproxy::node::{Node, Prepared};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::redis::{Server, until};

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub redis: Server,
    pub certificates: Certificates,
}

impl Cluster {
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    pub async fn start_with(nodes: usize, change: impl Fn(&mut Config)) -> Self {
        let redis = Server::start().await;
        let certificates = Certificates::new();
        let nodes = (1..=nodes)
            .map(|number| {
                let mut config = member(&redis, &certificates, &format!("node{number}"));
                change(&mut config);
                Prepared::new(config).expect("valid settings").start().expect("free ports")
            })
            .collect();
        Self { nodes, redis, certificates }
    }

    /// Waits until there is neither a waiting endpoint nor a tunnel.
    pub async fn is_clean(&self) {
        until("no entry is left", async || self.redis.pairs().await.is_empty()).await;
    }
}

/// The settings of one node.
pub fn member(redis: &Server, certificates: &Certificates, name: &str) -> Config {
    let mut config = Config::default();
    config.server.port = 0;
    config.admin.listen = Some(super::FREE);
    config.node.name = name.into();
    config.redis.url = Some(Secret::new(redis.url()));
    config.bridge.listen = super::FREE;
    let (certificate, key) = certificates.issue(name);
    config.bridge.ca = Some(certificates.ca());
    config.bridge.certificate = Some(certificate);
    config.bridge.key = Some(key);
    config
}

/// A CA and what it has signed, in files.
pub struct Certificates {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a CA");
        write(dir.path(), "ca.pem", &certificate.pem());
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key of a node on loopback.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let names = vec![name.to_owned(), "localhost".into(), "127.0.0.1".into()];
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (
            write(self.dir.path(), &format!("{name}.pem"), &certificate.pem()),
            write(self.dir.path(), &format!("{name}.key"), &key.serialize_pem()),
        )
    }
}

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).expect("written");
    path
}
