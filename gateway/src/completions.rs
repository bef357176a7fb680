//! `POST /v1/completions`.

use axum::{body::Body, extract::State, http::Request, response::Response};
use kvasir_proto::v1::{self, generate_request::Prompt};
use serde_json::Value;

use crate::{
    ApiError,
    asked::Asked,
    completion_form::CompletionForm,
    fields::{Fields, token_ids},
    form::Form as _,
    reply::{Reply, unix_now},
    routes::{self, Shared},
};

/// OpenAI's default.
const MAX_TOKENS: u32 = 16;
const PROMPTS_MAX: usize = 256;
/// As the service allows.
const CHOICES_MAX: u32 = 128;

pub async fn create(State(gateway): State<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let mut asked = Asked::read(&gateway, body).await?;
    asked
        .names
        .extend([("top_logprobs", "logprobs"), ("prompt_logprobs", "logprobs")]);
    let form = take_form(&mut asked)?;
    let prompts = take_prompts(&mut asked.fields)?;
    asked.fields.finish()?;
    let prompts = repeat_echoes(&form, &mut asked.request, prompts);
    ask_for_logprobs(&mut asked.request, &form);
    let id = routes::request_id("cmpl", &parts.headers);
    let requests = prompts.iter().enumerate().map(|(nth, prompt)| v1::GenerateRequest {
        prompt: Some(prompt.clone()),
        request_id: match prompts.len() {
            1 => id.clone(),
            _ => format!("{id}-{nth}"),
        },
        ..asked.request.clone()
    });
    let requests = requests.collect();
    let reply = Reply {
        id,
        model: asked.model,
        created: unix_now(),
        form,
        sending: asked.sending,
        num_choices: asked.request.n.unwrap_or(1),
        prompts: prompts.into_iter().map(as_text).collect(),
        names: asked.names,
    };
    reply.answer(&gateway, requests, &parts.extensions).await
}

/// What is wanted of the answers; their length goes into the request.
fn take_form(asked: &mut Asked) -> Result<CompletionForm, ApiError> {
    let (fields, request) = (&mut asked.fields, &mut asked.request);
    request.max_tokens = Some(fields.count("max_tokens")?.unwrap_or(MAX_TOKENS));
    let num_choices = Value::from(request.n.unwrap_or(1));
    fields.refuse("best_of", &[num_choices], "is supported only where it equals 'n'")?;
    fields.refuse("suffix", &[], "is not supported with this model")?;
    Ok(CompletionForm {
        echo: fields.flag("echo")?.unwrap_or(false),
        logprobs: fields.count("logprobs")?,
        return_token_ids: asked.sending.return_token_ids,
    })
}

/// Answers of no token differ in nothing: each is asked for as if it had a prompt of its own.
fn repeat_echoes(form: &CompletionForm, request: &mut v1::GenerateRequest, prompts: Vec<Prompt>) -> Vec<Prompt> {
    let num_choices = request.n.unwrap_or(1);
    if !form.echo || request.max_tokens != Some(0) || !(1..=CHOICES_MAX).contains(&num_choices) {
        return prompts;
    }
    request.n = None;
    let repeated = |prompt: &Prompt| vec![prompt.clone(); num_choices as usize];
    prompts.iter().flat_map(repeated).collect()
}

/// An echo with logprobs has those of its prompt; one without an answer is asked for by them, too.
fn ask_for_logprobs(asked: &mut v1::GenerateRequest, form: &CompletionForm) {
    let top = form.logprobs.unwrap_or(0);
    let is_echo_alone = form.echo && asked.max_tokens == Some(0);
    if form.awaits_scores() || is_echo_alone {
        asked.prompt_logprobs = Some(top);
    }
    asked.token_bytes = form.echo || form.logprobs.is_some();
    if let Some(sampling) = &mut asked.sampling {
        sampling.top_logprobs = top;
    }
}

/// A text, token ids, or a list of either.
fn take_prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let prompt = fields.required("prompt")?;
    let expected = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
    let wrong = || ApiError::wrong_type("prompt", expected, &prompt);
    let prompts: Vec<Prompt> = match &prompt {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(items) if items.is_empty() => return Err(ApiError::wrong_value("prompt", "it is empty")),
        Value::Array(items) if items[0].is_number() => vec![ids(&prompt).ok_or_else(wrong)?],
        Value::Array(items) => items
            .iter()
            .map(|item| one(item).ok_or_else(wrong))
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong()),
    };
    if prompts.len() > PROMPTS_MAX {
        let why = format_args!("{} prompts; at most {PROMPTS_MAX} are taken at once", prompts.len()).to_string();
        return Err(ApiError::wrong_value("prompt", why));
    }
    Ok(prompts)
}

fn one(item: &Value) -> Option<Prompt> {
    match item {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        item => ids(item),
    }
}

fn ids(item: &Value) -> Option<Prompt> {
    token_ids(item).map(|ids| Prompt::TokenIds(v1::TokenIds { ids }))
}

fn as_text(prompt: Prompt) -> Option<String> {
    match prompt {
        Prompt::Text(text) => Some(text),
        _ => None,
    }
}
