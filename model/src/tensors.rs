//! The tensors of a model: their names in GGUF files and in Hugging Face's folders, and the shapes that the spec demands.

use crate::{Architecture, CheckpointError, ModelSpec, architecture::Presence, tensor_directory::TensorDirectory};

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Naming {
    Gguf,
    HuggingFace,
}

/// A tensor's name in both.
struct Name {
    gguf: &'static str,
    hugging_face: &'static str,
}

const fn name(gguf: &'static str, hugging_face: &'static str) -> Name {
    Name { gguf, hugging_face }
}

const TOKEN_EMBEDDING: Name = name("token_embd", "model.embed_tokens");
const OUTPUT_NORM: Name = name("output_norm", "model.norm");
const OUTPUT: Name = name("output", "lm_head");
const ATTN_NORM: Name = name("attn_norm", "input_layernorm");
const Q: Name = name("attn_q", "self_attn.q_proj");
const K: Name = name("attn_k", "self_attn.k_proj");
const V: Name = name("attn_v", "self_attn.v_proj");
const O: Name = name("attn_output", "self_attn.o_proj");
const Q_NORM: Name = name("attn_q_norm", "self_attn.q_norm");
const K_NORM: Name = name("attn_k_norm", "self_attn.k_norm");
const FFN_NORM: Name = name("ffn_norm", "post_attention_layernorm");
const GATE: Name = name("ffn_gate", "mlp.gate_proj");
const UP: Name = name("ffn_up", "mlp.up_proj");
const DOWN: Name = name("ffn_down", "mlp.down_proj");
/// Of GGUF: what the frequencies of rotary positions are divided by.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Buffers that old checkpoints of Hugging Face carry along; they follow from the config.
const ROPE_BUFFER: &str = ".rotary_emb.inv_freq";

impl Naming {
    fn of(self, name: &Name) -> &'static str {
        match self {
            Self::Gguf => name.gguf,
            Self::HuggingFace => name.hugging_face,
        }
    }

    fn outside(self, name: &Name) -> String {
        format!("{}.weight", self.of(name))
    }

    fn in_layer(self, layer: u32, name: &Name, part: &str) -> String {
        match self {
            Self::Gguf => format!("blk.{layer}.{}.{part}", name.gguf),
            Self::HuggingFace => format!("model.layers.{layer}.{}.{part}", name.hugging_face),
        }
    }

    pub(crate) fn token_embedding(self) -> String {
        self.outside(&TOKEN_EMBEDDING)
    }

    pub(crate) fn output(self) -> String {
        self.outside(&OUTPUT)
    }
}

/// Names of the tensors outside the layers, and of each layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelTensors {
    /// `[vocab_size, hidden_size]`
    pub token_embedding: String,
    /// `[hidden_size]`
    pub output_norm: String,
    /// `[vocab_size, hidden_size]`; the token embedding when the head is tied.
    pub output: String,
    pub layers: Vec<LayerTensors>,
}

/// Names of the tensors of one layer. Rotated dimensions of q and k are paired as `ModelSpec::rope_pairs` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerTensors {
    /// `[hidden_size]`
    pub attn_norm: String,
    /// `[num_q_heads * head_dim, hidden_size]`
    pub wq: String,
    /// `[num_kv_heads * head_dim, hidden_size]`
    pub wk: String,
    /// `[num_kv_heads * head_dim, hidden_size]`
    pub wv: String,
    /// `[hidden_size, num_q_heads * head_dim]`
    pub wo: String,
    /// `[head_dim]`
    pub q_norm: Option<String>,
    /// `[head_dim]`
    pub k_norm: Option<String>,
    /// `[hidden_size]`
    pub ffn_norm: String,
    /// `[intermediate_size, hidden_size]`
    pub gate: String,
    /// `[intermediate_size, hidden_size]`
    pub up: String,
    /// `[hidden_size, intermediate_size]`
    pub down: String,
    pub biases: LayerBiases,
}

/// One value for each row of the matrix that it is added after; `None` where the checkpoint has none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LayerBiases {
    pub q: Option<String>,
    pub k: Option<String>,
    pub v: Option<String>,
    pub o: Option<String>,
    pub gate: Option<String>,
    pub up: Option<String>,
    pub down: Option<String>,
}

