//! The side of whoever connects to a coordinator: clients, and workers that join.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{InvalidDnsNameError, ServerName},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::{
    KeyPairFiles, TlsError,
    files::{authorities, provider},
    verifier::{AnswererIs, Expected},
};
use crate::reloading::Reloading;

/// Whom to believe, and what to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientTlsFiles {
    pub authority: PathBuf,
    /// Shown where the server asks for it.
    pub pair: Option<KeyPairFiles>,
}

/// Makes handshakes, with the certificates that are in the files at the time.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<Reloading<ClientConfig, TlsError>>,
}

impl ClientTls {
    /// For clients: the server's certificate must be for its host, and for no other role than a coordinator's.
    ///
    /// Errors if the files cannot be used.
    pub fn open(files: ClientTlsFiles) -> Result<Self, TlsError> {
        Self::expecting(Expected::Server, files)
    }

    /// For workers, who are asked for work: the server's certificate must be a coordinator's, and for its host.
    ///
    /// Errors if the files cannot be used.
    pub fn to_coordinator(files: ClientTlsFiles) -> Result<Self, TlsError> {
        Self::expecting(Expected::Coordinator, files)
    }

    fn expecting(expected: Expected, files: ClientTlsFiles) -> Result<Self, TlsError> {
        let pair = files.pair.iter().flat_map(KeyPairFiles::paths);
        let paths = pair.chain([files.authority.clone()]).collect();
        let config = Reloading::open(paths, move || config(expected, &files))?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Speaks TLS on a connection to `host`. The caller sets the deadline.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = server_name(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connector = TlsConnector::from(self.config.get());
        connector.connect(name, stream).await
    }
}

/// `http://` and `https://` alike: what encrypts is not tonic's business, but the connector's.
///
/// Errors if it is no URL.
pub fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    let Some(authority) = url.strip_prefix("https://") else {
        return Endpoint::from_shared(url.to_owned());
    };
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    Ok(match url.parse::<Uri>() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    })
}

/// Connects, within the endpoint's connect timeout.
pub async fn dial(endpoint: &Endpoint, tls: Option<&ClientTls>) -> Result<Channel, tonic::transport::Error> {
    match tls {
        None => endpoint.connect().await,
        Some(tls) => endpoint.connect_with_connector(Connector(tls.clone())).await,
    }
}

/// Of an error of `dial`: the message that says what is wrong, without the layers around it.
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[derive(Clone, Debug)]
struct Connector(ClientTls);

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move {
            let incomplete = || io::Error::new(io::ErrorKind::InvalidInput, "an endpoint needs a host and a port");
            let host = uri.host().ok_or_else(incomplete)?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().ok_or_else(incomplete)?;
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(host, stream).await?))
        })
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(host.to_owned())
}

fn config(expected: Expected, files: &ClientTlsFiles) -> Result<ClientConfig, TlsError> {
    let unusable = |reason: String| TlsError::Unusable {
        path: files.authority.clone(),
        reason,
    };
    let verifier = AnswererIs::new(expected, authorities(&files.authority)?).map_err(unusable)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &files.pair {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let pair = files.read()?;
            let built = builder.with_client_auth_cert(pair.chain, pair.key);
            built.map_err(|error| files.unusable(&error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
