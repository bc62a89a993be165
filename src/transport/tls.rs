//! TLS of the listeners: certificates from files or made in memory, checked before the node
//! starts, so that what is wrong is said at once and with the file's name.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate or key cannot be used. Each names the file.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file is not there, not readable, or not PEM.
    #[error("cannot read {what} from {}", file.display())]
    Unreadable {
        /// "a certificate" or "a private key".
        what: &'static str,
        /// The path of the file.
        file: PathBuf,
        /// The error of the system or the parser.
        #[source]
        source: pem::Error,
    },
    /// The file holds no certificate.
    #[error("there is no PEM certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    /// The first certificate in the file is not X.509.
    #[error("the certificate in {} is malformed", .0.display())]
    Malformed(PathBuf),
    /// The certificate is not valid at this time.
    #[error("the certificate in {} {why}", file.display())]
    NotValidNow {
        /// The file with the certificate.
        file: PathBuf,
        /// Which bound is violated and when that is.
        why: String,
    },
    /// The key is of a kind that TLS does not know.
    #[error("the key in {} cannot be used", file.display())]
    UnusableKey {
        /// The file with the key.
        file: PathBuf,
        /// The error of rustls.
        #[source]
        source: rustls::Error,
    },
    /// Key and certificate do not belong together.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
    /// No self-signed certificate could be made.
    #[error("cannot make a self-signed certificate")]
    SelfSigned(#[source] rcgen::Error),
    /// rustls refuses the whole.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The SHA-256 of a certificate (DER), printed in hex: how to recognize a self-signed one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of this certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// TLS for a listener: version 1.2 and 1.3.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    fingerprint: Fingerprint,
}

impl ServerTls {
    /// Certificate chain and key (PKCS#8, PKCS#1 or SEC1) from PEM files.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let (chain, key) = read_pair(certificate, key)?;
        let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(TlsError::Setup)?;
        let certified = CertifiedKey::new(chain, signer);
        Self::new(certified)
    }

    /// A certificate made now and kept in memory, valid for these addresses and `localhost`.
    pub fn self_signed(addresses: &[IpAddr]) -> Result<Self, TlsError> {
        let mut names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        let made = rcgen::generate_simple_self_signed(names).map_err(TlsError::SelfSigned)?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(TlsError::Setup)?;
        Self::new(CertifiedKey::new(vec![made.cert.der().clone()], signer))
    }

    fn new(certified: CertifiedKey) -> Result<Self, TlsError> {
        let fingerprint = Fingerprint::of(&certified.cert[0]);
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(TlsError::Setup)?
                .with_no_client_auth()
                .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), fingerprint })
    }

    /// Of the certificate that clients get to see.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// A certificate chain and its key from PEM files: valid now, and belonging together.
pub(crate) fn read_pair(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = read_chain(certificate)?;
    check_validity(certificate, &chain[0])?;
    let der = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Unreadable {
        what: "a private key",
        file: key.to_owned(),
        source,
    })?;
    let signer = aws_lc_rs::sign::any_supported_type(&der)
        .map_err(|source| TlsError::UnusableKey { file: key.to_owned(), source })?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|_| TlsError::Mismatch {
        key: key.to_owned(),
        certificate: certificate.to_owned(),
    })?;
    Ok((certified.cert, der))
}

/// The certificates in a PEM file; at least one.
pub(crate) fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable =
        |source| TlsError::Unreadable { what: "a certificate", file: file.to_owned(), source };
    let chain: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if chain.is_empty() { Err(TlsError::NoCertificate(file.to_owned())) } else { Ok(chain) }
}

/// Clients would refuse a certificate outside its time; better to hear it here.
fn check_validity(file: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| TlsError::Malformed(file.to_owned()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    let why = if now > validity.not_after.timestamp() {
        format!("expired on {}", validity.not_after)
    } else if now < validity.not_before.timestamp() {
        format!("is not valid before {}", validity.not_before)
    } else {
        return Ok(());
    };
    Err(TlsError::NotValidNow { file: file.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("temporary folder") }
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, content).expect("writable");
            path
        }

        /// A certificate valid in these years and its key.
        fn certificate(&self, name: &str, years: (i32, i32)) -> (PathBuf, PathBuf) {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::new(vec!["localhost".into()]).expect("params");
            params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
            let certificate = params.self_signed(&key).expect("certificate");
            (
                self.write(&format!("{name}.pem"), &certificate.pem()),
                self.write(&format!("{name}.key"), &key.serialize_pem()),
            )
        }
    }

    fn error(certificate: &Path, key: &Path) -> String {
        ServerTls::from_files(certificate, key).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_valid_pair_is_taken() {
        let files = Files::new();
        let (certificate, key) = files.certificate("good", (2020, 2090));
        let tls = ServerTls::from_files(&certificate, &key).expect("valid");
        assert_eq!(tls.fingerprint().to_string().len(), 64);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let files = Files::new();
        let (certificate, key) = files.certificate("good", (2020, 2090));
        let (other, _) = files.certificate("other", (2020, 2090));
        let (old, old_key) = files.certificate("old", (2020, 2021));
        let (new, new_key) = files.certificate("new", (2089, 2090));
        let missing = files.folder.path().join("missing.pem");
        let empty = files.write("empty.pem", "");

        let mismatch = error(&other, &key);
        assert!(mismatch.contains("good.key") && mismatch.contains("other.pem"), "{mismatch}");
        assert!(error(&old, &old_key).contains("old.pem expired on"));
        assert!(error(&new, &new_key).contains("new.pem is not valid before"));
        assert!(error(&missing, &key).contains("missing.pem"));
        assert!(error(&empty, &key).contains("no PEM certificate in"));
        assert!(error(&certificate, &empty).contains("empty.pem"));
        assert!(error(&certificate, &certificate).contains("private key"));
    }
}
