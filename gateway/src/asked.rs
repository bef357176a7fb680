//! What chats and completions have in common: the fields that become a [`v1::GenerateRequest`].

use axum::body::Body;
use kvasir_proto::v1;
use serde_json::{Value, json};

use crate::{ApiError, Gateway, constraint, fields::Fields, json_body};

/// OpenAI's default; ours is 0.
const TEMPERATURE: f32 = 1.0;
const NOT_HERE: &str = "is not supported with this model";

/// How an answer is sent back.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sending {
    pub stream: bool,
    /// A last piece with the usage, and `"usage": null` before.
    pub include_usage: bool,
    /// The usage so far with every piece.
    pub continuous_usage: bool,
    pub return_token_ids: bool,
}

/// A body whose common fields are taken, and the rest of it.
#[derive(Debug)]
pub struct Asked {
    pub fields: Fields,
    /// As the client calls it.
    pub model: String,
    /// Without a prompt, `max_tokens` and logprobs.
    pub request: v1::GenerateRequest,
    pub sending: Sending,
    /// Fields of the service's that have other names here, with those.
    pub names: Vec<(&'static str, &'static str)>,
}

impl Asked {
    /// Errors if the body cannot be read, or the model is not served here.
    pub async fn read(gateway: &Gateway, body: Body) -> Result<Self, ApiError> {
        let mut fields = json_body::read(body).await?;
        let model = gateway.check_model(&mut fields).await?;
        let sending = take_sending(&mut fields)?;
        let (request, constraint_field) = take_request(&mut fields)?;
        refuse_others(&mut fields)?;
        Ok(Self {
            fields,
            model,
            request,
            sending,
            names: vec![("tenant", "user"), ("constraint", constraint_field)],
        })
    }
}

/// And which field the constraint came from.
fn take_request(fields: &mut Fields) -> Result<(v1::GenerateRequest, &'static str), ApiError> {
    let sampling = v1::SamplingParams {
        temperature: Some(fields.decimal("temperature")?.unwrap_or(TEMPERATURE)),
        top_p: fields.decimal("top_p")?,
        top_k: take_top_k(fields)?,
        min_p: fields.decimal("min_p")?,
        seed: fields.seed("seed")?,
        repetition_penalty: fields.decimal("repetition_penalty")?,
        presence_penalty: fields.decimal("presence_penalty")?,
        frequency_penalty: fields.decimal("frequency_penalty")?,
        logit_bias: take_biases(fields)?,
        stop_token_ids: fields.ids("stop_token_ids")?.unwrap_or_default(),
        ..Default::default()
    };
    let (constraint, constraint_field) = constraint::take(fields)?;
    let request = v1::GenerateRequest {
        sampling: Some(sampling),
        n: fields.count("n")?,
        stop: fields.texts("stop")?.unwrap_or_default(),
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        tenant: fields.text("user")?.unwrap_or_default(),
        priority: take_priority(fields)?,
        constraint,
        ..Default::default()
    };
    Ok((request, constraint_field))
}

fn take_sending(fields: &mut Fields) -> Result<Sending, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let mut sending = Sending {
        stream,
        return_token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        ..Default::default()
    };
    if let Some(mut options) = fields.object("stream_options")? {
        if !stream {
            let why = "is only allowed when 'stream' is enabled";
            return Err(ApiError::wrong_value("stream_options", why));
        }
        sending.include_usage = options.flag("include_usage")?.unwrap_or(false);
        sending.continuous_usage = options.flag("continuous_usage_stats")?.unwrap_or(false);
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
    }
    Ok(sending)
}

/// -1 keeps all, as 0 does.
fn take_top_k(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    match fields.integer("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(top_k) => match u32::try_from(top_k) {
            Ok(top_k) => Ok(Some(top_k)),
            Err(_) => Err(ApiError::wrong_value(
                "top_k",
                format_args!("{top_k}; expected -1 or 0 (all), or up to {}", u32::MAX),
            )),
        },
    }
}

fn take_priority(fields: &mut Fields) -> Result<i32, ApiError> {
    let priority = fields.integer("priority")?.unwrap_or(0);
    let wrong = |_| ApiError::wrong_value("priority", format_args!("{priority} is not in the range of 32 bits"));
    i32::try_from(priority).map_err(wrong)
}

/// An object from token ids, which are keys and hence texts, to biases.
fn take_biases(fields: &mut Fields) -> Result<Vec<v1::LogitBias>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let bias = |(key, value): (String, Value)| {
        let id = key.parse();
        let id = id.map_err(|_| ApiError::wrong_value("logit_bias", format_args!("'{key}' is not a token id")))?;
        let bias = value.as_f64();
        let bias = bias.ok_or_else(|| ApiError::wrong_type(&format!("logit_bias.{key}"), "a decimal", &value))?;
        Ok(v1::LogitBias { id, bias: bias as f32 })
    };
    biases.rest().into_iter().map(bias).collect()
}

fn refuse_others(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignore(&["metadata", "store", "safety_identifier", "prompt_cache_key"]);
    fields.refuse("service_tier", &[json!("auto"), json!("default")], NOT_HERE)?;
    fields.refuse("modalities", &[json!(["text"])], NOT_HERE)?;
    for field in [
        "audio",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "functions",
        "function_call",
    ] {
        fields.refuse(field, &[], NOT_HERE)?;
    }
    Ok(())
}
