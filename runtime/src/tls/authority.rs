//! An authority of one's own: signs certificates whose names say what the holder is in a cluster.
//!
//! For development, small clusters and tests. Whoever has another authority needs only PEM files whose certificates carry
//! the same names.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::Identity;

const COMMON_NAME: &str = "Kvasir development CA";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("`{0}` is neither a host's name nor an address")]
    Host(String),
}

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_debug_implementations)] // holds a key
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

#[allow(missing_debug_implementations)] // holds a key
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// So long is a new one valid.
    pub const DAYS: i64 = 3650;

    /// A new one, and what is to be kept of it: the certificate is for everybody, the key for nobody else.
    pub fn generate() -> Result<(Self, Issued), AuthorityError> {
        let key = KeyPair::generate()?;
        let issued = Issued {
            certificate: own_params().self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        };
        let issuer = Issuer::new(own_params(), key);
        Ok((Self { issuer }, issued))
    }

    /// The one that `generate` made with this key.
    pub fn from_key(key: &str) -> Result<Self, AuthorityError> {
        let issuer = Issuer::new(own_params(), KeyPair::from_pem(key)?);
        Ok(Self { issuer })
    }

    /// For `valid_days` from now; less than 0 for one that has expired. A coordinator's is for `hosts`, and this one.
    pub fn issue(&self, identity: &Identity, hosts: &[String], valid_days: i64) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = params(identity, hosts, valid_days)?.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn own_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(COMMON_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(Authority::DAYS);
    params
}

fn params(identity: &Identity, hosts: &[String], valid_days: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&identity.to_string());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = validity(valid_days);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    params.extended_key_usages = match identity {
        // Coordinators ask each other, too: of several one leads.
        Identity::Coordinator | Identity::Worker(_) => vec![server, client],
        Identity::Client(_) | Identity::Admin(_) => vec![client],
    };
    if *identity == Identity::Coordinator {
        let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for host in local.iter().chain(hosts) {
            params.subject_alt_names.push(host_name(host)?);
        }
    }
    Ok(params)
}

fn host_name(host: &str) -> Result<SanType, AuthorityError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '*');
    let refuse = || AuthorityError::Host(host.to_owned());
    if host.is_empty() || !host.chars().all(allowed) {
        return Err(refuse());
    }
    Ok(SanType::DnsName(host.to_owned().try_into().map_err(|_| refuse())?))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From an hour ago, because clocks differ; a certificate that has expired already was valid for a day.
fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    let until = now + Duration::days(days);
    let from = (now - Duration::hours(1)).min(until - Duration::days(1));
    (from, until)
}
