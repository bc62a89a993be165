//! Which certificates a client trusts, as configurations for rustls.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_platform_verifier::BuilderVerifierExt;
use thiserror::Error;

use super::SetupError;
use crate::transport::tls::Fingerprint;

/// Trusts what the system trusts.
pub(super) fn system() -> Result<ClientConfig, SetupError> {
    let builder = builder().with_platform_verifier().map_err(SetupError::SystemCertificates)?;
    Ok(builder.with_no_client_auth())
}

/// Trusts the certificates of a PEM file and what they signed, nothing else.
pub(super) fn roots(path: &Path) -> Result<ClientConfig, SetupError> {
    let unreadable = |source| SetupError::ReadCertificates { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    for certificate in certificates {
        // One that is unusable is as good as missing.
        let _ = roots.add(certificate.map_err(unreadable)?);
    }
    if roots.is_empty() {
        return Err(SetupError::NoCertificate { path: path.to_owned() });
    }
    Ok(builder().with_root_certificates(roots).with_no_client_auth())
}

/// Trusts the certificate with this fingerprint, whatever name or dates it bears.
pub(super) fn pinned(pin: Pin) -> ClientConfig {
    with_verifier(Accept::Pin(pin))
}

/// Trusts anything.
pub(super) fn anything() -> ClientConfig {
    with_verifier(Accept::Anything)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn with_verifier(accept: Accept) -> ClientConfig {
    let verifier = OwnVerifier { accept, provider: provider() };
    builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
}

/// The text of a [`Fingerprint`] for the expected certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pin(String);

impl Pin {
    /// Reads hexadecimal digits of any case, with or without colons.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.replace(':', "").to_ascii_lowercase();
        let valid = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        valid.then_some(Self(digits))
    }
}

/// Travels through rustls as the source of its error.
#[derive(Debug, Error)]
#[error("another fingerprint: {found}")]
pub(super) struct OtherFingerprint {
    pub(super) found: Fingerprint,
}

#[derive(Debug)]
enum Accept {
    Pin(Pin),
    Anything,
}

/// Decides about the certificate by itself. The server must still prove, by its signature over
/// the handshake, that it has the certificate's key.
#[derive(Debug)]
struct OwnVerifier {
    accept: Accept,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OwnVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        match &self.accept {
            Accept::Pin(pin) if pin.0 != found.to_string() => {
                let error = OtherError(Arc::new(OtherFingerprint { found }));
                Err(CertificateError::Other(error).into())
            }
            Accept::Pin(_) | Accept::Anything => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_in_any_common_form() {
        let plain = "00ff".repeat(16);
        let colons = format!("{}00:FF", "00:FF:".repeat(15));
        assert_eq!(Pin::parse(&colons), Some(Pin(plain.clone())));
        assert_eq!(Pin::parse(&plain.to_uppercase()), Some(Pin(plain.clone())));
        for wrong in ["", "00", &plain[1..], &format!("{plain}0"), &plain.replace("ff", "fg")] {
            assert_eq!(Pin::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        assert!(matches!(roots(file.path()), Err(SetupError::NoCertificate { .. })));
        let missing = roots(Path::new("/nonexistent/ca.pem"));
        assert!(matches!(missing, Err(SetupError::ReadCertificates { .. })));
    }
}
