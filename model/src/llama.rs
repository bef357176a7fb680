//! The tensors of the llama architecture: their names, and the shapes that the spec demands of them.

use crate::{CheckpointError, ModelSpec, tensor_directory::TensorDirectory};

/// Names of the tensors outside the layers, and of each layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LlamaTensors {
    /// `[vocab_size, hidden_size]`
    pub token_embedding: String,
    /// `[hidden_size]`
    pub output_norm: String,
    /// `[vocab_size, hidden_size]`; the token embedding when the head is tied.
    pub output: String,
    pub layers: Vec<LlamaLayer>,
}

/// Names of the tensors of one layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LlamaLayer {
    /// `[hidden_size]`
    pub attn_norm: String,
    /// `[num_q_heads * head_dim, hidden_size]`, pairs of rotated dimensions side by side.
    pub wq: String,
    /// `[num_kv_heads * head_dim, hidden_size]`, like `wq`.
    pub wk: String,
    /// `[num_kv_heads * head_dim, hidden_size]`
    pub wv: String,
    /// `[hidden_size, num_q_heads * head_dim]`
    pub wo: String,
    /// `[hidden_size]`
    pub ffn_norm: String,
    /// `[intermediate_size, hidden_size]`
    pub gate: String,
    /// `[intermediate_size, hidden_size]`
    pub up: String,
    /// `[hidden_size, intermediate_size]`
    pub down: String,
}

pub(crate) const TOKEN_EMBEDDING: &str = "token_embd.weight";
pub(crate) const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";

impl LlamaTensors {
    /// Errors if a tensor is missing, has another shape, or is one that the arithmetic would have to heed but does
    /// not know (a bias, rope factors, experts).
    pub(crate) fn new(spec: &ModelSpec, directory: &TensorDirectory) -> Result<Self, CheckpointError> {
        let mut tensors = Self {
            token_embedding: TOKEN_EMBEDDING.to_owned(),
            output_norm: OUTPUT_NORM.to_owned(),
            output: if spec.tied_head { TOKEN_EMBEDDING } else { OUTPUT }.to_owned(),
            layers: Vec::new(),
        };
        let (vocab, hidden) = (spec.vocab_size, spec.hidden_size);
        check_shape(directory, &tensors.token_embedding, vocab, hidden)?;
        check_shape(directory, &tensors.output_norm, 1, hidden)?;
        check_shape(directory, &tensors.output, vocab, hidden)?;
        // A layer is only added when its tensors are there, so an absurd layer count ends at the first missing one.
        for i in 0..spec.num_layers {
            let layer = LlamaLayer::new(i);
            layer.check_shapes(spec, directory)?;
            tensors.layers.push(layer);
        }
        tensors.refuse_unknown(directory)?;
        Ok(tensors)
    }

    /// Every name, the head's once even if it is tied.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let output = (self.output != self.token_embedding).then_some(&self.output);
        let outside = [&self.token_embedding, &self.output_norm].into_iter().chain(output);
        outside
            .chain(self.layers.iter().flat_map(LlamaLayer::names))
            .map(String::as_str)
    }

    fn refuse_unknown(&self, directory: &TensorDirectory) -> Result<(), CheckpointError> {
        let known: std::collections::HashSet<&str> = self.names().collect();
        // The least name, so that the message does not depend on hashing.
        let Some(tensor) = directory.names().filter(|name| !known.contains(name)).min() else {
            return Ok(());
        };
        let hint = match tensor {
            "rope_freqs.weight" => ": it holds rope scaling factors, which are not supported yet",
            _ if tensor.ends_with(".bias") => ": biases are not supported yet",
            _ if tensor.contains("_exps") => ": experts are not supported yet",
            _ => "",
        };
        Err(CheckpointError::UnknownTensor {
            tensor: tensor.to_owned(),
            hint,
        })
    }
}

impl LlamaLayer {
    fn new(layer: u32) -> Self {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        Self {
            attn_norm: name("attn_norm"),
            wq: name("attn_q"),
            wk: name("attn_k"),
            wv: name("attn_v"),
            wo: name("attn_output"),
            ffn_norm: name("ffn_norm"),
            gate: name("ffn_gate"),
            up: name("ffn_up"),
            down: name("ffn_down"),
        }
    }

    fn names(&self) -> [&String; 9] {
        let Self {
            attn_norm,
            wq,
            wk,
            wv,
            wo,
            ffn_norm,
            gate,
            up,
            down,
        } = self;
        [attn_norm, wq, wk, wv, wo, ffn_norm, gate, up, down]
    }

    fn check_shapes(&self, spec: &ModelSpec, directory: &TensorDirectory) -> Result<(), CheckpointError> {
        let hidden = spec.hidden_size;
        let ffn = spec.intermediate_size;
        let (q_rows, kv_rows) = (spec.num_q_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
        let expected = [
            (&self.attn_norm, 1, hidden),
            (&self.wq, q_rows, hidden),
            (&self.wk, kv_rows, hidden),
            (&self.wv, kv_rows, hidden),
            (&self.wo, hidden, q_rows),
            (&self.ffn_norm, 1, hidden),
            (&self.gate, ffn, hidden),
            (&self.up, ffn, hidden),
            (&self.down, hidden, ffn),
        ];
        expected
            .into_iter()
            .try_for_each(|(name, rows, cols)| check_shape(directory, name, rows, cols))
    }
}

fn check_shape(directory: &TensorDirectory, tensor: &str, rows: u32, cols: u32) -> Result<(), CheckpointError> {
    let tensor = tensor.to_owned();
    let (expected_rows, expected_cols) = (u64::from(rows), u64::from(cols));
    match directory.shape(&tensor) {
        None => Err(CheckpointError::MissingTensor {
            tensor,
            expected_rows,
            expected_cols,
        }),
        Some((rows, cols)) if (rows, cols) != (expected_rows, expected_cols) => Err(CheckpointError::Shape {
            tensor,
            rows,
            cols,
            expected_rows,
            expected_cols,
        }),
        Some(_) => Ok(()),
    }
}
