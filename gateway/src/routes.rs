//! Which path does what, and what all of them share.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kvasir_proto::v1;
use uuid::Uuid;

use crate::{
    ApiError, Gateway, chat, completions,
    fields::Fields,
    model_routes::{list, live, ready, retrieve},
    token_routes::{detokenize, tokenize},
};

pub type Shared = Arc<Gateway>;

/// A client's name for its request, as a header, may have so many bytes.
const REQUEST_ID_BYTES_MAX: usize = 100;

pub fn router(gateway: Shared) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(list))
        .route("/v1/models/{*name}", get(retrieve))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(ready))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(gateway)
}

async fn no_such_path(request: Request) -> Response {
    ApiError::no_such_path(request.method().as_str(), request.uri().path()).into_response()
}

async fn wrong_method(request: Request) -> Response {
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).into_response()
}

/// Made of the header `x-request-id`, if it is there and short and plain, else new.
pub fn request_id(prefix: &str, headers: &HeaderMap) -> String {
    let named = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    match named.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX) {
        Some(id) => format!("{prefix}-{id}"),
        None => format!("{prefix}-{}", Uuid::new_v4().simple()),
    }
}

impl Gateway {
    pub async fn model(&self) -> Result<v1::GetModelResponse, ApiError> {
        let model = self.upstream.get_model(tonic::Request::new(v1::GetModelRequest {}));
        Ok(model.await?.into_inner())
    }

    /// The name of the model, as the client calls it. Errors if it is not served here.
    pub async fn check_model(&self, fields: &mut Fields) -> Result<String, ApiError> {
        let name = fields.text("model")?.ok_or_else(|| ApiError::missing("model"))?;
        match self.model().await?.served_names.contains(&name) {
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
