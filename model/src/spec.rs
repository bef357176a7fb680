//! What a model is: the sizes and constants that everything else is derived from.
//!
//! A `ModelSpec` that came out of `Checkpoint::open` is consistent: its heads divide, its widths fit the arithmetic's
//! sub-blocks, and the checkpoint has all its tensors.

use kvasir_kv::{HeadLayout, TokenId};

use crate::{CheckpointError, Metadata, TokenRoles};

/// No model reaches this context; larger values are a mistake that would size tables.
const CONTEXT_LEN_MAX: u32 = 1 << 24;

#[derive(Clone, PartialEq, Debug)]
pub struct ModelSpec {
    pub architecture: String,
    /// What the file calls itself; may be empty.
    pub name: String,
    pub num_layers: u32,
    pub hidden_size: u32,
    pub num_q_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub intermediate_size: u32,
    pub vocab_size: u32,
    /// Longest sequence, in tokens, that the model was trained for.
    pub context_len: u32,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// How many of the first dimensions of a head are rotated; even, at most `head_dim`.
    pub rope_dim: u32,
    /// The output head is the token embedding.
    pub tied_head: bool,
    pub bos_token: Option<TokenId>,
    pub eos_token: Option<TokenId>,
    pub eot_token: Option<TokenId>,
    /// Every token that ends an answer, ascending, each once.
    pub end_tokens: Vec<TokenId>,
    /// Prompts begin with `bos_token`.
    pub add_bos: bool,
}

/// The facts that are read off the tensors, not the metadata.
pub(crate) struct TensorFacts {
    pub vocab_size: u32,
    pub tied_head: bool,
}

impl ModelSpec {
    pub(crate) fn parse(metadata: &Metadata<'_>, facts: &TensorFacts) -> Result<Self, CheckpointError> {
        refuse_unsupported(metadata)?;
        let heads = parse_heads(metadata)?;
        let vocab_size = facts.vocab_size;
        let roles = TokenRoles::from_metadata(metadata, vocab_size)?;
        let spec = Self {
            architecture: "llama".to_owned(),
            name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
            num_layers: positive(metadata, "llama.block_count")?,
            hidden_size: positive(metadata, "llama.embedding_length")?,
            num_q_heads: heads.num_q_heads(),
            num_kv_heads: heads.num_kv_heads(),
            head_dim: heads.head_dim(),
            intermediate_size: positive(metadata, "llama.feed_forward_length")?,
            vocab_size,
            context_len: parse_context_len(metadata)?,
            rms_norm_eps: positive_float(metadata, "llama.attention.layer_norm_rms_epsilon", None)?,
            rope_theta: positive_float(metadata, "llama.rope.freq_base", Some(10_000.0))?,
            rope_dim: parse_rope_dim(metadata, heads.head_dim())?,
            tied_head: facts.tied_head,
            bos_token: roles.bos_token,
            eos_token: roles.eos_token,
            eot_token: roles.eot_token,
            end_tokens: roles.end_tokens,
            add_bos: roles.add_bos,
        };
        check_vocabulary(metadata, vocab_size)?;
        check_width("hidden size (llama.embedding_length)", spec.hidden_size)?;
        check_width("intermediate size (llama.feed_forward_length)", spec.intermediate_size)?;
        Ok(spec)
    }
}

/// Keys that change the arithmetic in ways that are not implemented: ignoring them would give wrong answers.
fn refuse_unsupported(metadata: &Metadata<'_>) -> Result<(), CheckpointError> {
    let refuse = |key: &str, value: String, what, supported| {
        Err(CheckpointError::Unsupported {
            key: key.to_owned(),
            value,
            what,
            supported,
        })
    };
    if let Some(scaling) = metadata
        .str("llama.rope.scaling.type")?
        .filter(|scaling| *scaling != "none")
    {
        return refuse(
            "llama.rope.scaling.type",
            format!("{scaling:?}"),
            "rope scaling",
            "none",
        );
    }
    for key in ["llama.rope.scale_linear", "llama.rope.scaling.factor"] {
        if let Some(scale) = metadata.f32(key)?.filter(|scale| *scale != 1.0 && *scale != 0.0) {
            return refuse(key, scale.to_string(), "rope scaling", "1.0");
        }
    }
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        if let Some(count) = metadata.u32(key)?.filter(|count| *count != 0) {
            return refuse(key, count.to_string(), "a mixture of experts or a sliding window", "0");
        }
    }
    if let Some(count) = metadata.u32("split.count")?.filter(|count| *count > 1) {
        return refuse(
            "split.count",
            count.to_string(),
            "a split file",
            "one whole file (gguf-split --merge)",
        );
    }
    for key in [
        "llama.attention.scale",
        "llama.logit_scale",
        "llama.embedding_scale",
        "llama.residual_scale",
    ] {
        if let Some(scale) = metadata.f32(key)?.filter(|scale| *scale != 0.0) {
            return refuse(key, scale.to_string(), "a scale of its own", "no such key");
        }
    }
    Ok(())
}

