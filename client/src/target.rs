//! Where a cluster is, whom to believe there, and what to show: all that a channel to it is built from.

use std::time::Duration;

use kvasir_runtime::{
    parse_endpoint,
    tls::{self, ClientTls, innermost},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport,
};

use crate::ClientError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A host that died without a word is noticed after these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// One that shows the key with each request.
pub type Channel = InterceptedService<transport::Channel, Bearer>;

#[derive(Clone, Debug)]
pub struct Target {
    url: String,
    tls: Option<ClientTls>,
    bearer: Bearer,
}

impl Target {
    /// Errors if the endpoint is none, or its scheme and what is given do not fit.
    pub fn new(endpoint: &str, tls: Option<ClientTls>, api_key: Option<&str>) -> Result<Self, ClientError> {
        let url = parse_endpoint(endpoint)?;
        match (url.starts_with("https://"), &tls) {
            (true, None) => return Err(ClientError::NoAuthority { url }),
            (false, Some(_)) => return Err(ClientError::NotEncrypted { url }),
            _ => {}
        }
        let bearer = api_key.map(|key| format!("Bearer {key}").parse());
        let bearer: Result<Option<MetadataValue<Ascii>>, _> = bearer.transpose();
        let mut bearer = bearer.map_err(|_| ClientError::NoApiKey)?;
        if let Some(value) = &mut bearer {
            value.set_sensitive(true);
        }
        Ok(Self {
            url,
            tls,
            bearer: Bearer(bearer),
        })
    }

    /// One that asks for nothing. Errors if the endpoint is none.
    pub fn plain(endpoint: &str) -> Result<Self, ClientError> {
        Self::new(endpoint, None, None)
    }

    /// Errors after at most five seconds.
    pub async fn connect(&self) -> Result<Channel, ClientError> {
        let unreachable = |error: transport::Error| ClientError::Unreachable {
            url: self.url.clone(),
            reason: innermost(&error),
        };
        let endpoint = tls::endpoint(&self.url)
            .map_err(unreachable)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let channel = tls::dial(&endpoint, self.tls.as_ref()).await.map_err(unreachable)?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }
}

/// Puts the key into requests.
#[derive(Clone, Debug)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
