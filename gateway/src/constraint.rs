//! `response_format`, and vLLM's `structured_outputs`, as a constraint.

use kvasir_proto::v1::{self, constraint::Kind};
use serde_json::{Value, json};

use crate::{ApiError, fields::Fields};

/// At most one of both, and which field it was.
pub fn take(fields: &mut Fields) -> Result<(Option<v1::Constraint>, &'static str), ApiError> {
    let of_format = fields.object("response_format")?.map(of_response_format).transpose()?;
    let of_outputs = fields
        .object("structured_outputs")?
        .map(of_structured_outputs)
        .transpose()?;
    let (kind, field) = match (of_format.flatten(), of_outputs) {
        (Some(_), Some(_)) => {
            let why = "an answer can follow only one of 'response_format' and 'structured_outputs'";
            return Err(ApiError::wrong_value("structured_outputs", why));
        }
        (None, of_outputs) => (of_outputs, "structured_outputs"),
        (of_format, None) => (of_format, "response_format"),
    };
    Ok((kind.map(|kind| v1::Constraint { kind: Some(kind) }), field))
}

fn of_response_format(mut format: Fields) -> Result<Option<Kind>, ApiError> {
    let kind = format.text("type")?;
    let kind = kind.ok_or_else(|| ApiError::missing("response_format.type"))?;
    let constraint = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Kind::JsonSchema(json!({ "type": "object" }).to_string())),
        "json_schema" => {
            let name = "response_format.json_schema";
            let mut schema = format.object("json_schema")?.ok_or_else(|| ApiError::missing(name))?;
            // What is said of a schema, and whether models that may ignore it must not: ours never do.
            schema.ignore(&["name", "description", "strict"]);
            let wanted = schema.required("schema")?;
            schema.finish()?;
            Some(Kind::JsonSchema(schema_text(
                "response_format.json_schema.schema",
                wanted,
            )?))
        }
        _ => {
            let why = format_args!("'{kind}'; supported are 'text', 'json_object' and 'json_schema'").to_string();
            return Err(ApiError::wrong_value("response_format.type", why));
        }
    };
    format.finish()?;
    Ok(constraint)
}

/// Exactly one of `json`, `regex`, `choice` and `grammar`.
fn of_structured_outputs(mut outputs: Fields) -> Result<Kind, ApiError> {
    let mut found = Vec::new();
    if let Some(schema) = outputs.take("json") {
        found.push(Kind::JsonSchema(schema_text("structured_outputs.json", schema)?));
    }
    found.extend(outputs.text("regex")?.map(Kind::Regex));
    found.extend(outputs.text("grammar")?.map(Kind::Lark));
    if let Some(choices) = outputs.texts("choice")? {
        if choices.is_empty() {
            return Err(ApiError::wrong_value(
                "structured_outputs.choice",
                "there is nothing to choose from",
            ));
        }
        found.push(Kind::Lark(choice_of(&choices)));
    }
    outputs.finish()?;
    match found.len() {
        1 => Ok(found.remove(0)),
        num_found => Err(ApiError::wrong_value(
            "structured_outputs",
            format_args!("expected one of 'json', 'regex', 'choice' and 'grammar', found {num_found}"),
        )),
    }
}

/// A schema may come as an object, as true, or as a text of either.
fn schema_text(name: &str, schema: Value) -> Result<String, ApiError> {
    match schema {
        Value::String(text) => Ok(text),
        Value::Object(_) | Value::Bool(_) => Ok(schema.to_string()),
        other => Err(ApiError::wrong_type(name, "an object", &other)),
    }
}

/// A grammar of one rule: any of these texts. Lark writes texts as JSON does.
fn choice_of(choices: &[String]) -> String {
    let quoted: Vec<String> = choices
        .iter()
        .map(|choice| Value::from(choice.as_str()).to_string())
        .collect();
    format!("start: {}", quoted.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: Value) -> Result<Option<Kind>, ApiError> {
        let mut fields = Fields::of_value(body, "").unwrap();
        take(&mut fields).map(|(constraint, _)| constraint.and_then(|constraint| constraint.kind))
    }

    #[test]
    fn formats_become_schemas() {
        assert_eq!(taken(json!({"response_format": {"type": "text"}})), Ok(None));
        let object = taken(json!({"response_format": {"type": "json_object"}})).unwrap();
        assert_eq!(object, Some(Kind::JsonSchema(r#"{"type":"object"}"#.to_owned())));
        let schema = json!({"response_format": {"type": "json_schema", "json_schema": {
            "name": "n", "strict": true, "schema": {"type": "integer"}
        }}});
        assert_eq!(
            taken(schema),
            Ok(Some(Kind::JsonSchema(r#"{"type":"integer"}"#.to_owned())))
        );
        let choice = json!({"structured_outputs": {"choice": ["a", "b\"c"]}});
        assert_eq!(taken(choice), Ok(Some(Kind::Lark(r#"start: "a" | "b\"c""#.to_owned()))));
    }

    #[test]
    fn what_makes_no_constraint_is_refused() {
        for wrong in [
            json!({"response_format": {"type": "xml"}}),
            json!({"response_format": {}}),
            json!({"response_format": "json_object"}),
            json!({"response_format": {"type": "json_schema"}}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
            json!({"response_format": {"type": "text", "more": 1}}),
            json!({"structured_outputs": {"regex": "a", "json": {}}}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"choice": []}}),
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
        ] {
            assert!(taken(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
