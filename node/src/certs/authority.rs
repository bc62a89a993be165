//! A certificate authority and what it signs: ECDSA P-256 throughout, as PEM.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use x509_parser::pem::parse_x509_pem;

/// Clocks differ a little between machines.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// A certificate and its key, as PEM.
pub(crate) struct Made {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// What a certificate is for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Between nodes: each is server and client of the others.
    Bridge,
    /// What a node shows its clients.
    Server,
}

/// Whether a certificate can be for this: an IP address, or a DNS name, perhaps with a wildcard.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let label = |label: &str| {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(valid) && !label.starts_with('-')
    };
    name.parse::<IpAddr>().is_ok()
        || name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

/// Makes a new authority.
pub(crate) fn create(name: &str, valid: Duration) -> anyhow::Result<Made> {
    let mut params = params(name, Vec::new(), valid)?;
    // What it signs are no authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = new_key()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok(Made { certificate, key: key.serialize_pem() })
}

/// One that can sign.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// From PEM; `None` if the key is not that of the certificate.
    pub(crate) fn load(certificate: &str, key: &str) -> anyhow::Result<Option<Self>> {
        let key = KeyPair::from_pem(key).context("the key is not valid")?;
        let (_, pem) = parse_x509_pem(certificate.as_bytes())?;
        let parsed = pem.parse_x509()?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Ok(None);
        }
        Ok(Some(Self(Issuer::from_ca_cert_pem(certificate, key)?)))
    }

    /// Makes a certificate for these names, of which there is at least one.
    pub(crate) fn issue(
        &self,
        names: &[String],
        purpose: Purpose,
        valid: Duration,
    ) -> anyhow::Result<Made> {
        let mut params = params(&names[0], names.to_vec(), valid)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Bridge => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Made { certificate, key: key.serialize_pem() })
    }
}

fn new_key() -> anyhow::Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn params(
    common_name: &str,
    names: Vec<String>,
    valid: Duration,
) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = UNIX_EPOCH.elapsed().context("the clock is wrong")?;
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + valid;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["node1", "a.b-c.example", "*.bridge.space.svc", "10.0.0.1", "::1", "a_b"] {
            assert!(is_valid_name(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", ".", "..", "a..b", "a/b", "*", "a.*", "-a", "a b", "ä", &long] {
            assert!(!is_valid_name(name), "{name}");
        }
    }

    #[test]
    fn a_key_that_is_not_that_of_the_certificate() {
        let [one, other] =
            ["one", "other"].map(|name| create(name, Duration::from_hours(1)).expect("made"));
        assert!(Authority::load(&one.certificate, &one.key).expect("valid").is_some());
        assert!(Authority::load(&one.certificate, &other.key).expect("valid").is_none());
        assert!(Authority::load(&one.certificate, "").is_err());
        assert!(Authority::load("", &one.key).is_err());
    }
}
