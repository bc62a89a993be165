//! Whom the generator trusts, and what it shows a relay that connects to it. No session is ever
//! resumed: each handshake is a full one, as those of clients that come for the first time.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nymea_remoteproxy::transport::tls::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Which certificates are good enough.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    System,
    Roots(std::path::PathBuf),
    /// SHA-256 of the certificate, in any usual way of writing it.
    Fingerprint(String),
    Anything,
}

pub(crate) fn connector(trust: &Trust) -> anyhow::Result<TlsConnector> {
    let mut config = builder(trust)?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn builder(trust: &Trust) -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let fingerprint = match trust {
        Trust::System => return Ok(builder.with_platform_verifier()?),
        Trust::Roots(file) => return Ok(builder.with_root_certificates(roots(file)?)),
        Trust::Fingerprint(text) => Some(text.replace(':', "").to_ascii_lowercase()),
        Trust::Anything => None,
    };
    let verifier = Arc::new(Verifier { fingerprint, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

/// For the far side of a relay: a certificate for this run, of the same kind as a node's own.
pub(crate) fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.into()], key)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let read = || format!("cannot read certificates from {}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).with_context(read)? {
        roots.add(certificate.with_context(read)?)?;
    }
    Ok(roots)
}

/// Takes any certificate, or the one with a fingerprint. That the server has its key is verified in
/// any case, which is what costs something.
#[derive(Debug)]
struct Verifier {
    fingerprint: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.fingerprint {
            Some(wanted) if *wanted != Fingerprint::of(certificate).to_string() => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
