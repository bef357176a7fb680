//! The doors of a coordinator: gRPC, and OpenAI's HTTP where it is asked for.

use anyhow::{Context, Result};
use kvasir_coordinator::{Coordinator, CoordinatorError};
use kvasir_gateway::Gateway;
use kvasir_runtime::{parse_address, require_loopback};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Bound, and not served yet.
#[derive(Debug)]
pub struct Doors {
    pub grpc: TcpListener,
    pub http: Option<TcpListener>,
}

/// As URLs.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub grpc: String,
    pub http: Option<String>,
}

pub async fn bind(address: &str, insecure: bool) -> Result<TcpListener> {
    let address = require_loopback(parse_address(address)?, insecure)?;
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}"))
}

impl Doors {
    pub fn addresses(&self) -> Result<Addresses> {
        Ok(Addresses {
            grpc: url(&self.grpc)?,
            http: self.http.as_ref().map(url).transpose()?,
        })
    }

    /// Until `shutdown`, which it calls for itself when the coordinator ends.
    pub async fn serve(self, coordinator: Coordinator, shutdown: CancellationToken) -> Result<(), CoordinatorError> {
        let gateway = Gateway::new(coordinator.inference());
        let http = async {
            if let Some(listener) = self.http {
                kvasir_gateway::serve(listener, gateway, shutdown.clone()).await;
            }
        };
        let (served, ()) = tokio::join!(coordinator.serve(self.grpc, shutdown.clone()), http);
        served
    }
}

fn url(listener: &TcpListener) -> Result<String> {
    Ok(format!("http://{}", listener.local_addr()?))
}
