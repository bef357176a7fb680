//! What a handshake that failed says of whom it failed with.

use std::io;

use rustls::{CertificateError, Error};

use crate::refusals::Refusal;

/// The side that answers turns somebody away.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct HandshakeError {
    pub refusal: Refusal,
    pub reason: String,
}

impl HandshakeError {
    pub fn too_slow(waited: std::time::Duration) -> Self {
        Self {
            refusal: Refusal::HandshakeTimeout,
            reason: format!("no handshake within {} s", waited.as_secs()),
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let reason = "the handshake took too long".to_owned();
            let refusal = Refusal::HandshakeTimeout;
            return Self { refusal, reason };
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        Self {
            refusal: inner.map_or(Refusal::BadHandshake, refusal_of),
            reason: error.to_string(),
        }
    }
}

fn refusal_of(error: &Error) -> Refusal {
    match error {
        Error::NoCertificatesPresented => Refusal::NoCertificate,
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Refusal::Expired,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Refusal::WrongCa,
            _ => Refusal::OtherIdentity,
        },
        _ => Refusal::BadHandshake,
    }
}
