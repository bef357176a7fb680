//! What a model is: the sizes and constants that everything else is derived from.
//!
//! A `ModelSpec` that came out of `Checkpoint::open` is consistent: its heads divide, its widths fit the arithmetic's
//! sub-blocks, and the checkpoint has all its tensors. `gguf_spec` and `config_json` read it.

use kvasir_kv::{HeadLayout, TokenId};

use crate::{
    Architecture, CheckpointError, RotatedPairs, TokenRoles,
    facts::{Facts, bad_value},
};

/// No model reaches this context; larger values are a mistake that would size tables.
const CONTEXT_LEN_MAX: u32 = 1 << 24;
/// Columns that the kernels rotate together.
const ROPE_DIM_STEP: u32 = 16;

#[derive(Clone, PartialEq, Debug)]
pub struct ModelSpec {
    /// GGUF's name of it.
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
    /// Longest sequence, in tokens, that the model was trained for and that is computed right: a sliding window ends it.
    pub context_len: u32,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// How many of the first dimensions of a head are rotated; a multiple of 16, at most `head_dim`.
    pub rope_dim: u32,
    /// How the checkpoint pairs them.
    pub rope_pairs: RotatedPairs,
    /// What the frequency of each pair is divided by; empty where it is not.
    pub rope_divisors: Vec<f32>,
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

/// The facts that are read off the tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorFacts {
    pub vocab_size: u32,
    pub tied_head: bool,
}

/// What the sizes of a model are called in its checkpoint.
pub(crate) struct SizeKeys {
    pub num_layers: String,
    pub hidden_size: String,
    pub intermediate_size: String,
    pub num_q_heads: String,
    pub num_kv_heads: String,
    pub head_dim: String,
    pub context_len: String,
}

/// The sizes that both kinds of checkpoint have.
pub(crate) struct Sizes {
    pub num_layers: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub heads: HeadLayout,
    pub context_len: u32,
}

impl Sizes {
    pub(crate) fn parse(facts: &dyn Facts, keys: &SizeKeys) -> Result<Self, CheckpointError> {
        let sizes = Self {
            num_layers: facts.positive(&keys.num_layers)?,
            hidden_size: facts.positive(&keys.hidden_size)?,
            intermediate_size: facts.positive(&keys.intermediate_size)?,
            heads: parse_heads(facts, keys)?,
            context_len: facts.positive(&keys.context_len)?,
        };
        if sizes.context_len > CONTEXT_LEN_MAX {
            let expected = format!("at most {CONTEXT_LEN_MAX}");
            return Err(bad_value(&keys.context_len, sizes.context_len, expected));
        }
        check_width("hidden size", &keys.hidden_size, sizes.hidden_size)?;
        check_width("intermediate size", &keys.intermediate_size, sizes.intermediate_size)?;
        Ok(sizes)
    }

    /// A spec with everything else as it usually is: rotated whole heads in halves, nothing divided, no name.
    pub(crate) fn into_spec(self, architecture: &Architecture, facts: &TensorFacts, roles: TokenRoles) -> ModelSpec {
        ModelSpec {
            architecture: architecture.name.to_owned(),
            name: String::new(),
            num_layers: self.num_layers,
            hidden_size: self.hidden_size,
            num_q_heads: self.heads.num_q_heads(),
            num_kv_heads: self.heads.num_kv_heads(),
            head_dim: self.heads.head_dim(),
            intermediate_size: self.intermediate_size,
            vocab_size: facts.vocab_size,
            context_len: self.context_len,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_dim: self.heads.head_dim(),
            rope_pairs: RotatedPairs::Halves,
            rope_divisors: Vec::new(),
            tied_head: facts.tied_head,
            bos_token: roles.bos_token,
            eos_token: roles.eos_token,
            eot_token: roles.eot_token,
            end_tokens: roles.end_tokens,
            add_bos: roles.add_bos,
        }
    }
}

fn parse_heads(facts: &dyn Facts, keys: &SizeKeys) -> Result<HeadLayout, CheckpointError> {
    let hidden_size = facts.positive(&keys.hidden_size)?;
    let num_q_heads = facts.positive(&keys.num_q_heads)?;
    // Absent means multi-head attention: each query head has its own KV head.
    let num_kv_heads = facts.u32(&keys.num_kv_heads)?.unwrap_or(num_q_heads);
    let head_dim = match facts.u32(&keys.head_dim)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_q_heads) => hidden_size / num_q_heads,
        None => {
            let expected = format!("a divisor of the hidden size {hidden_size}, or {}", keys.head_dim);
            return Err(bad_value(&keys.num_q_heads, num_q_heads, expected));
        }
    };
    // Widths are u32 from here on; the products of a hostile file are not.
    if num_q_heads.checked_mul(head_dim).is_none() {
        let expected = format!("heads of {head_dim} columns in less than 2^32 columns");
        return Err(bad_value(&keys.num_q_heads, num_q_heads, expected));
    }
    HeadLayout::new(num_q_heads, num_kv_heads, head_dim).map_err(|source| CheckpointError::Heads { source })
}

pub(crate) fn check_rope_dim(key: &str, rope_dim: u32, head_dim: u32) -> Result<u32, CheckpointError> {
    if rope_dim == 0 || !rope_dim.is_multiple_of(ROPE_DIM_STEP) || rope_dim > head_dim {
        let expected = format!("a multiple of {ROPE_DIM_STEP} up to the head's dimension {head_dim}");
        return Err(bad_value(key, rope_dim, expected));
    }
    Ok(rope_dim)
}

/// Divisors come from strangers too.
pub(crate) fn check_divisors(what: &str, divisors: Vec<f32>) -> Result<Vec<f32>, CheckpointError> {
    match divisors
        .iter()
        .find(|divisor| !(divisor.is_finite() && **divisor > 0.0))
    {
        Some(divisor) => Err(bad_value(what, divisor, "finite numbers above 0")),
        None => Ok(divisors),
    }
}

fn check_width(what: &'static str, key: &str, value: u32) -> Result<(), CheckpointError> {
    if value.is_multiple_of(32) {
        return Ok(());
    }
    Err(CheckpointError::Width {
        what,
        key: key.to_owned(),
        value,
    })
}
