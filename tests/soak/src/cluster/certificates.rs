//! A CA, and the certificate that it has signed for all nodes.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Files with certificates and a key.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate()?;
        let names = vec!["localhost".into(), "127.0.0.1".into()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            fs::write(&path, content).map(|()| path)
        };
        Ok(Self {
            ca: write("ca.pem", &ca.pem())?,
            certificate: write("node.pem", &certificate.pem())?,
            key: write("node.key", &key.serialize_pem())?,
        })
    }
}
