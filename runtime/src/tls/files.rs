//! The PEM files that certificates, keys and authorities come from.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

/// A certificate, with those that lead to its authority, and its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPairFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no PEM file: {reason}", path.display())]
    NotPem { path: PathBuf, reason: String },
    #[error("{} holds no {expected}", path.display())]
    Lacks { path: PathBuf, expected: &'static str },
    #[error("{}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("{} is for {found}; expected one for {expected}", path.display())]
    OtherIdentity {
        path: PathBuf,
        found: String,
        expected: &'static str,
    },
}

pub(super) struct KeyPair {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl KeyPairFiles {
    /// Of two flags of which each needs the other.
    pub fn of(certificate: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<Self> {
        let (certificate, key) = (certificate?.clone(), key?.clone());
        Some(Self { certificate, key })
    }

    pub(super) fn read(&self) -> Result<KeyPair, TlsError> {
        let chain = certificates(&self.certificate)?;
        let text = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::Lacks {
                path: self.key.clone(),
                expected: "private key",
            },
            error => not_pem(&self.key, &error),
        })?;
        Ok(KeyPair { chain, key })
    }

    pub(super) fn unusable(&self, error: &rustls::Error) -> TlsError {
        TlsError::Unusable {
            path: self.certificate.clone(),
            reason: error.to_string(),
        }
    }

    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.certificate.clone(), self.key.clone()]
    }
}

/// Those whose signatures count.
pub(super) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(Arc::new(roots))
}

/// At least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| not_pem(path, &error))?;
    match found.is_empty() {
        true => Err(TlsError::Lacks {
            path: path.to_owned(),
            expected: "certificate",
        }),
        false => Ok(found),
    }
}

/// One for all: nothing depends on what a process has installed.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn not_pem(path: &Path, error: &pem::Error) -> TlsError {
    TlsError::NotPem {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
