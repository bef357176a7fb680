//! What operators see of the cluster behind this door: its status, events as they come, metrics, and the live page.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _};
use kvasir_proto::v1::{self, admin_server::Admin, watch_response::Event};
use kvasir_runtime::telemetry;
use tonic::Status;

use crate::{
    ApiError,
    page::{self, File},
    routes::Shared,
    status_json::{NewsJson, StatusJson},
};

/// What a watcher is told.
pub type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

/// The service that operators ask.
pub type Operations = Arc<dyn Admin<WatchStream = Watched>>;

const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The page fetches from here alone, and nobody may frame it.
const CONTENT_POLICY: &str = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

fn operations(gateway: &Shared) -> Result<&Operations, ApiError> {
    gateway.operations.as_ref().ok_or_else(ApiError::no_cluster_here)
}

pub async fn status(State(gateway): State<Shared>) -> Result<Json<StatusJson>, ApiError> {
    let asked = tonic::Request::new(v1::StatusRequest {});
    let status = operations(&gateway)?.status(asked).await?.into_inner();
    Ok(Json(status.into()))
}

/// Ends with the coordinator, or its client.
pub async fn events(
    State(gateway): State<Shared>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let asked = tonic::Request::new(v1::WatchRequest {});
    let watched = operations(&gateway)?.watch(asked).await?.into_inner();
    let events = watched
        .take_while(|watched| std::future::ready(watched.is_ok()))
        .filter_map(|watched| std::future::ready(watched.ok().and_then(event)));
    Ok(Sse::new(events.map(Ok)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event(watched: v1::WatchResponse) -> Option<sse::Event> {
    let event = match watched.event? {
        Event::Status(status) => sse::Event::default()
            .event("status")
            .json_data(StatusJson::from(status)),
        Event::News(news) => {
            let id = news.id.to_string();
            let event = sse::Event::default().event("news").id(id);
            event.json_data(NewsJson::from(news))
        }
    };
    event.ok()
}

/// As Prometheus reads them.
pub async fn metrics(State(gateway): State<Shared>) -> Result<Response, ApiError> {
    let exposition = gateway.exposition.as_ref().ok_or_else(ApiError::no_cluster_here)?;
    let text = exposition.text().await;
    Ok(([(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)], text).into_response())
}

pub async fn page() -> Response {
    shown(page::index())
}

pub async fn page_file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = page::file(&name).ok_or_else(|| ApiError::no_such_path("GET", &format!("/page/{name}")))?;
    Ok(shown(file))
}

fn shown(file: File) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(file.content_type)),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(CONTENT_POLICY),
        ),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // Another version of this program has other files by the same names.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, file.content).into_response()
}
