//! `POST /v1/chat/completions`.

use axum::{body::Body, extract::State, http::Request, response::Response};
use kvasir_proto::v1::{self, generate_request::Prompt};
use serde_json::Value;

use crate::{
    ApiError,
    asked::Asked,
    chat_form::ChatForm,
    fields::Fields,
    reply::{Reply, unix_now},
    routes::{self, Shared},
};

pub async fn create(State(gateway): State<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let mut asked = Asked::read(&gateway, body).await?;
    asked.names.push(("prompt", "messages"));
    let form = take_form(&mut asked)?;
    asked.fields.finish()?;
    let id = routes::request_id("chatcmpl", &parts.headers);
    let request = v1::GenerateRequest {
        request_id: id.clone(),
        ..asked.request
    };
    let reply = Reply {
        id,
        model: asked.model,
        created: unix_now(),
        form,
        sending: asked.sending,
        num_choices: request.n.unwrap_or(1),
        prompts: vec![None],
        names: asked.names,
    };
    reply.answer(&gateway, vec![request], &parts.extensions).await
}

/// What is wanted of the answer; the chat and its bounds go into the request.
fn take_form(asked: &mut Asked) -> Result<ChatForm, ApiError> {
    let (fields, request) = (&mut asked.fields, &mut asked.request);
    let logprobs = take_logprobs(fields)?;
    let max_tokens = fields.count("max_tokens")?;
    request.max_tokens = fields.count("max_completion_tokens")?.or(max_tokens);
    request.prompt = Some(Prompt::Chat(take_chat(fields)?));
    request.token_bytes = logprobs.is_some();
    if let Some(sampling) = &mut request.sampling {
        sampling.top_logprobs = logprobs.unwrap_or(0);
    }
    Ok(ChatForm {
        logprobs: logprobs.is_some(),
        return_token_ids: asked.sending.return_token_ids,
    })
}

/// How many likeliest tokens to report, if logprobs are wanted.
fn take_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    match fields.count("top_logprobs")? {
        Some(top) if !wanted && top > 0 => {
            let why = "it needs 'logprobs' to be true";
            Err(ApiError::wrong_value("top_logprobs", why))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

/// The messages, tools, and what else the template is told.
pub fn take_chat(fields: &mut Fields) -> Result<v1::Chat, ApiError> {
    fields.required("messages").and_then(|messages| match messages {
        Value::Array(messages) => {
            let messages = messages.into_iter().enumerate().map(message);
            let arguments = fields.object("chat_template_kwargs")?.map(|arguments| arguments.rest());
            Ok(v1::Chat {
                messages: messages.collect::<Result<_, _>>()?,
                tools: take_tools(fields)?,
                template_arguments: arguments
                    .map_or_else(String::new, |arguments| Value::Object(arguments).to_string()),
                no_generation_prompt: !fields.flag("add_generation_prompt")?.unwrap_or(true),
            })
        }
        other => Err(ApiError::wrong_type("messages", "an array", &other)),
    })
}

fn message((position, message): (usize, Value)) -> Result<v1::ChatMessage, ApiError> {
    let mut fields = Fields::of_value(message, format!("messages[{position}]"))?;
    let role = fields.text("role")?;
    let role = role.ok_or_else(|| ApiError::missing(&fields.name("role")))?;
    let calls = fields.list("tool_calls")?;
    let content = match fields.take("content") {
        None if calls.is_some() => String::new(),
        None => return Err(ApiError::missing(&fields.name("content"))),
        Some(content) => content_text(content, &fields.name("content"))?,
    };
    let message = v1::ChatMessage {
        role,
        content,
        tool_calls: calls.map_or_else(String::new, |calls| Value::Array(calls).to_string()),
        tool_call_id: fields.text("tool_call_id")?.unwrap_or_default(),
        name: fields.text("name")?.unwrap_or_default(),
    };
    // What an assistant's message of an earlier answer has besides.
    fields.ignore(&["refusal", "annotations"]);
    fields.finish()?;
    Ok(message)
}

/// Parts of text are joined by line breaks; a model of text takes no others.
fn content_text(content: Value, name: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            let texts: Result<Vec<String>, ApiError> = parts
                .map(|(nth, part)| part_text(Fields::of_value(part, format!("{name}[{nth}]"))?))
                .collect();
            Ok(texts?.join("\n"))
        }
        other => Err(ApiError::wrong_type(name, "a string or an array of text parts", &other)),
    }
}

fn part_text(mut part: Fields) -> Result<String, ApiError> {
    let kind = part.text("type")?.unwrap_or_default();
    if kind != "text" {
        let why = format!("'{kind}'; the served model takes parts of type 'text' only");
        return Err(ApiError::wrong_value(&part.name("type"), why));
    }
    let text = part.text("text")?;
    text.ok_or_else(|| ApiError::missing(&part.name("text")))
}

/// A JSON array for the template, or nothing.
fn take_tools(fields: &mut Fields) -> Result<String, ApiError> {
    let tools = fields.list("tools")?.unwrap_or_default();
    for (position, tool) in tools.iter().enumerate() {
        let is_function = tool["type"] == "function" && tool["function"]["name"].is_string();
        if !is_function {
            let why = "expected {\"type\": \"function\", \"function\": {\"name\": ...}}";
            return Err(ApiError::wrong_value(&format!("tools[{position}]"), why));
        }
    }
    fields.ignore(&["parallel_tool_calls"]);
    let choice = match fields.take("tool_choice") {
        None => "auto".to_owned(),
        Some(Value::String(choice)) => choice,
        Some(_) => "a named tool".to_owned(),
    };
    match choice.as_str() {
        "none" => Ok(String::new()),
        "auto" if tools.is_empty() => Ok(String::new()),
        "auto" => Ok(Value::Array(tools).to_string()),
        _ => Err(ApiError::unsupported(
            "tool_choice",
            &format!("as {choice} is not supported; 'auto' and 'none' are"),
        )),
    }
}
