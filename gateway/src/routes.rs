//! Which path does what, and what all of them share.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kvasir_proto::v1;
use uuid::Uuid;

use crate::{
    ApiError, Gateway, chat, cluster_view, completions,
    fields::Fields,
    model_routes::{list, live, ready, retrieve},
    request_span,
    token_routes::{detokenize, tokenize},
};

pub type Shared = Arc<Gateway>;

const REQUEST_ID: &str = "x-request-id";
/// A client's name for its request may have so many bytes.
const REQUEST_ID_BYTES_MAX: usize = 100;

pub fn router(gateway: Shared) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(list))
        .route("/v1/models/{*name}", get(retrieve))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/", get(cluster_view::page))
        .route("/page/{name}", get(cluster_view::page_file))
        .route("/cluster/status", get(cluster_view::status))
        .route("/cluster/events", get(cluster_view::events))
        .route("/metrics", get(cluster_view::metrics))
        .route("/health", get(ready))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(request_span::trace))
        .layer(middleware::from_fn(name_request))
        .with_state(gateway)
}

/// Every request has a name, and every response tells it, also where nothing came of the request.
async fn name_request(mut request: Request, next: Next) -> Response {
    let name = match request.headers().get(REQUEST_ID).filter(|name| is_usable(name)) {
        Some(name) => name.clone(),
        None => made_up(),
    };
    request.headers_mut().insert(REQUEST_ID, name.clone());
    let mut response = next.run(request).await;
    response.headers_mut().entry(REQUEST_ID).or_insert(name);
    response
}

fn is_usable(name: &HeaderValue) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&name.len()) && name.to_str().is_ok()
}

fn made_up() -> HeaderValue {
    let name = Uuid::new_v4().simple().to_string();
    HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("unnamed"))
}

async fn no_such_path(request: Request) -> Response {
    ApiError::no_such_path(request.method().as_str(), request.uri().path()).into_response()
}

async fn wrong_method(request: Request) -> Response {
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).into_response()
}

/// Made of the request's name.
pub fn request_id(prefix: &str, headers: &HeaderMap) -> String {
    let name = headers.get(REQUEST_ID).and_then(|name| name.to_str().ok());
    format!("{prefix}-{}", name.unwrap_or_default())
}

impl Gateway {
    pub async fn model(&self) -> Result<v1::GetModelResponse, ApiError> {
        let model = self.upstream.get_model(tonic::Request::new(v1::GetModelRequest {}));
        Ok(model.await?.into_inner())
    }

    /// The name of the model, as the client calls it. Errors if it is not served here.
    pub async fn check_model(&self, fields: &mut Fields) -> Result<String, ApiError> {
        let name = fields.text("model")?.ok_or_else(|| ApiError::missing("model"))?;
        // What was served once is not asked for again with each request.
        if self.knows(&name) {
            return Ok(name);
        }
        let names = self.model().await?.served_names;
        let is_served = names.contains(&name);
        self.remember(names);
        match is_served {
            true => Ok(name),
            false => Err(ApiError::no_such_model(&name)),
        }
    }

    /// As `check_model`, where it may be left out.
    pub async fn check_optional_model(&self, fields: &mut Fields) -> Result<v1::GetModelResponse, ApiError> {
        let model = self.model().await?;
        match fields.text("model")? {
            Some(name) if !model.served_names.contains(&name) => Err(ApiError::no_such_model(&name)),
            _ => Ok(model),
        }
    }
}
