//! A door for those who watch: `/metrics`, `/health` and `/live`, in the open, for a network of operators.

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE as HEADER};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::Exposition;
use bytes::Bytes;

/// Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const CONNECTIONS_MAX: usize = 64;
const HEADERS_DEADLINE: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(1);

/// Whether the process can do what it is for.
pub type IsHealthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    exposition: Option<Exposition>,
    is_healthy: IsHealthy,
    shutdown: CancellationToken,
) {
    let (seats, tasks) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors, or somebody who has gone again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // One more than fits is closed at once.
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            continue;
        };
        let (exposition, is_healthy, shutdown) = (exposition.clone(), Arc::clone(&is_healthy), shutdown.clone());
        tasks.spawn(async move {
            let _seat = seat;
            let service = service_fn(move |request: Request<Incoming>| {
                let (exposition, is_healthy) = (exposition.clone(), Arc::clone(&is_healthy));
                async move { Ok::<_, std::convert::Infallible>(answer(&request, exposition.as_ref(), &is_healthy).await) }
            });
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_DEADLINE);
            let serving = server.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = serving => if let Err(error) = served {
                    debug!(%error, "a scrape's connection broke");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
    tasks.close();
    // They end with `shutdown`, too.
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
}

async fn answer(
    request: &Request<Incoming>,
    exposition: Option<&Exposition>,
    is_healthy: &IsHealthy,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".to_owned());
    }
    match (request.uri().path(), exposition) {
        ("/metrics", Some(exposition)) => text(StatusCode::OK, exposition.text().await),
        ("/live", _) => text(StatusCode::OK, "live\n".to_owned()),
        ("/health" | "/ready", _) if is_healthy() => text(StatusCode::OK, "healthy\n".to_owned()),
        ("/health" | "/ready", _) => text(StatusCode::SERVICE_UNAVAILABLE, "not healthy\n".to_owned()),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /health and /live\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(HEADER, http::HeaderValue::from_static(CONTENT_TYPE));
    response
}
