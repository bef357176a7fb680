//! `/tokenize` and `/detokenize`, as vLLM has them.

use axum::{Json, body::Body, extract::State, http::Request};
use kvasir_proto::v1;
use serde_json::{Value, json};

use crate::{ApiError, chat, form::text, json_body, routes::Shared};

pub async fn tokenize(State(gateway): State<Shared>, request: Request<Body>) -> Result<Json<Value>, ApiError> {
    let mut fields = json_body::read(request.into_body()).await?;
    let model = gateway.check_optional_model(&mut fields).await?;
    let wants_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let request = match fields.text("prompt")? {
        Some(prompt) => v1::TokenizeRequest {
            text: prompt,
            plain: false,
            chat: None,
        },
        None => v1::TokenizeRequest {
            chat: Some(chat::take_chat(&mut fields).map_err(|error| error.renamed(&[("messages", "prompt")]))?),
            ..Default::default()
        },
    };
    fields.ignore(&["add_special_tokens"]);
    fields.finish()?;
    let tokenized = gateway
        .upstream
        .tokenize(tonic::Request::new(request))
        .await?
        .into_inner();
    let mut body = json!({
        "count": tokenized.token_ids.len(),
        "max_model_len": model.context_len,
        "tokens": tokenized.token_ids,
    });
    if wants_texts {
        body["token_strs"] = tokenized.token_bytes.iter().map(|bytes| text(bytes)).collect();
    }
    Ok(Json(body))
}

pub async fn detokenize(State(gateway): State<Shared>, request: Request<Body>) -> Result<Json<Value>, ApiError> {
    let mut fields = json_body::read(request.into_body()).await?;
    gateway.check_optional_model(&mut fields).await?;
    let ids = fields.ids("tokens")?;
    let token_ids = ids.ok_or_else(|| ApiError::missing("tokens"))?;
    fields.finish()?;
    let request = tonic::Request::new(v1::DetokenizeRequest { token_ids });
    let detokenized = gateway.upstream.detokenize(request).await.map_err(ApiError::from);
    let detokenized = detokenized
        .map_err(|error| error.renamed(&[("prompt", "tokens")]))?
        .into_inner();
    Ok(Json(json!({ "prompt": detokenized.text })))
}
