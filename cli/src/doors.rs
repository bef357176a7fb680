//! The doors of a coordinator: gRPC, and OpenAI's HTTP where it is asked for. Both let in whom the other lets in.

use anyhow::{Context, Result};
use kvasir_coordinator::{Coordinator, CoordinatorError};
use kvasir_gateway::Gateway;
use kvasir_runtime::{door::DoorConfig, parse_address};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Bound, and not served yet.
#[derive(Debug)]
pub struct Doors {
    grpc: TcpListener,
    http: Option<TcpListener>,
    pub addresses: Addresses,
}

/// As URLs.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub grpc: String,
    pub http: Option<String>,
}

/// Errors if strangers could reach the address, and may not; warns if they may.
pub async fn bind(config: &DoorConfig, address: &str) -> Result<TcpListener> {
    let address = parse_address(address)?;
    config.check_address(address)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    if let Some(open) = config.open_to_all(address) {
        // Also where only errors are logged.
        eprintln!("warning: --insecure on {address}: {open}");
    }
    Ok(listener)
}

/// For people and other processes.
pub fn url(config: &DoorConfig, listener: &TcpListener) -> Result<String> {
    Ok(format!("{}://{}", config.scheme(), listener.local_addr()?))
}

impl Doors {
    pub async fn bind(config: &DoorConfig, grpc: &str, http: Option<&str>) -> Result<Self> {
        let grpc = bind(config, grpc).await?;
        let http = match http {
            Some(http) => Some(bind(config, http).await?),
            None => None,
        };
        let addresses = Addresses {
            grpc: url(config, &grpc)?,
            http: http.as_ref().map(|http| url(config, http)).transpose()?,
        };
        Ok(Self { grpc, http, addresses })
    }

    /// Until `shutdown`, which it calls for itself when one of them cannot serve.
    pub async fn serve(self, coordinator: Coordinator, shutdown: CancellationToken) -> Result<(), CoordinatorError> {
        let (gateway, door) = (Gateway::new(coordinator.inference()), coordinator.door());
        let http = async {
            match self.http {
                Some(listener) => {
                    let served = kvasir_gateway::serve(listener, &door, gateway, shutdown.clone()).await;
                    shutdown.cancel();
                    served
                }
                None => Ok(()),
            }
        };
        let (grpc, http) = tokio::join!(coordinator.serve(self.grpc, shutdown.clone()), http);
        grpc.and(http.map_err(CoordinatorError::Door))
    }
}
