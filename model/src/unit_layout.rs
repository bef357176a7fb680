//! A checkpoint's cut into units, with the bytes that each unit makes a rank read per token.

use kvasir_kv::{HeadLayout, ModelShape, UnitBytes, UnitLayout};

use crate::{Checkpoint, CheckpointError, WeightMode};

impl Checkpoint {
    /// The same for every plan. Bytes are those of the weights as `mode` keeps them in memory.
    pub fn unit_layout(&self, mode: WeightMode) -> Result<UnitLayout, CheckpointError> {
        let spec = self.spec();
        let heads = HeadLayout::new(spec.num_q_heads, spec.num_kv_heads, spec.head_dim)
            .map_err(|source| CheckpointError::Heads { source })?;
        let shape = ModelShape {
            num_layers: spec.num_layers,
            hidden_size: spec.hidden_size,
            heads,
            intermediate_size: spec.intermediate_size,
            vocab_size: spec.vocab_size,
            context_len: spec.context_len,
        };
        Ok(UnitLayout::new(shape, self.unit_bytes(mode)?))
    }

    fn unit_bytes(&self, mode: WeightMode) -> Result<UnitBytes, CheckpointError> {
        let spec = self.spec();
        let stored = |name: &str| -> Result<u64, CheckpointError> {
            let tensor = self.tensor(name)?;
            let weight_type = mode.weight_type(tensor.weight_type);
            Ok(weight_type.row_bytes(tensor.cols) as u64 * tensor.rows as u64)
        };
        let tensors = self.tensors();
        let vocab = u64::from(spec.vocab_size);
        let norm_bytes = u64::from(spec.hidden_size) * 4;
        let mut bytes = UnitBytes {
            attention: 0,
            ffn_per_column: 0,
            vocab_per_row: stored(&tensors.output)? / vocab,
            embedding_per_row: if spec.tied_head {
                0
            } else {
                stored(&tensors.token_embedding)? / vocab
            },
            replicated: norm_bytes * (2 * u64::from(spec.num_layers) + 1),
        };
        let (mut attention, mut ffn) = (0, 0);
        for layer in &tensors.layers {
            let sometimes = [&layer.q_norm, &layer.k_norm, &layer.biases.o, &layer.biases.down];
            for vector in sometimes.into_iter().flatten() {
                bytes.replicated += self.tensor(vector)?.cols as u64 * 4;
            }
            attention += stored(&layer.wq)? + stored(&layer.wk)? + stored(&layer.wv)? + stored(&layer.wo)?;
            ffn += stored(&layer.gate)? + stored(&layer.up)? + stored(&layer.down)?;
        }
        bytes.attention = attention / u64::from(spec.num_kv_heads);
        bytes.ffn_per_column = ffn / u64::from(spec.intermediate_size);
        Ok(bytes)
    }
}
