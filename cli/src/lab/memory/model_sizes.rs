//! A model, as far as its memory goes.

use anyhow::{Context, Result};
use kvasir_kv::HeadLayout;
use kvasir_model::Checkpoint;

use super::{attention::Attention, parameter_type::ParameterType};
use crate::plain::plain;

#[derive(Clone, Debug)]
pub struct ModelSizes {
    pub name: String,
    /// Where this was read.
    pub source: String,
    pub num_layers: u32,
    pub hidden_size: u32,
    pub vocab_size: u32,
    /// Longest sequence, in tokens, that the model was trained for.
    pub context_len: u32,
    pub attention: Attention,
    pub parameters: u64,
    pub weights: Weights,
    /// What a reader of the numbers must know.
    pub notes: Vec<String>,
}

/// What the parameters take in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Weights {
    /// Of a type, or `file`.
    pub stored_as: String,
    pub bytes: u64,
}

impl Weights {
    pub fn new(parameters: u64, parameter_type: ParameterType) -> Self {
        Self {
            stored_as: parameter_type.to_string(),
            bytes: parameter_type.bytes(parameters),
        }
    }
}

impl ModelSizes {
    /// Of an open checkpoint, by its header: weights take what they take in the file.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let spec = checkpoint.spec();
        let (mut parameters, mut bytes) = (0, 0);
        for name in checkpoint.tensors().names() {
            let tensor = checkpoint.tensor(name)?;
            parameters += tensor.rows as u64 * tensor.cols as u64;
            bytes += tensor.rows as u64 * tensor.row_bytes() as u64;
        }
        let file = checkpoint.path().file_name().unwrap_or_default().to_string_lossy();
        let heads = HeadLayout::new(spec.num_q_heads, spec.num_kv_heads, spec.head_dim).context("heads")?;
        Ok(Self {
            name: plain(if spec.name.is_empty() { &file } else { &spec.name }),
            source: plain(&format!("the header of {file}")),
            num_layers: spec.num_layers,
            hidden_size: spec.hidden_size,
            vocab_size: spec.vocab_size,
            context_len: spec.context_len,
            attention: Attention::Grouped(heads),
            parameters,
            weights: Weights {
                stored_as: "file".to_owned(),
                bytes,
            },
            notes: Vec::new(),
        })
    }
}
