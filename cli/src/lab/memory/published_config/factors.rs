//! T6, the model of the paper on tensor product attention, by the keys that its authors' code has. Norms have no weights,
//! and the output head is the embedding.

use super::{ConfigError, PublishedConfig, Shape};
use crate::lab::memory::attention::Attention;

pub(super) fn read(config: &PublishedConfig) -> Result<Shape, ConfigError> {
    let hidden_size = config.count("n_embd")?;
    let num_q_heads = config.count("n_head")?;
    let (head_dim, rank) = (config.count("head_dim")?, config.count("rank")?);
    let num_layers = config.count("n_layer")?;
    let vocab_size = config.count("vocab_size")?;
    let [hidden, heads, dim] = [hidden_size, num_q_heads, head_dim].map(u128::from);
    let factors = 2 * u128::from(rank) * hidden * (heads + dim);
    // Without a rank, only K and V are factors.
    let queries = match config.optional("q_rank")? {
        Some(q_rank) => u128::from(q_rank) * hidden * (heads + dim),
        None => hidden * heads * dim,
    };
    let output = heads * dim * hidden;
    let ffn = 3 * hidden * (8 * hidden / 3);
    let layers = u128::from(num_layers) * (queries + factors + output + ffn);
    Ok(Shape {
        num_layers,
        hidden_size,
        vocab_size,
        context_len: config.count("block_size")?,
        attention: Attention::TensorProduct {
            num_q_heads: num_q_heads as u32,
            head_dim: head_dim as u32,
            k_rank: rank as u32,
            v_rank: rank as u32,
        },
        parameters: Shape::vocab_parameters(vocab_size, hidden_size, true) + layers,
    })
}
