//! A client's chat as the values that a checkpoint's template reads.

use kvasir_model::ChatTemplate;
use kvasir_proto::v1;
use serde_json::{Map, Value, json};

use crate::intake::RequestError;

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The prompt as text. Errors name the field that is wrong, or say what the template objects to.
pub fn render(template: &ChatTemplate, chat: &v1::Chat) -> Result<String, RequestError> {
    if chat.messages.is_empty() {
        return Err(RequestError::EmptyPrompt);
    }
    let messages: Result<Vec<Value>, RequestError> = chat.messages.iter().enumerate().map(message).collect();
    let tools = match parse("tools", "array", &chat.tools, Value::is_array)? {
        // Templates ask whether there are any.
        Some(tools) if tools.as_array().is_some_and(|tools| !tools.is_empty()) => tools,
        _ => Value::Null,
    };
    let arguments = parse(
        "template_arguments",
        "object",
        &chat.template_arguments,
        Value::is_object,
    )?;
    let prompt = template.render_json(
        &Value::Array(messages?),
        &tools,
        arguments.as_ref().and_then(Value::as_object).unwrap_or(&Map::new()),
        !chat.no_generation_prompt,
    )?;
    Ok(prompt)
}

fn message((position, message): (usize, &v1::ChatMessage)) -> Result<Value, RequestError> {
    if !ROLES.contains(&message.role.as_str()) {
        let role = message.role.clone();
        return Err(RequestError::Role { position, role });
    }
    // The newer name, which templates do not know.
    let role = match message.role.as_str() {
        "developer" => "system",
        role => role,
    };
    let mut value = json!({ "role": role, "content": message.content });
    if let Some(calls) = parse("tool_calls", "array", &message.tool_calls, Value::is_array)? {
        value["tool_calls"] = calls;
    }
    for (key, text) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if !text.is_empty() {
            value[key] = Value::from(text.as_str());
        }
    }
    Ok(value)
}

/// None of an empty text.
fn parse(
    what: &'static str,
    expected: &'static str,
    text: &str,
    is_expected: impl Fn(&Value) -> bool,
) -> Result<Option<Value>, RequestError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |found: String| RequestError::NotJson { what, expected, found };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    match is_expected(&value) {
        true => Ok(Some(value)),
        false => Err(wrong(text.chars().take(40).collect())),
    }
}
