//! The fields of a JSON body, taken one by one: what is left at the end is unknown, and refused as OpenAI's server does.
//!
//! `null` is absent, everywhere.

use serde_json::{Map, Number, Value};

use crate::ApiError;

/// The fields of one object, which stands at `path` of the body.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// Errors if the body is no JSON object.
    pub fn of_body(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self {
                map,
                path: String::new(),
            }),
            Ok(_) => Err(ApiError::invalid("The body of the request must be a JSON object.")),
            Err(error) => Err(ApiError::invalid(format!(
                "We could not parse the JSON body of your request: {error}."
            ))),
        }
    }

    /// Of a value at `path`.
    pub fn of_value(value: Value, path: impl Into<String>) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(ApiError::wrong_type(&path, "an object", &other)),
        }
    }

    /// The name that an error gives a field.
    pub fn name(&self, field: &str) -> String {
        match self.path.as_str() {
            "" => field.to_owned(),
            path => format!("{path}.{field}"),
        }
    }

    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field).filter(|value| !value.is_null())
    }

    pub fn required(&mut self, field: &str) -> Result<Value, ApiError> {
        self.take(field).ok_or_else(|| ApiError::missing(&self.name(field)))
    }

    fn typed<T>(
        &mut self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let read = read(&value).ok_or_else(|| ApiError::wrong_type(&self.name(field), expected, &value));
        read.map(Some)
    }

    pub fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        self.typed(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        self.typed(field, "a boolean", Value::as_bool)
    }

    pub fn decimal(&mut self, field: &str) -> Result<Option<f32>, ApiError> {
        self.typed(field, "a decimal", |value| value.as_f64().map(|number| number as f32))
    }

    pub fn integer(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        self.typed(field, "an integer", whole)
    }

    /// Errors outside u32, with the range.
    pub fn count(&mut self, field: &str) -> Result<Option<u32>, ApiError> {
        let Some(number) = self.integer(field)? else {
            return Ok(None);
        };
        let too_small =
            || ApiError::wrong_value(&self.name(field), format_args!("{number} is not in 0 to {}", u32::MAX));
        u32::try_from(number).map(Some).map_err(|_| too_small())
    }

    /// Any 64 bits: a negative number stands for those of its two's complement.
    pub fn seed(&mut self, field: &str) -> Result<Option<u64>, ApiError> {
        self.typed(field, "an integer", |value| {
            value.as_u64().or_else(|| whole(value).map(|number| number as u64))
        })
    }

    pub fn object(&mut self, field: &str) -> Result<Option<Self>, ApiError> {
        let value = self.take(field);
        value.map(|value| Self::of_value(value, self.name(field))).transpose()
    }

    pub fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(field, "an array", |value| value.as_array().cloned())
    }

    pub fn ids(&mut self, field: &str) -> Result<Option<Vec<u32>>, ApiError> {
        self.typed(field, "an array of token ids", token_ids)
    }

    /// One text, or a list of them.
    pub fn texts(&mut self, field: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.typed(field, "a string or an array of strings", |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// For fields that say nothing which changes an answer.
    pub fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.take(field);
        }
    }

    /// Errors if this field is there, and not one of what it may be.
    pub fn refuse(&mut self, field: &str, allowed: &[Value], why: &str) -> Result<(), ApiError> {
        match self.take(field) {
            Some(value) if !allowed.contains(&value) => Err(ApiError::unsupported(&self.name(field), why)),
            _ => Ok(()),
        }
    }

    /// Errors if a field is left that nobody has asked for.
    pub fn finish(self) -> Result<(), ApiError> {
        let mut left = self.map.iter().filter(|(_, value)| !value.is_null());
        match left.next() {
            Some((field, _)) => Err(ApiError::unknown(&self.name(field))),
            None => Ok(()),
        }
    }

    /// What is left, whatever it is.
    pub fn rest(self) -> Map<String, Value> {
        self.map
    }
}

/// `None` if it is no list of numbers that fit.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |item: &Value| u32::try_from(item.as_u64()?).ok();
    value.as_array()?.iter().map(id).collect()
}

/// 3 and 3.0, not 3.5.
fn whole(value: &Value) -> Option<i64> {
    let number: &Number = value.as_number()?;
    number.as_i64().or_else(|| {
        let decimal = number.as_f64()?;
        let is_whole = decimal.fract() == 0.0 && decimal.abs() <= 2f64.powi(53);
        is_whole.then_some(decimal as i64)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of_body(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_is_left_is_unknown() {
        let mut some = fields(json!({"a": 1, "b": null, "c": null, "stream_options": {"x": 1}}));
        assert_eq!(some.count("a").unwrap(), Some(1));
        assert_eq!(some.count("b").unwrap(), None);
        let inner = some.object("stream_options").unwrap().unwrap();
        assert_eq!(inner.finish().unwrap_err(), ApiError::unknown("stream_options.x"));
        some.finish().unwrap();
    }

    #[test]
    fn a_wrong_type_is_named_with_its_field() {
        let mut some = fields(json!({"n": 1.5, "seed": "x", "stop": [1], "max_tokens": -1}));
        assert_eq!(
            some.count("n").unwrap_err(),
            ApiError::wrong_type("n", "an integer", &json!(1.5))
        );
        assert!(some.seed("seed").is_err() && some.texts("stop").is_err() && some.count("max_tokens").is_err());
    }

    #[test]
    fn numbers_may_be_written_either_way() {
        let mut some = fields(json!({"n": 2.0, "temperature": 1, "seed": -1, "other": u64::MAX}));
        assert_eq!(some.count("n").unwrap(), Some(2));
        assert_eq!(some.decimal("temperature").unwrap(), Some(1.0));
        assert_eq!(some.seed("seed").unwrap(), Some(u64::MAX));
        assert_eq!(some.seed("other").unwrap(), Some(u64::MAX));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["", "{", "[]", "3", "\u{0}"] {
            assert!(Fields::of_body(body.as_bytes()).is_err(), "{body}");
        }
    }
}