fn parse_heads(metadata: &Metadata<'_>) -> Result<HeadLayout, CheckpointError> {
    let hidden_size = positive(metadata, "llama.embedding_length")?;
    let num_q_heads = positive(metadata, "llama.attention.head_count")?;
    // Absent means multi-head attention: each query head has its own KV head.
    let num_kv_heads = metadata.u32("llama.attention.head_count_kv")?.unwrap_or(num_q_heads);
    let head_dim = match metadata.u32("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_q_heads) => hidden_size / num_q_heads,
        None => {
            return Err(CheckpointError::BadValue {
                key: "llama.attention.head_count".to_owned(),
                value: num_q_heads.to_string(),
                expected: format!("a divisor of the hidden size {hidden_size}, or llama.attention.key_length"),
            });
        }
    };
    if let Some(value_len) = metadata
        .u32("llama.attention.value_length")?
        .filter(|len| *len != head_dim)
    {
        return Err(CheckpointError::BadValue {
            key: "llama.attention.value_length".to_owned(),
            value: value_len.to_string(),
            expected: format!("the length of a key, {head_dim}"),
        });
    }
    // Widths are u32 from here on; the products of a hostile file are not.
    if num_q_heads.checked_mul(head_dim).is_none() {
        return Err(CheckpointError::BadValue {
            key: "llama.attention.head_count".to_owned(),
            value: num_q_heads.to_string(),
            expected: format!("heads of {head_dim} columns in less than 2^32 columns"),
        });
    }
    HeadLayout::new(num_q_heads, num_kv_heads, head_dim).map_err(|source| CheckpointError::Heads { source })
}

fn parse_context_len(metadata: &Metadata<'_>) -> Result<u32, CheckpointError> {
    let key = "llama.context_length";
    let context_len = positive(metadata, key)?;
    if context_len > CONTEXT_LEN_MAX {
        let expected = format!("at most {CONTEXT_LEN_MAX}");
        return Err(CheckpointError::BadValue {
            key: key.to_owned(),
            value: context_len.to_string(),
            expected,
        });
    }
    Ok(context_len)
}

fn parse_rope_dim(metadata: &Metadata<'_>, head_dim: u32) -> Result<u32, CheckpointError> {
    let key = "llama.rope.dimension_count";
    let rope_dim = metadata.u32(key)?.unwrap_or(head_dim);
    if rope_dim == 0 || !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
        let expected = format!("an even number from 2 to the head's dimension {head_dim}");
        return Err(CheckpointError::BadValue {
            key: key.to_owned(),
            value: rope_dim.to_string(),
            expected,
        });
    }
    Ok(rope_dim)
}

/// A tokenizer whose tokens are not the model's rows would give wrong answers without an error.
fn check_vocabulary(metadata: &Metadata<'_>, vocab_size: u32) -> Result<(), CheckpointError> {
    let expected = || format!("the {vocab_size} rows of the token embedding");
    let num_tokens = metadata
        .strings("tokenizer.ggml.tokens")?
        .map(|tokens| tokens.len() as u64);
    let declared = metadata.u32("llama.vocab_size")?.map(u64::from);
    for (key, found) in [("tokenizer.ggml.tokens", num_tokens), ("llama.vocab_size", declared)] {
        if let Some(found) = found.filter(|found| *found != u64::from(vocab_size)) {
            let value = found.to_string();
            return Err(CheckpointError::BadValue {
                key: key.to_owned(),
                value,
                expected: expected(),
            });
        }
    }
    Ok(())
}

fn check_width(what: &'static str, value: u32) -> Result<(), CheckpointError> {
    if value.is_multiple_of(32) {
        Ok(())
    } else {
        Err(CheckpointError::Width { what, value })
    }
}

fn positive(metadata: &Metadata<'_>, key: &str) -> Result<u32, CheckpointError> {
    match metadata.u32(key)? {
        None => Err(CheckpointError::MissingKey { key: key.to_owned() }),
        Some(0) => {
            let (key, value) = (key.to_owned(), "0".to_owned());
            Err(CheckpointError::BadValue {
                key,
                value,
                expected: "at least 1".to_owned(),
            })
        }
        Some(value) => Ok(value),
    }
}

fn positive_float(metadata: &Metadata<'_>, key: &str, default: Option<f32>) -> Result<f32, CheckpointError> {
    let value = metadata
        .f32(key)?
        .or(default)
        .ok_or_else(|| CheckpointError::MissingKey { key: key.to_owned() })?;
    if !value.is_finite() || value <= 0.0 {
        let expected = "a finite number above 0".to_owned();
        return Err(CheckpointError::BadValue {
            key: key.to_owned(),
            value: value.to_string(),
            expected,
        });
    }
    Ok(value)
}
