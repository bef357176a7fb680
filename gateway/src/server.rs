//! The listener: connections in, within bounds, until the end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use futures::StreamExt as _;
use hyper::{Request, body::Incoming, header::CONTENT_TYPE, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use kvasir_proto::v1::{admin_server::Admin, inference_server::Inference};
use kvasir_runtime::{
    access::AccessService,
    door::{Conn, Door, DoorError},
    telemetry::Exposition,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer as _;
use tower_service::Service as _;
use tracing::{debug, info};

use crate::{
    answers::{Responses, Upstream},
    cluster_view::{Operations, Watched},
    routes,
};

/// From a connection's first byte, or the end of the last response, to the end of the next headers.
const HEADERS_DEADLINE: Duration = Duration::from_secs(30);
const HEADERS_MAX: usize = 100;
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
const STREAMS_MAX: u32 = 256;
/// Streams have ended by themselves long before; this is for clients that do not let go.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// A connection of HTTP/2 whose peer does not answer for so long is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The door and the service behind it.
pub struct Gateway {
    pub(crate) upstream: Upstream,
    /// What the service was called when it was last asked.
    served_names: Mutex<Vec<String>>,
    pub(crate) operations: Option<Operations>,
    pub(crate) exposition: Option<Exposition>,
}

impl Gateway {
    pub fn new(upstream: impl Inference<GenerateStream = Responses>) -> Self {
        Self {
            upstream: Arc::new(upstream),
            served_names: Mutex::default(),
            operations: None,
            exposition: None,
        }
    }

    /// Shows the cluster to its operators.
    pub fn with_operations(mut self, admin: impl Admin<WatchStream = Watched>) -> Self {
        self.operations = Some(Arc::new(admin));
        self
    }

    /// Shows these at `/metrics`.
    pub fn with_metrics(mut self, exposition: Option<Exposition>) -> Self {
        self.exposition = exposition;
        self
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        let names = self.served_names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().any(|known| known == name)
    }

    pub(crate) fn remember(&self, names: Vec<String>) {
        *self.served_names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

/// Serves whom the door lets in until `shutdown`, and then for as long as responses take, at most three seconds.
///
/// Errors if the door's certificate cannot be used.
pub async fn serve(
    listener: TcpListener,
    door: &Door,
    gateway: Gateway,
    shutdown: CancellationToken,
) -> Result<(), DoorError> {
    let service = door.layer().layer(routes::router(Arc::new(gateway)));
    let connections = GracefulShutdown::new();
    if let Ok(address) = listener.local_addr() {
        info!(%address, "HTTP door listens");
    }
    let mut incoming = door.incoming(listener, &["h2", "http/1.1"])?;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = incoming.next() => accepted,
        };
        match accepted {
            Some(Ok(conn)) => attend(conn, service.clone(), &connections),
            Some(Err(error)) => debug!(%error, "a connection did not come about"),
            None => break,
        }
    }
    if tokio::time::timeout(SHUTDOWN_GRACE, connections.shutdown())
        .await
        .is_err()
    {
        debug!("some clients did not let go");
    }
    Ok(())
}

fn attend(conn: Conn, service: AccessService<Router>, connections: &GracefulShutdown) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_DEADLINE)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let info = conn.info().clone();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        // All is JSON here, whatever it calls itself; and whoever is refused is told so in JSON.
        request.headers_mut().remove(CONTENT_TYPE);
        let mut service = service.clone();
        async move { service.call(request).await }
    });
    let connection = builder.serve_connection(TokioIo::new(conn), answer);
    let connection = connections.watch(connection.into_owned());
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended with an error");
        }
    });
}
