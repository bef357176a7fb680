//! The spec of a model from the config.json of a Hugging Face folder.

use serde_json::{Map, Value};

use crate::{
    Architecture, CheckpointError, ModelSpec, TokenRoles,
    facts::{Facts, bad_value, missing, unsupported},
    rope_scaling::Llama3Scaling,
    spec::{SizeKeys, Sizes, TensorFacts, check_divisors, check_rope_dim},
};

const MODEL_TYPE: &str = "model_type";
/// What the constants of the rope are called: a part of the config of their own in newer files.
const ROPE_PARTS: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// The values of a config.json; null means absent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ConfigJson(Map<String, Value>);

impl ConfigJson {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let parsed = serde_json::from_slice(bytes);
        parsed.map(Self).map_err(|source| CheckpointError::Json {
            file: "config.json".to_owned(),
            source,
        })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// `None` if the key is absent. Errors if it is not an object.
    fn part(&self, key: &str) -> Result<Option<Self>, CheckpointError> {
        self.typed(key, "an object", |value| value.as_object().cloned().map(Self))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => Err(bad_value(key, value, expected)),
        }
    }
}

impl Facts for ConfigJson {
    fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.typed(key, "an integer from 0 to 2^32 - 1", |value| {
            value.as_u64().and_then(|value| u32::try_from(value).ok())
        })
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        self.typed(key, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn str(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.typed(key, "a string", Value::as_str)
    }
}

pub(crate) fn architecture(config: &ConfigJson) -> Result<&'static Architecture, CheckpointError> {
    let name = config.str(MODEL_TYPE)?.ok_or_else(|| missing(MODEL_TYPE))?;
    Architecture::of_model_type(name).ok_or_else(|| CheckpointError::Architecture {
        name: name.to_owned(),
        supported: Architecture::supported_model_types(),
    })
}

/// Whether the output head is the token embedding; `None` where only the tensors say it.
pub(crate) fn tied_head(config: &ConfigJson) -> Result<Option<bool>, CheckpointError> {
    config.bool("tie_word_embeddings")
}

/// Without what frequencies are divided by: see `rope_divisors`.
pub(crate) fn parse(
    config: &ConfigJson,
    architecture: &Architecture,
    facts: &TensorFacts,
    roles: TokenRoles,
) -> Result<ModelSpec, CheckpointError> {
    refuse_unsupported(config)?;
    let sizes = Sizes::parse(config, &size_keys())?;
    check_vocabulary(config, facts.vocab_size)?;
    let rope = Rope::parse(config, sizes.heads.head_dim())?;
    Ok(ModelSpec {
        name: config.str("_name_or_path")?.unwrap_or_default().to_owned(),
        context_len: context_in_window(config, sizes.context_len)?,
        rms_norm_eps: config.positive_float("rms_norm_eps", Some(1e-6))?,
        rope_theta: rope.theta,
        rope_dim: rope.dim,
        ..sizes.into_spec(architecture, facts, roles)
    })
}

fn size_keys() -> SizeKeys {
    let key = str::to_owned;
    SizeKeys {
        num_layers: key("num_hidden_layers"),
        hidden_size: key("hidden_size"),
        intermediate_size: key("intermediate_size"),
        num_q_heads: key("num_attention_heads"),
        num_kv_heads: key("num_key_value_heads"),
        head_dim: key("head_dim"),
        context_len: key("max_position_embeddings"),
    }
}

/// What would change the arithmetic in ways that are not implemented.
fn refuse_unsupported(config: &ConfigJson) -> Result<(), CheckpointError> {
    let key = "hidden_act";
    if let Some(name) = config.str(key)?.filter(|name| *name != "silu") {
        return Err(unsupported(key, format!("{name:?}"), "this activation", "silu"));
    }
    if let Some(quantization) = config.part("quantization_config")? {
        let method = quantization.str("quant_method")?.unwrap_or("unknown");
        let supported = "f32, f16 and bf16 tensors, or a GGUF file";
        return Err(unsupported(
            "quantization_config.quant_method",
            format!("{method:?}"),
            "this quantization",
            supported,
        ));
    }
    Ok(())
}

