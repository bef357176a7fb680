//! DeepSeek-V2 and V3: a latent instead of heads, and experts instead of an FFN in all but the first layers.
//!
//! The module that predicts a second token, which V3 ships besides, is left out: it is not needed to answer.

use super::{ConfigError, PublishedConfig, Shape};
use crate::lab::memory::attention::Attention;

pub(super) fn read(config: &PublishedConfig) -> Result<Shape, ConfigError> {
    let hidden_size = config.count("hidden_size")?;
    let num_layers = config.count("num_hidden_layers")?;
    let vocab_size = config.count("vocab_size")?;
    let dense_layers = config.optional_or_none("first_k_dense_replace")?.min(num_layers);
    // With another one, experts are in every second layer or so.
    if let Some(freq) = config.optional("moe_layer_freq")?.filter(|&freq| freq != 1) {
        return Err(ConfigError::BadValue {
            key: "moe_layer_freq",
            value: freq.into(),
            expected: "1",
        });
    }
    let hidden = u128::from(hidden_size);
    let ffn = 3 * hidden * u128::from(config.count("intermediate_size")?);
    let parameters = Shape::vocab_parameters(vocab_size, hidden_size, config.flag("tie_word_embeddings")?)
        + u128::from(num_layers) * (attention_parameters(config, hidden)? + 2 * hidden)
        + u128::from(dense_layers) * ffn
        + u128::from(num_layers - dense_layers) * expert_parameters(config, hidden)?
        + hidden;
    Ok(Shape {
        num_layers,
        hidden_size,
        vocab_size,
        context_len: config.count("max_position_embeddings")?,
        attention: Attention::Latent {
            num_q_heads: config.count("num_attention_heads")? as u32,
            head_dim: config.count("v_head_dim")? as u32,
            latent_dim: config.count("kv_lora_rank")? as u32,
            rope_dim: config.count("qk_rope_head_dim")? as u32,
        },
        parameters,
    })
}

/// Queries come through a latent of their own, with a norm, or from one projection (as in V2-Lite). The latent of K and V
/// has a norm; from it all heads' keys, but for the rotated part, and values are made.
fn attention_parameters(config: &PublishedConfig, hidden: u128) -> Result<u128, ConfigError> {
    let count = |key| config.count(key).map(u128::from);
    let num_heads = count("num_attention_heads")?;
    let (nope_dim, rope_dim) = (count("qk_nope_head_dim")?, count("qk_rope_head_dim")?);
    let (value_dim, latent_dim) = (count("v_head_dim")?, count("kv_lora_rank")?);
    let q_width = num_heads * (nope_dim + rope_dim);
    let biased = config.flag("attention_bias")?;
    let bias = |width: u128| if biased { width } else { 0 };
    let queries = match config.optional("q_lora_rank")?.map(u128::from) {
        Some(q_latent_dim) => hidden * q_latent_dim + bias(q_latent_dim) + q_latent_dim + q_latent_dim * q_width,
        None => hidden * q_width,
    };
    let latent = hidden * (latent_dim + rope_dim) + bias(latent_dim + rope_dim) + latent_dim;
    let keys_and_values = latent_dim * num_heads * (nope_dim + value_dim);
    let output = num_heads * value_dim * hidden + bias(hidden);
    Ok(queries + latent + keys_and_values + output)
}

/// Routed and shared experts, and the gate that routes: in V3 with a bias for each expert that evens out their load.
fn expert_parameters(config: &PublishedConfig, hidden: u128) -> Result<u128, ConfigError> {
    let Some(routed) = config.optional("n_routed_experts")?.map(u128::from) else {
        return Err(ConfigError::Missing {
            key: "n_routed_experts",
        });
    };
    let shared = u128::from(config.optional_or_none("n_shared_experts")?);
    let expert = 3 * hidden * u128::from(config.count("moe_intermediate_size")?);
    let correction = match config.text("topk_method") {
        Some("noaux_tc") => routed,
        _ => 0,
    };
    Ok((routed + shared) * expert + routed * hidden + correction)
}

impl PublishedConfig {
    /// A number from 0 on, 0 where it is absent.
    fn optional_or_none(&self, key: &'static str) -> Result<u64, ConfigError> {
        match self.0.get(key).and_then(serde_json::Value::as_u64) {
            Some(0) => Ok(0),
            _ => Ok(self.optional(key)?.unwrap_or(0)),
        }
    }
}
