//! Which peers a handshake lets in, beyond what every TLS library checks.
//!
//! Workers are known by their identity alone: they come and go, at addresses that nobody could have signed. The
//! coordinator's certificate must be for the host that was dialled, and for a coordinator if it names a role: no worker can
//! pose as one.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{Identity, files::provider};

type Checked<T> = Result<T, Error>;

#[derive(Debug, thiserror::Error)]
#[error("the certificate is for {}; expected one for {expected}", of(.found))]
struct OtherIdentity {
    found: Option<Identity>,
    expected: &'static str,
}

fn of(found: &Option<Identity>) -> &dyn fmt::Display {
    match found {
        Some(identity) => identity,
        None => &"no identity of a cluster",
    }
}

fn other(found: Option<Identity>, expected: &'static str) -> Error {
    let error = OtherIdentity { found, expected };
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn require_worker(certificate: &CertificateDer<'_>) -> Checked<()> {
    match Identity::of(certificate) {
        Some(Identity::Worker(_)) => Ok(()),
        found => Err(other(found, "a worker")),
    }
}

/// The answering side of a connection between workers.
#[derive(Debug)]
pub(super) struct CallerIsWorker(Arc<dyn ClientCertVerifier>);

impl CallerIsWorker {
    /// Errors if there is no authority.
    pub fn new(roots: Arc<RootCertStore>) -> Result<Self, String> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        inner.map(Self).map_err(|error| error.to_string())
    }
}

impl ClientCertVerifier for CallerIsWorker {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Checked<ClientCertVerified> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        require_worker(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Whom the calling side expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expected {
    /// Whatever its host.
    Worker,
    /// At the host that was dialled; a certificate without a role will do.
    Server,
    /// At the host that was dialled, and a coordinator by its certificate.
    Coordinator,
}

/// The calling side of every connection.
#[derive(Debug)]
pub(super) struct AnswererIs {
    expected: Expected,
    roots: Arc<RootCertStore>,
    inner: Arc<WebPkiServerVerifier>,
}

impl AnswererIs {
    /// Errors if there is no authority.
    pub fn new(expected: Expected, roots: Arc<RootCertStore>) -> Result<Self, String> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let inner = inner.map_err(|error| error.to_string())?;
        Ok(Self { expected, roots, inner })
    }
}

impl ServerCertVerifier for AnswererIs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Checked<ServerCertVerified> {
        if self.expected == Expected::Worker {
            let algorithms = provider().signature_verification_algorithms.all;
            let certificate = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
            return require_worker(end_entity).map(|()| ServerCertVerified::assertion());
        }
        let inner = &self.inner;
        let verified = inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match (Identity::of(end_entity), self.expected) {
            (Some(Identity::Coordinator), _) | (None, Expected::Server) => Ok(verified),
            (found, _) => Err(other(found, "a coordinator")),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
