//! A model to experiment with: transformer blocks of a chosen shape with random weights, written as a checkpoint that the
//! engine opens like any other.
//!
//! Time does not depend on the weights' values. They are small enough for every activation to stay finite.

use std::{borrow::Cow, fs, path::Path};

use anyhow::{Context, Result};
use kvasir_kv::HeadLayout;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use safetensors::{Dtype, View};
use serde_json::json;

/// Enough for every rank of a small group to have some rows.
const VOCAB_SIZE: u32 = 1024;
const BF16_ONE: u16 = 0x3f80;
/// Random bytes are made once and repeated: as long as no cache could make use of it.
const PATTERN_WEIGHTS: usize = (1 << 22) - 3;

/// One or more Llama blocks: norms, attention, gated FFN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockModel {
    pub hidden_size: u32,
    pub ffn_size: u32,
    pub heads: HeadLayout,
    pub num_layers: u32,
    pub context_len: u32,
}

impl BlockModel {
    /// Writes config.json and model.safetensors.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let config = folder.join("config.json");
        fs::write(&config, self.config().to_string()).with_context(|| format!("cannot write {}", config.display()))?;
        let weights = folder.join("model.safetensors");
        let pattern = pattern();
        let tensors = self.tensors();
        let tensors = tensors.iter().map(|(name, shape)| {
            (
                name.as_str(),
                Weights {
                    shape,
                    pattern: &pattern,
                },
            )
        });
        safetensors::serialize_to_file(tensors, None, &weights)
            .with_context(|| format!("cannot write {}", weights.display()))
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.heads.num_q_heads(),
            "num_key_value_heads": self.heads.num_kv_heads(),
            "head_dim": self.heads.head_dim(),
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": self.context_len,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": true,
        })
    }

    /// As Hugging Face names them, `[rows, columns]`.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let [hidden, ffn, vocab] = [self.hidden_size, self.ffn_size, VOCAB_SIZE].map(|width| width as usize);
        let width = |heads: u32| (heads * self.heads.head_dim()) as usize;
        let (q, kv) = (width(self.heads.num_q_heads()), width(self.heads.num_kv_heads()));
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.num_layers {
            let of_layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![ffn, hidden]),
                ("mlp.up_proj", vec![ffn, hidden]),
                ("mlp.down_proj", vec![hidden, ffn]),
            ];
            let named = |(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape);
            tensors.extend(of_layer.into_iter().map(named));
        }
        tensors
    }
}

/// One tensor, made when it is written.
struct Weights<'a> {
    shape: &'a [usize],
    pattern: &'a [u8],
}

impl View for Weights<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let [columns] = self.shape {
            // A norm.
            return Cow::Owned(BF16_ONE.to_le_bytes().repeat(*columns));
        }
        let mut bytes = Vec::with_capacity(self.data_len());
        while bytes.len() < self.data_len() {
            let len = self.pattern.len().min(self.data_len() - bytes.len());
            bytes.extend_from_slice(&self.pattern[..len]);
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// bf16 between 1/128 and 1/32 of either sign, about what a trained model's weights are.
fn pattern() -> Vec<u8> {
    let mut bytes = vec![0; 2 * PATTERN_WEIGHTS];
    ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut bytes);
    // Little-endian: sign and exponent are in the second byte.
    for upper in bytes.iter_mut().skip(1).step_by(2) {
        *upper = (*upper & 0x80) | 0x3c;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use kvasir_model::Checkpoint;

    use super::*;

    #[test]
    fn what_is_written_is_a_checkpoint_of_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let model = BlockModel {
            hidden_size: 128,
            ffn_size: 256,
            heads: HeadLayout::new(8, 2, 32).unwrap(),
            num_layers: 2,
            context_len: 512,
        };
        model.write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let spec = checkpoint.spec();
        assert_eq!((spec.num_layers, spec.num_kv_heads, spec.head_dim), (2, 2, 32));
        let tensor = checkpoint.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        let mut row = vec![0.0; tensor.cols];
        tensor.dequantize_row(100, &mut row);
        let is_small = |weight: &f32| (1.0 / 128.0..1.0 / 32.0).contains(&weight.abs());
        assert!(row.iter().all(is_small));
        assert!(row.iter().any(|weight| *weight < 0.0) && row.iter().any(|weight| *weight > 0.0));
    }
}
