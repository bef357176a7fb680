//! The listener: connections in, within bounds, until the end.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use kvasir_proto::v1::inference_server::Inference;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    answers::{Responses, Upstream},
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
/// After an error of the listener that will not pass at once, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The door and the service behind it.
pub struct Gateway {
    pub(crate) upstream: Upstream,
}

impl Gateway {
    pub fn new(upstream: impl Inference<GenerateStream = Responses>) -> Self {
        Self {
            upstream: Arc::new(upstream),
        }
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

/// Serves on `listener` until `shutdown`, and then for as long as responses take, at most three seconds.
pub async fn serve(listener: TcpListener, gateway: Gateway, shutdown: CancellationToken) {
    let router = routes::router(Arc::new(gateway));
    let connections = GracefulShutdown::new();
    if let Ok(address) = listener.local_addr() {
        info!(%address, "HTTP door listens");
    }
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => attend(stream, router.clone(), &connections),
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if tokio::time::timeout(SHUTDOWN_GRACE, connections.shutdown())
        .await
        .is_err()
    {
        debug!("some clients did not let go");
    }
}

fn attend(stream: TcpStream, router: Router, connections: &GracefulShutdown) {
    // Tokens must not wait for others to fill a packet.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
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
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection.into_owned());
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended with an error");
        }
    });
}
