//! Models of grouped heads and a gated FFN in every layer: Llama, Mistral, Qwen2, Qwen3.

use kvasir_kv::HeadLayout;

use super::{ConfigError, PublishedConfig, Shape};
use crate::lab::memory::attention::Attention;

pub(super) fn read(config: &PublishedConfig) -> Result<Shape, ConfigError> {
    let hidden_size = config.count("hidden_size")?;
    let num_q_heads = config.count("num_attention_heads")?;
    let num_kv_heads = config.optional("num_key_value_heads")?.unwrap_or(num_q_heads);
    let head_dim = match config.optional("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_q_heads) => hidden_size / num_q_heads,
        None => return Err(ConfigError::Missing { key: "head_dim" }),
    };
    let shape = Shape {
        num_layers: config.count("num_hidden_layers")?,
        hidden_size,
        vocab_size: config.count("vocab_size")?,
        context_len: config.count("max_position_embeddings")?,
        attention: Attention::Grouped(HeadLayout::new(
            num_q_heads as u32,
            num_kv_heads as u32,
            head_dim as u32,
        )?),
        parameters: 0,
    };
    let tied = config.flag("tie_word_embeddings")?;
    let layer = attention_parameters(
        config,
        hidden_size,
        [num_q_heads, num_kv_heads].map(|heads| heads * head_dim),
    )? + head_norm_parameters(config, head_dim)
        + ffn_parameters(config, hidden_size)?
        + 2 * u128::from(hidden_size);
    let vocab = Shape::vocab_parameters(shape.vocab_size, hidden_size, tied);
    Ok(Shape {
        parameters: vocab + u128::from(shape.num_layers) * layer + u128::from(hidden_size),
        ..shape
    })
}

/// Projections of queries, keys, values and the output, with the biases that the kind of model has: Qwen2 always has them
/// at the first three, the others have them at all four where `attention_bias` says so.
fn attention_parameters(
    config: &PublishedConfig,
    hidden_size: u64,
    [q_width, kv_width]: [u64; 2],
) -> Result<u128, ConfigError> {
    let [hidden_size, q_width, kv_width] = [hidden_size, q_width, kv_width].map(u128::from);
    let weights = 2 * hidden_size * (q_width + kv_width);
    let biases = match (config.text("model_type"), config.flag("attention_bias")?) {
        (Some("qwen2"), _) => q_width + 2 * kv_width,
        (_, true) => q_width + 2 * kv_width + hidden_size,
        (_, false) => 0,
    };
    Ok(weights + biases)
}

/// Qwen3 normalizes the queries and keys of each head.
fn head_norm_parameters(config: &PublishedConfig, head_dim: u64) -> u128 {
    match config.text("model_type") {
        Some("qwen3") => 2 * u128::from(head_dim),
        _ => 0,
    }
}

fn ffn_parameters(config: &PublishedConfig, hidden_size: u64) -> Result<u128, ConfigError> {
    let [width, hidden_size] = [config.count("intermediate_size")?, hidden_size].map(u128::from);
    let biases = match config.flag("mlp_bias")? {
        true => 2 * width + hidden_size,
        false => 0,
    };
    Ok(3 * width * hidden_size + biases)
}
