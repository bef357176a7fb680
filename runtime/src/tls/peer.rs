//! TLS between workers: each shows a worker's certificate, and takes nobody without one, whichever of the two called.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, client::Resumption,
    pki_types::ServerName, version::TLS13,
};

use super::{
    Identity, KeyPairFiles, TlsError,
    files::{authorities, provider},
    verifier::{AnswererIs, CallerIsWorker, Expected},
};
use crate::reloading::Reloading;

/// What a worker shows its peers, and whose certificates it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerTlsFiles {
    pub authority: PathBuf,
    pub pair: KeyPairFiles,
}

/// Begins handshakes, with the certificates that are in the files at the time.
#[derive(Clone, Debug)]
pub struct PeerTls {
    configs: Arc<Reloading<Configs, TlsError>>,
}

struct Configs {
    id: String,
    answering: Arc<ServerConfig>,
    calling: Arc<ClientConfig>,
}

impl PeerTls {
    /// Errors if the files cannot be used, or the certificate is not a worker's.
    pub fn open(files: PeerTlsFiles) -> Result<Self, TlsError> {
        let [certificate, key] = files.pair.paths();
        let paths = vec![certificate, key, files.authority.clone()];
        let configs = Reloading::open(paths, move || configs(&files))?;
        Ok(Self {
            configs: Arc::new(configs),
        })
    }

    /// The id of the worker that the certificate is for.
    pub fn worker_id(&self) -> String {
        self.configs.get().id.clone()
    }

    /// For a connection that was made to this worker.
    pub fn answering(&self) -> Result<Connection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.configs.get().answering)).map(Connection::from)
    }

    /// For a connection that this worker makes.
    pub fn calling(&self) -> Result<Connection, rustls::Error> {
        // Not looked at: a peer is known by its identity. It is not sent either.
        let name = ServerName::try_from("worker").expect("a plain name");
        ClientConnection::new(Arc::clone(&self.configs.get().calling), name).map(Connection::from)
    }
}

fn configs(files: &PeerTlsFiles) -> Result<Configs, TlsError> {
    let roots = authorities(&files.authority)?;
    let no_roots = |reason: String| TlsError::Unusable {
        path: files.authority.clone(),
        reason,
    };
    let unusable = |error: rustls::Error| files.pair.unusable(&error);
    let (for_answers, for_calls) = (files.pair.read()?, files.pair.read()?);
    let id = match for_answers.chain.first().and_then(Identity::of) {
        Some(Identity::Worker(id)) => id,
        found => {
            return Err(TlsError::OtherIdentity {
                path: files.pair.certificate.clone(),
                found: found.map_or_else(|| "no identity of a cluster".to_owned(), |found| found.to_string()),
                expected: "a worker, kvasir://worker/ID",
            });
        }
    };
    let caller = CallerIsWorker::new(Arc::clone(&roots)).map_err(no_roots)?;
    let mut answering = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(caller))
        .with_single_cert(for_answers.chain, for_answers.key)
        .map_err(unusable)?;
    answering.send_tls13_tickets = 0;
    let answerer = AnswererIs::new(Expected::Worker, roots).map_err(no_roots)?;
    let mut calling = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(answerer))
        .with_client_auth_cert(for_calls.chain, for_calls.key)
        .map_err(unusable)?;
    calling.resumption = Resumption::disabled();
    calling.enable_sni = false;
    Ok(Configs {
        id,
        answering: Arc::new(answering),
        calling: Arc::new(calling),
    })
}
