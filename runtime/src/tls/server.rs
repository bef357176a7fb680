//! The side that clients and workers connect to.
//!
//! TLS 1.3 alone, and no resumption: a session that was resumed would not notice that its certificate has expired, or that
//! the authority is another one by now.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    HandshakeError, Identity, KeyPairFiles, TlsError,
    files::{authorities, provider},
};
use crate::reloading::Reloading;

/// What a server presents, and whose certificates it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerTlsFiles {
    pub pair: KeyPairFiles,
    /// Given: callers are asked for certificates of this authority, and who they are is known. A caller may have none: what
    /// it may do then is decided request by request.
    pub authority: Option<PathBuf>,
}

/// Accepts handshakes, with the certificates that are in the files at the time.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<Reloading<ServerConfig, TlsError>>,
}

impl ServerTls {
    /// `protocols` are offered by ALPN, the best first: `h2`, `http/1.1`.
    ///
    /// Errors if the files cannot be used.
    pub fn open(files: ServerTlsFiles, protocols: &[&str]) -> Result<Self, TlsError> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let paths = files.pair.paths().into_iter().chain(files.authority.clone()).collect();
        let config = Reloading::open(paths, move || config(&files, &protocols))?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Waits at most `deadline` for the caller. Errors with why it is turned away.
    pub async fn accept(
        &self,
        stream: TcpStream,
        deadline: Duration,
    ) -> Result<(TlsStream<TcpStream>, Option<Identity>), HandshakeError> {
        let acceptor = TlsAcceptor::from(self.config.get());
        let accepted = tokio::time::timeout(deadline, acceptor.accept(stream)).await;
        let stream = accepted.map_err(|_| HandshakeError::too_slow(deadline))??;
        let certificates = stream.get_ref().1.peer_certificates();
        let Some(certificate) = certificates.and_then(|chain| chain.first()) else {
            return Ok((stream, None));
        };
        match Identity::of(certificate) {
            Some(identity) => Ok((stream, Some(identity))),
            None => Err(HandshakeError {
                refusal: crate::refusals::Refusal::OtherIdentity,
                reason: "the certificate names no identity of a cluster".to_owned(),
            }),
        }
    }
}

fn config(files: &ServerTlsFiles, protocols: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let pair = files.pair.read()?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| files.pair.unusable(&error))?;
    let builder = match &files.authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(path)?, provider())
                .allow_unauthenticated()
                .build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Unusable {
                path: path.clone(),
                reason: error.to_string(),
            })?)
        }
    };
    let mut config = builder
        .with_single_cert(pair.chain, pair.key)
        .map_err(|error| files.pair.unusable(&error))?;
    config.alpn_protocols = protocols.to_vec();
    config.send_tls13_tickets = 0;
    Ok(config)
}
