//! A published config.json as the sizes of its model, parameters counted.
//!
//! Only kinds of models whose every tensor is known here are read: another one's parameters would be a guess. Numbers come
//! from strangers: each is bounded, so that no sum or product overflows.

mod deepseek;
mod dense;
mod factors;

use serde_json::{Map, Value};

use super::{
    attention::Attention,
    model_sizes::{ModelSizes, Weights},
    parameter_type::ParameterType,
};
use crate::plain::plain;

/// No size of a model reaches this.
const COUNT_MAX: u64 = 1 << 24;
/// Nor do the elements that a token keeps in all layers.
const ELEMENTS_MAX: u64 = 1 << 32;

/// Kinds of models by `model_type`, and what reads each.
const KINDS: [(&str, Reader); 7] = [
    ("llama", dense::read),
    ("mistral", dense::read),
    ("qwen2", dense::read),
    ("qwen3", dense::read),
    ("deepseek_v2", deepseek::read),
    ("deepseek_v3", deepseek::read),
    ("T6", factors::read),
];

type Reader = fn(&PublishedConfig) -> Result<Shape, ConfigError>;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("not JSON")]
    NotJson(#[from] serde_json::Error),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("`{key}` is missing")]
    Missing { key: &'static str },
    #[error("`{key}` is {value}, expected {expected}")]
    BadValue {
        key: &'static str,
        value: Value,
        expected: &'static str,
    },
    #[error("model_type `{model_type}` is not known; known: {known}")]
    UnknownKind { model_type: String, known: String },
    #[error("a layer is of type `{layer_type}`: what it keeps of a token is not known here")]
    UnknownLayer { layer_type: String },
    #[error(transparent)]
    Heads(#[from] kvasir_kv::HeadLayoutError),
    #[error("{what} are more than any model has: {value}")]
    TooLarge { what: &'static str, value: u128 },
}

/// The keys and values of a config.json.
pub struct PublishedConfig(Map<String, Value>);

/// What a kind of model makes of its keys.
struct Shape {
    num_layers: u64,
    hidden_size: u64,
    vocab_size: u64,
    context_len: u64,
    attention: Attention,
    parameters: u128,
}

impl PublishedConfig {
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        match serde_json::from_str(text)? {
            Value::Object(keys) => Ok(Self(keys)),
            _ => Err(ConfigError::NotAnObject),
        }
    }

    /// `weights`: what all parameters are stored as, whatever the config says.
    pub fn sizes(&self, name: &str, weights: Option<ParameterType>) -> Result<ModelSizes, ConfigError> {
        let model_type = self
            .text("model_type")
            .ok_or(ConfigError::Missing { key: "model_type" })?;
        let Some((_, read)) = KINDS.into_iter().find(|(kind, _)| *kind == model_type) else {
            return Err(ConfigError::UnknownKind {
                model_type: model_type.to_owned(),
                known: KINDS.map(|(kind, _)| kind).join(", "),
            });
        };
        let shape = read(self)?;
        let elements = u128::from(shape.num_layers) * u128::from(shape.attention.elements());
        if elements > u128::from(ELEMENTS_MAX) {
            let what = "the elements that a token keeps";
            return Err(ConfigError::TooLarge { what, value: elements });
        }
        let parameters = u64::try_from(shape.parameters).ok().filter(|&count| count < 1 << 56);
        let parameters = parameters.ok_or(ConfigError::TooLarge {
            what: "the parameters",
            value: shape.parameters,
        })?;
        let mut notes = self.window_notes()?;
        let parameter_type = match weights {
            Some(given) => given,
            None => self.parameter_type(&mut notes),
        };
        Ok(ModelSizes {
            name: plain(name),
            source: plain(self.text("_source").unwrap_or("its config.json")),
            num_layers: shape.num_layers as u32,
            hidden_size: shape.hidden_size as u32,
            vocab_size: shape.vocab_size as u32,
            context_len: shape.context_len as u32,
            attention: shape.attention,
            parameters,
            weights: Weights::new(parameters, parameter_type),
            notes,
        })
    }

    /// As they are published, where that is one type for nearly all of them.
    fn parameter_type(&self, notes: &mut Vec<String>) -> ParameterType {
        let method = self
            .0
            .get("quantization_config")
            .and_then(|config| config.get("quant_method"));
        match method.and_then(Value::as_str) {
            Some("fp8") => return ParameterType::Fp8,
            Some(method) => notes.push(format!(
                "weights quantized by `{}` are counted as they were before it; give --weights TYPE for what they take",
                plain(method)
            )),
            None => {}
        }
        let torch = self.text("torch_dtype").or_else(|| self.text("dtype"));
        torch.and_then(ParameterType::of_torch).unwrap_or(ParameterType::BF16)
    }

    /// Errors at layers that keep something else than K and V of each token.
    fn window_notes(&self) -> Result<Vec<String>, ConfigError> {
        let mut notes = Vec::new();
        let used = self.0.get("use_sliding_window") != Some(&Value::Bool(false));
        if let Some(window) = self.0.get("sliding_window").and_then(Value::as_u64).filter(|_| used) {
            notes.push(format!(
                "its sliding window of {window} tokens is counted as full attention"
            ));
        }
        let layer_types = self.0.get("layer_types").and_then(Value::as_array);
        let unknown = layer_types
            .into_iter()
            .flatten()
            .find(|layer| !matches!(layer.as_str(), Some("full_attention" | "sliding_attention")));
        match unknown {
            Some(layer) => Err(ConfigError::UnknownLayer {
                layer_type: layer.as_str().map_or_else(|| layer.to_string(), str::to_owned),
            }),
            None => Ok(notes),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(ConfigError::BadValue {
                key,
                value: value.clone(),
                expected: "true or false",
            }),
        }
    }

    /// A number from 1 on; absent and `null` are the same.
    fn optional(&self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().filter(|count| (1..=COUNT_MAX).contains(count)) {
                Some(count) => Ok(Some(count)),
                None => Err(ConfigError::BadValue {
                    key,
                    value: value.clone(),
                    expected: "a whole number from 1 to 16777216",
                }),
            },
        }
    }

    fn count(&self, key: &'static str) -> Result<u64, ConfigError> {
        self.optional(key)?.ok_or(ConfigError::Missing { key })
    }
}

impl Shape {
    /// Rows of an embedding, and of an output head that is not the same.
    fn vocab_parameters(vocab_size: u64, hidden_size: u64, tied: bool) -> u128 {
        let tables = if tied { 1 } else { 2 };
        tables * u128::from(vocab_size) * u128::from(hidden_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Result<ModelSizes, ConfigError> {
        PublishedConfig::parse(text)?.sizes("model", None)
    }

    const SMALL: &str = r#""model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 512"#;

    #[test]
    fn a_config_that_is_not_understood_is_refused_with_what_is_wrong() {
        for (text, expected) in [
            ("{", "not JSON"),
            ("[1]", "not a JSON object"),
            ("{}", "`model_type` is missing"),
            (
                r#"{"model_type": "mamba2"}"#,
                "model_type `mamba2` is not known; known: llama",
            ),
            (r#"{"model_type": "llama"}"#, "`hidden_size` is missing"),
            (
                &format!(r#"{{{SMALL}, "num_key_value_heads": 3}}"#),
                "do not divide among 3 KV heads",
            ),
            (
                &format!(r#"{{{SMALL}, "num_key_value_heads": "2"}}"#),
                "`num_key_value_heads` is \"2\", expected a whole",
            ),
            (
                &format!(r#"{{{SMALL}, "num_key_value_heads": 0}}"#),
                "`num_key_value_heads` is 0",
            ),
            (
                &format!(r#"{{{SMALL}, "layer_types": ["linear_attention"]}}"#),
                "`linear_attention`",
            ),
            (
                &format!(r#"{{{SMALL}, "tie_word_embeddings": 1}}"#),
                "expected true or false",
            ),
        ] {
            let error = sizes(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn no_size_is_too_large_to_refuse() {
        let huge = ["128", "256", "2"].iter().fold(SMALL.to_owned(), |text, size| {
            text.replace(&format!(": {size},"), ": 16777216,")
        });
        let error = sizes(&format!("{{{huge}, \"head_dim\": 16777216}}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("are more than any model has"), "{error}");
    }

    #[test]
    fn heads_and_head_dim_are_what_they_are_when_absent() {
        let model = sizes(&format!("{{{SMALL}}}")).unwrap();
        assert_eq!(model.attention.num_kv_heads(), Some(4), "multi-head attention");
        assert_eq!(model.attention.elements(), 2 * 4 * 32);
        assert_eq!(model.weights.stored_as, "bf16");
    }

    #[test]
    fn windows_and_unknown_quantization_are_noted() {
        let notes = |more: &str| sizes(&format!("{{{SMALL}, {more}}}")).unwrap().notes.join("; ");
        assert!(notes(r#""sliding_window": 4096"#).contains("4096 tokens is counted as full attention"));
        assert_eq!(notes(r#""sliding_window": 4096, "use_sliding_window": false"#), "");
        assert!(notes(r#""quantization_config": {"quant_method": "awq"}"#).contains("`awq`"));
        assert_eq!(notes(r#""quantization_config": {"quant_method": "fp8"}"#), "");
    }
}
