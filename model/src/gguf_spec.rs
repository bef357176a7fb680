//! The spec of a model from a GGUF file's metadata.

use crate::{
    Architecture, CheckpointError, Metadata, ModelSpec, TokenRoles,
    facts::{Facts, bad_value, missing, unsupported},
    spec::{SizeKeys, Sizes, TensorFacts, check_divisors, check_rope_dim},
    tensors::ROPE_DIVISORS,
};

const ARCHITECTURE: &str = "general.architecture";

pub(crate) fn architecture(metadata: &Metadata<'_>) -> Result<&'static Architecture, CheckpointError> {
    let name = metadata.str(ARCHITECTURE)?.ok_or_else(|| missing(ARCHITECTURE))?;
    Architecture::of_gguf(name).ok_or_else(|| CheckpointError::Architecture {
        name: name.to_owned(),
        supported: Architecture::supported(),
    })
}

/// Without what frequencies are divided by: see `rope_divisors`.
pub(crate) fn parse(
    metadata: &Metadata<'_>,
    architecture: &Architecture,
    facts: &TensorFacts,
) -> Result<ModelSpec, CheckpointError> {
    let keys = Keys(architecture.name);
    refuse_unsupported(metadata, &keys)?;
    let sizes = Sizes::parse(metadata, &keys.sizes())?;
    let head_dim = sizes.heads.head_dim();
    check_value_length(metadata, &keys, head_dim)?;
    check_vocabulary(metadata, &keys, facts.vocab_size)?;
    let roles = TokenRoles::from_metadata(metadata, facts.vocab_size)?;
    Ok(ModelSpec {
        name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
        context_len: context_in_window(metadata, &keys, sizes.context_len)?,
        rms_norm_eps: metadata.positive_float(&keys.of("attention.layer_norm_rms_epsilon"), None)?,
        rope_theta: metadata.positive_float(&keys.of("rope.freq_base"), Some(10_000.0))?,
        rope_dim: parse_rope_dim(metadata, &keys, head_dim)?,
        rope_pairs: architecture.gguf_pairs,
        ..sizes.into_spec(architecture, facts, roles)
    })
}

/// Keys begin with the architecture's name.
struct Keys<'a>(&'a str);

impl Keys<'_> {
    fn of(&self, key: &str) -> String {
        format!("{}.{key}", self.0)
    }

    fn sizes(&self) -> SizeKeys {
        SizeKeys {
            num_layers: self.of("block_count"),
            hidden_size: self.of("embedding_length"),
            intermediate_size: self.of("feed_forward_length"),
            num_q_heads: self.of("attention.head_count"),
            num_kv_heads: self.of("attention.head_count_kv"),
            head_dim: self.of("attention.key_length"),
            context_len: self.of("context_length"),
        }
    }
}

/// Keys that change the arithmetic in ways that are not implemented: ignoring them would give wrong answers.
fn refuse_unsupported(metadata: &Metadata<'_>, keys: &Keys<'_>) -> Result<(), CheckpointError> {
    let key = keys.of("expert_count");
    if let Some(count) = metadata.u32(&key)?.filter(|count| *count != 0) {
        return Err(unsupported(&key, count, "a mixture of experts", "0"));
    }
    let key = "split.count";
    if let Some(count) = metadata.u32(key)?.filter(|count| *count > 1) {
        let supported = "one whole file (gguf-split --merge)";
        return Err(unsupported(key, count, "a split file", supported));
    }
    for key in ["attention.scale", "logit_scale", "embedding_scale", "residual_scale"].map(|key| keys.of(key)) {
        if let Some(scale) = metadata.f32(&key)?.filter(|scale| *scale != 0.0) {
            return Err(unsupported(&key, scale, "a scale of its own", "no such key"));
        }
    }
    Ok(())
}

/// Within the window, a sliding window is none.
fn context_in_window(metadata: &Metadata<'_>, keys: &Keys<'_>, context_len: u32) -> Result<u32, CheckpointError> {
    let window = metadata.u32(&keys.of("attention.sliding_window"))?;
    Ok(window
        .filter(|window| *window > 0)
        .map_or(context_len, |window| window.min(context_len)))
}

fn check_value_length(metadata: &Metadata<'_>, keys: &Keys<'_>, head_dim: u32) -> Result<(), CheckpointError> {
    let key = keys.of("attention.value_length");
    match metadata.u32(&key)?.filter(|len| *len != head_dim) {
        Some(len) => Err(bad_value(&key, len, format!("the length of a key, {head_dim}"))),
        None => Ok(()),
    }
}

fn parse_rope_dim(metadata: &Metadata<'_>, keys: &Keys<'_>, head_dim: u32) -> Result<u32, CheckpointError> {
    let key = keys.of("rope.dimension_count");
    check_rope_dim(&key, metadata.u32(&key)?.unwrap_or(head_dim), head_dim)
}

/// One for each pair, or none. Linear scaling divides all frequencies alike, besides what the file's own divisors do.
///
/// Call when the tensors have the spec's shapes: their number is bounded by the file then.
pub(crate) fn rope_divisors(
    metadata: &Metadata<'_>,
    spec: &ModelSpec,
    own: Option<Vec<f32>>,
) -> Result<Vec<f32>, CheckpointError> {
    let mut divisors = own.unwrap_or_default();
    let factor = linear_factor(metadata, &Keys(&spec.architecture))?;
    if factor != 1.0 {
        divisors.resize(spec.rope_dim as usize / 2, 1.0);
        divisors.iter_mut().for_each(|divisor| *divisor *= factor);
    }
    check_divisors(ROPE_DIVISORS, divisors)
}

fn linear_factor(metadata: &Metadata<'_>, keys: &Keys<'_>) -> Result<f32, CheckpointError> {
    let key = keys.of("rope.scaling.type");
    let scaling = metadata.str(&key)?;
    if let Some(scaling) = scaling.filter(|scaling| !["none", "linear"].contains(scaling)) {
        return Err(unsupported(
            &key,
            format!("{scaling:?}"),
            "this rope scaling",
            "none, linear, or a rope_freqs.weight tensor",
        ));
    }
    let mut factor = 1.0;
    // Files from before `rope.scaling.type` have the first key alone.
    for key in ["rope.scale_linear", "rope.scaling.factor"].map(|key| keys.of(key)) {
        if scaling != Some("none") && metadata.f32(&key)?.is_some_and(|factor| factor != 0.0) {
            factor = metadata.positive_float(&key, None)?;
        }
    }
    Ok(factor)
}

/// A tokenizer whose tokens are not the model's rows would give wrong answers without an error.
fn check_vocabulary(metadata: &Metadata<'_>, keys: &Keys<'_>, vocab_size: u32) -> Result<(), CheckpointError> {
    let num_tokens = metadata
        .strings("tokenizer.ggml.tokens")?
        .map(|tokens| tokens.len() as u64);
    let declared_key = keys.of("vocab_size");
    let declared = metadata.u32(&declared_key)?.map(u64::from);
    for (key, found) in [("tokenizer.ggml.tokens", num_tokens), (&declared_key, declared)] {
        if let Some(found) = found.filter(|found| *found != u64::from(vocab_size)) {
            let expected = format!("the {vocab_size} rows of the token embedding");
            return Err(bad_value(key, found, expected));
        }
    }
    Ok(())
}
