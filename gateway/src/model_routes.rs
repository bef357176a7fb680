//! `/v1/models`, and whether anything answers.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use kvasir_proto::v1;
use serde_json::{Value, json};

use crate::{ApiError, routes::Shared};

pub async fn list(State(gateway): State<Shared>) -> Result<Json<Value>, ApiError> {
    let model = gateway.model().await?;
    let models: Vec<Value> = model.served_names.iter().map(|name| described(name, &model)).collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

pub async fn retrieve(State(gateway): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let model = gateway.model().await?;
    match model.served_names.contains(&name) {
        true => Ok(Json(described(&name, &model))),
        false => Err(ApiError::no_such_model(&name)),
    }
}

fn described(name: &str, model: &v1::GetModelResponse) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.started_unix,
        "owned_by": "kvasir",
        "max_model_len": model.context_len,
    })
}

/// The process is there.
pub async fn live() -> StatusCode {
    StatusCode::OK
}

/// 503 while no group serves: then whoever sends work here should send it elsewhere.
pub async fn ready(State(gateway): State<Shared>) -> Response {
    match gateway.model().await {
        Ok(model) if model.ready => (StatusCode::OK, Json(json!({ "status": "ok" }))).into_response(),
        Ok(_) => unready("no group of workers serves"),
        Err(_) => unready("no coordinator answers"),
    }
}

fn unready(why: &str) -> Response {
    let body = json!({ "status": "unavailable", "reason": why });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}