impl ModelTensors {
    /// Errors if a tensor is missing, has another shape, or is one that the arithmetic would have to heed but does
    /// not know.
    pub(crate) fn new(
        spec: &ModelSpec,
        architecture: &Architecture,
        naming: Naming,
        directory: &TensorDirectory,
    ) -> Result<Self, CheckpointError> {
        let token_embedding = naming.token_embedding();
        let mut tensors = Self {
            output: if spec.tied_head {
                token_embedding.clone()
            } else {
                naming.output()
            },
            token_embedding,
            output_norm: naming.outside(&OUTPUT_NORM),
            layers: Vec::new(),
        };
        let (vocab, hidden) = (spec.vocab_size, spec.hidden_size);
        check_shape(directory, &tensors.token_embedding, vocab, hidden)?;
        check_shape(directory, &tensors.output_norm, 1, hidden)?;
        check_shape(directory, &tensors.output, vocab, hidden)?;
        // A layer is only added when its tensors are there, so an absurd layer count ends at the first missing one.
        for i in 0..spec.num_layers {
            let layer = LayerTensors::new(i, architecture, naming, directory);
            layer.check_shapes(spec, directory)?;
            tensors.layers.push(layer);
        }
        tensors.refuse_unknown(architecture, naming, directory)?;
        Ok(tensors)
    }

    /// Every name, the head's once even if it is tied.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let output = (self.output != self.token_embedding).then_some(&self.output);
        let outside = [&self.token_embedding, &self.output_norm].into_iter().chain(output);
        outside
            .chain(self.layers.iter().flat_map(LayerTensors::names))
            .map(String::as_str)
    }

    fn refuse_unknown(
        &self,
        architecture: &Architecture,
        naming: Naming,
        directory: &TensorDirectory,
    ) -> Result<(), CheckpointError> {
        let known: std::collections::HashSet<&str> = self.names().collect();
        let is_known = |name: &str| {
            known.contains(name)
                || match naming {
                    Naming::Gguf => name == ROPE_DIVISORS,
                    // A tied head may be stored all the same.
                    Naming::HuggingFace => name.ends_with(ROPE_BUFFER) || name == naming.output(),
                }
        };
        // The least name, so that the message does not depend on hashing.
        let Some(tensor) = directory.names().filter(|name| !is_known(name)).min() else {
            return Ok(());
        };
        let hint = match tensor {
            _ if tensor.ends_with(".bias") => ": this bias is not supported",
            _ if tensor.contains("_exps") || tensor.contains(".experts.") => ": experts are not supported yet",
            _ => "",
        };
        Err(CheckpointError::UnknownTensor {
            tensor: tensor.to_owned(),
            architecture: architecture.name,
            hint,
        })
    }
}

impl LayerTensors {
    fn new(layer: u32, architecture: &Architecture, naming: Naming, directory: &TensorDirectory) -> Self {
        let weight = |name: &Name| naming.in_layer(layer, name, "weight");
        let optional = |presence: Presence, name: String| match presence {
            Presence::Never => None,
            Presence::Either => directory.contains(&name).then_some(name),
            Presence::Always => Some(name),
        };
        let norm = |name: &Name| optional(architecture.qk_norm, weight(name));
        let bias = |presence: Presence, name: &Name| optional(presence, naming.in_layer(layer, name, "bias"));
        let (of_qkv, of_others) = (architecture.qkv_bias, architecture.other_bias);
        Self {
            attn_norm: weight(&ATTN_NORM),
            wq: weight(&Q),
            wk: weight(&K),
            wv: weight(&V),
            wo: weight(&O),
            q_norm: norm(&Q_NORM),
            k_norm: norm(&K_NORM),
            ffn_norm: weight(&FFN_NORM),
            gate: weight(&GATE),
            up: weight(&UP),
            down: weight(&DOWN),
            biases: LayerBiases {
                q: bias(of_qkv, &Q),
                k: bias(of_qkv, &K),
                v: bias(of_qkv, &V),
                o: bias(of_others, &O),
                gate: bias(of_others, &GATE),
                up: bias(of_others, &UP),
                down: bias(of_others, &DOWN),
            },
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let b = &self.biases;
        let always = [
            &self.attn_norm,
            &self.wq,
            &self.wk,
            &self.wv,
            &self.wo,
            &self.ffn_norm,
            &self.gate,
            &self.up,
            &self.down,
        ];
        let sometimes = [
            &self.q_norm,
            &self.k_norm,
            &b.q,
            &b.k,
            &b.v,
            &b.o,
            &b.gate,
            &b.up,
            &b.down,
        ];
        always.into_iter().chain(sometimes.into_iter().flatten())
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
        let vectors = [
            (&self.q_norm, spec.head_dim),
            (&self.k_norm, spec.head_dim),
            (&self.biases.q, q_rows),
            (&self.biases.k, kv_rows),
            (&self.biases.v, kv_rows),
            (&self.biases.o, hidden),
            (&self.biases.gate, ffn),
            (&self.biases.up, ffn),
            (&self.biases.down, hidden),
        ];
        let vectors = vectors.iter().filter_map(|(name, len)| Some((name.as_ref()?, 1, *len)));
        expected
            .into_iter()
            .chain(vectors)
            .try_for_each(|(name, rows, cols)| check_shape(directory, name, rows, cols))
    }
}

pub(crate) fn check_shape(
    directory: &TensorDirectory,
    tensor: &str,
    rows: u32,
    cols: u32,
) -> Result<(), CheckpointError> {
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