/// Within the window, a sliding window is none. Qwen's configs name one and say that they do not use it.
fn context_in_window(config: &ConfigJson, context_len: u32) -> Result<u32, CheckpointError> {
    let is_used = config.bool("use_sliding_window")?.unwrap_or(true);
    let window = config.u32("sliding_window")?.filter(|window| is_used && *window > 0);
    Ok(window.map_or(context_len, |window| window.min(context_len)))
}

fn check_vocabulary(config: &ConfigJson, vocab_size: u32) -> Result<(), CheckpointError> {
    let key = "vocab_size";
    match config.u32(key)?.filter(|declared| *declared != vocab_size) {
        Some(declared) => {
            let expected = format!("the {vocab_size} rows of the token embedding");
            Err(bad_value(key, declared, expected))
        }
        None => Ok(()),
    }
}

/// One for each pair, or none.
///
/// Call when the tensors have the spec's shapes: their number is bounded by the files then.
pub(crate) fn rope_divisors(config: &ConfigJson, spec: &ModelSpec) -> Result<Vec<f32>, CheckpointError> {
    match rope_part(config)? {
        Some((name, part)) => parse_divisors(&part, spec).map_err(|error| within(error, name)),
        None => Ok(Vec::new()),
    }
}

fn rope_part(config: &ConfigJson) -> Result<Option<(&'static str, ConfigJson)>, CheckpointError> {
    for name in ROPE_PARTS {
        if let Some(part) = config.part(name)? {
            return Ok(Some((name, part)));
        }
    }
    Ok(None)
}

/// Its constants stand in the config, or in its rope's part.
struct Rope {
    theta: f32,
    dim: u32,
}

impl Rope {
    fn parse(config: &ConfigJson, head_dim: u32) -> Result<Self, CheckpointError> {
        let mut rope = Self {
            theta: config.positive_float("rope_theta", Some(10_000.0))?,
            dim: parse_dim(config, head_dim)?,
        };
        if let Some((name, part)) = rope_part(config)? {
            let in_part = |error| within(error, name);
            rope.theta = part.positive_float("rope_theta", Some(rope.theta)).map_err(in_part)?;
            if part.get("partial_rotary_factor").is_some() {
                rope.dim = parse_dim(&part, head_dim).map_err(in_part)?;
            }
        }
        Ok(rope)
    }
}

fn parse_dim(config: &ConfigJson, head_dim: u32) -> Result<u32, CheckpointError> {
    let key = "partial_rotary_factor";
    let factor = config.positive_float(key, Some(1.0))?;
    check_rope_dim(key, (head_dim as f32 * factor) as u32, head_dim)
}

fn parse_divisors(part: &ConfigJson, spec: &ModelSpec) -> Result<Vec<f32>, CheckpointError> {
    // Older files call it `type`.
    let key = if part.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
    match part.str(key)?.unwrap_or("default") {
        "default" => Ok(Vec::new()),
        "linear" => Ok(vec![part.positive_float("factor", None)?; spec.rope_dim as usize / 2]),
        "llama3" => {
            let value = |key: &str| part.positive_float(key, None).map(f64::from);
            let scaling = Llama3Scaling {
                factor: value("factor")?,
                low_freq_factor: value("low_freq_factor")?,
                high_freq_factor: value("high_freq_factor")?,
                original_context_len: value("original_max_position_embeddings")?,
            };
            check_divisors("factor", scaling.divisors(f64::from(spec.rope_theta), spec.rope_dim))
        }
        other => Err(unsupported(
            key,
            format!("{other:?}"),
            "this rope scaling",
            "default, linear, llama3",
        )),
    }
}

/// The same error, of a key inside `part`.
fn within(mut error: CheckpointError, part: &str) -> CheckpointError {
    if let CheckpointError::BadValue { key, .. }
    | CheckpointError::MissingKey { key }
    | CheckpointError::Unsupported { key, .. } = &mut error
    {
        *key = format!("{part}.{key}");
    }
    error
}
