//! The doors of a coordinator: gRPC, and OpenAI's HTTP where it is asked for. Both let in whom the other lets in.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kvasir_coordinator::{Coordinator, CoordinatorError};
use kvasir_gateway::Gateway;
use kvasir_runtime::{
    door::DoorConfig,
    parse_address,
    telemetry::{Exposition, Telemetry},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::telemetry_options::MetricsDoor;

/// How often what a collector is sent is brought up to date.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

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
    pub async fn serve(
        self,
        coordinator: Coordinator,
        exposition: Option<Exposition>,
        shutdown: CancellationToken,
    ) -> Result<(), CoordinatorError> {
        let door = coordinator.door();
        let gateway = Gateway::new(coordinator.inference())
            .with_operations(coordinator.operations())
            .with_metrics(exposition);
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

/// What a coordinator's process is to tell of itself; nothing by default.
#[derive(Debug, Default)]
pub struct Watching {
    pub telemetry: Telemetry,
    pub metrics: Option<MetricsDoor>,
}

/// What it tells, while it serves.
#[derive(Debug)]
pub struct Watched {
    telemetry: Telemetry,
    tasks: Vec<JoinHandle<()>>,
}

impl Watched {
    pub fn new(
        coordinator: &Coordinator,
        Watching { telemetry, metrics }: Watching,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut tasks = Vec::new();
        if let Some(exposition) = telemetry.exposition() {
            let source = Arc::new(coordinator.show_metrics());
            let refreshed = Arc::clone(&source);
            exposition.refresh_with(Arc::new(move || {
                let source = Arc::clone(&refreshed);
                Box::pin(async move { source.refresh().await })
            }));
            if telemetry.sends() {
                let shutdown = shutdown.clone();
                tasks.push(tokio::spawn(async move {
                    while !shutdown.is_cancelled() {
                        source.refresh().await;
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = tokio::time::sleep(REFRESH_INTERVAL) => {}
                        }
                    }
                }));
            }
        }
        if let Some(door) = metrics {
            let ready = coordinator.readiness();
            let exposition = telemetry.exposition().cloned();
            tasks.push(door.serve(exposition, move || *ready.borrow(), shutdown.clone()));
        }
        Self { telemetry, tasks }
    }

    pub fn exposition(&self) -> Option<Exposition> {
        self.telemetry.exposition().cloned()
    }

    /// After `shutdown`.
    pub async fn end(self) {
        for task in self.tasks {
            // It has nothing left to lose.
            let _ = task.await;
        }
        self.telemetry.end().await;
    }
}
