//! A rank's weights as f32 tensors, by unit, so that a rank can take and drop units between epochs.
//!
//! Token embeddings are not among them: a step reads one row per token, straight from the checkpoint.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use candle_core::{Device, Tensor};
use kvasir_kv::{RankShare, TokenId, UnitId, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, LayerTensors, TensorView};

use crate::{backend::BackendError, weights::Taken};

/// KV head j's part of one layer.
#[derive(Debug)]
pub(super) struct AttentionTensors {
    /// [group_size * head_dim, hidden]
    pub wq: Tensor,
    /// [head_dim, hidden]
    pub wk: Tensor,
    /// [head_dim, hidden]
    pub wv: Tensor,
    /// [hidden, group_size * head_dim]
    pub wo: Tensor,
    /// Of q, k and v, [rows].
    pub biases: [Option<Tensor>; 3],
}

/// An FFN unit's part of one layer.
#[derive(Debug)]
pub(super) struct FfnTensors {
    /// [unit columns, hidden]
    pub gate: Tensor,
    /// [unit columns, hidden]
    pub up: Tensor,
    /// [hidden, unit columns]
    pub down: Tensor,
    /// Of gate and up, [unit columns].
    pub biases: [Option<Tensor>; 2],
}

/// What one layer has on every rank. All [hidden], but for the norms of q and k, which are [head_dim].
#[derive(Debug)]
pub(super) struct ReplicatedTensors {
    pub attention_norm: Tensor,
    pub qk_norms: [Option<Tensor>; 2],
    pub attention_bias: Option<Tensor>,
    pub ffn_norm: Tensor,
    pub ffn_bias: Option<Tensor>,
}

/// The units of one rank's share. Keys are unit numbers, so iteration is in unit order.
#[derive(Debug)]
pub(super) struct RankTensors {
    loader: Loader,
    pub replicated: Vec<ReplicatedTensors>,
    pub output_norm: Tensor,
    /// By layer.
    pub attention: BTreeMap<u32, Vec<AttentionTensors>>,
    pub ffn: BTreeMap<u32, Vec<FfnTensors>>,
    /// Rows of the output head, [unit rows, hidden].
    pub vocab: BTreeMap<u32, Tensor>,
}

impl RankTensors {
    /// The replicated parts; no unit yet.
    pub(super) fn new(checkpoint: Arc<Checkpoint>, device: Device) -> Result<Self, BackendError> {
        let loader = Loader { checkpoint, device };
        let replicated = loader.each_layer(|layer| loader.replicated(layer))?;
        let output_norm = loader.vector(&loader.checkpoint.tensors().output_norm)?;
        let (attention, ffn, vocab) = Default::default();
        Ok(Self {
            loader,
            replicated,
            output_norm,
            attention,
            ffn,
            vocab,
        })
    }

    /// Makes `share` the units held: drops the others, keeps what it has, loads the rest.
    pub(super) fn take(&mut self, layout: &UnitLayout, share: &RankShare) -> Result<Taken, BackendError> {
        self.attention.retain(|unit, _| share.attention.contains(unit));
        self.ffn.retain(|unit, _| share.ffn.contains(unit));
        self.vocab.retain(|unit, _| share.vocab.contains(unit));
        let kept = self.num_units();
        for unit in share.attention.clone() {
            if !self.attention.contains_key(&unit) {
                self.attention.insert(unit, self.loader.attention(layout, unit)?);
            }
        }
        for unit in share.ffn.clone() {
            if !self.ffn.contains_key(&unit) {
                self.ffn.insert(unit, self.loader.ffn(layout, unit)?);
            }
        }
        for unit in share.vocab.clone() {
            if !self.vocab.contains_key(&unit) {
                self.vocab.insert(unit, self.loader.vocab(layout, unit)?);
            }
        }
        Ok(Taken {
            loaded: self.num_units() - kept,
            kept,
            bytes: self.bytes(),
        })
    }

    /// [hidden]
    pub(super) fn embedding_row(&self, token: TokenId) -> Result<Vec<f32>, BackendError> {
        let table = self.loader.view(&self.loader.checkpoint.tensors().token_embedding)?;
        let mut row = vec![0.0; table.cols];
        table.dequantize_row(token.0 as usize, &mut row);
        Ok(row)
    }

    fn num_units(&self) -> u32 {
        (self.attention.len() + self.ffn.len() + self.vocab.len()) as u32
    }

    fn bytes(&self) -> u64 {
        let attention = self.attention.values().flatten();
        let ffn = self.ffn.values().flatten();
        let layers = self.replicated.iter();
        let norms = layers.flat_map(|layer| [&layer.attention_norm, &layer.ffn_norm]);
        let tensors = attention
            .flat_map(|layer| [&layer.wq, &layer.wk, &layer.wv, &layer.wo])
            .chain(ffn.flat_map(|layer| [&layer.gate, &layer.up, &layer.down]))
            .chain(self.vocab.values())
            .chain(norms)
            .chain([&self.output_norm]);
        tensors.map(|tensor| 4 * tensor.elem_count() as u64).sum()
    }
}

#[derive(Debug)]
struct Loader {
    checkpoint: Arc<Checkpoint>,
    device: Device,
}

impl Loader {
    fn attention(&self, layout: &UnitLayout, head: u32) -> Result<Vec<AttentionTensors>, BackendError> {
        let heads = layout.shape().heads;
        let of_head = |columns: u32| (head * columns) as usize..((head + 1) * columns) as usize;
        let (queries, keys) = (of_head(heads.group_columns()), of_head(heads.head_dim()));
        self.each_layer(|layer| {
            Ok(AttentionTensors {
                wq: self.rows(&layer.wq, queries.clone())?,
                wk: self.rows(&layer.wk, keys.clone())?,
                wv: self.rows(&layer.wv, keys.clone())?,
                wo: self.columns(&layer.wo, queries.clone())?,
                biases: [
                    self.bias(&layer.biases.q, queries.clone())?,
                    self.bias(&layer.biases.k, keys.clone())?,
                    self.bias(&layer.biases.v, keys.clone())?,
                ],
            })
        })
    }

    fn ffn(&self, layout: &UnitLayout, unit: u32) -> Result<Vec<FfnTensors>, BackendError> {
        let extent = extent(layout, UnitKind::Ffn, unit);
        self.each_layer(|layer| {
            Ok(FfnTensors {
                gate: self.rows(&layer.gate, extent.clone())?,
                up: self.rows(&layer.up, extent.clone())?,
                down: self.columns(&layer.down, extent.clone())?,
                biases: [
                    self.bias(&layer.biases.gate, extent.clone())?,
                    self.bias(&layer.biases.up, extent.clone())?,
                ],
            })
        })
    }

    fn vocab(&self, layout: &UnitLayout, unit: u32) -> Result<Tensor, BackendError> {
        let rows = extent(layout, UnitKind::Vocab, unit);
        self.rows(&self.checkpoint.tensors().output, rows)
    }

    fn replicated(&self, layer: &LayerTensors) -> Result<ReplicatedTensors, BackendError> {
        let whole = |name: &Option<String>| name.as_ref().map(|name| self.vector(name)).transpose();
        Ok(ReplicatedTensors {
            attention_norm: self.vector(&layer.attn_norm)?,
            qk_norms: [whole(&layer.q_norm)?, whole(&layer.k_norm)?],
            attention_bias: whole(&layer.biases.o)?,
            ffn_norm: self.vector(&layer.ffn_norm)?,
            ffn_bias: whole(&layer.biases.down)?,
        })
    }

    fn vector(&self, name: &str) -> Result<Tensor, BackendError> {
        Ok(self.rows(name, 0..1)?.squeeze(0)?)
    }

    /// Values of a vector that a model may lack.
    fn bias(&self, name: &Option<String>, values: Range<usize>) -> Result<Option<Tensor>, BackendError> {
        let Some(name) = name else { return Ok(None) };
        Ok(Some(self.vector(name)?.narrow(0, values.start, values.len())?))
    }

    fn each_layer<T>(
        &self,
        load: impl FnMut(&LayerTensors) -> Result<T, BackendError>,
    ) -> Result<Vec<T>, BackendError> {
        self.checkpoint.tensors().layers.iter().map(load).collect()
    }

    /// Rows of a column-parallel weight, all columns.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, BackendError> {
        let view = self.view(name)?;
        self.load(&view, rows, 0..view.cols)
    }

    /// Columns of a row-parallel weight, all rows.
    fn columns(&self, name: &str, columns: Range<usize>) -> Result<Tensor, BackendError> {
        let view = self.view(name)?;
        self.load(&view, 0..view.rows, columns)
    }

    fn load(&self, view: &TensorView<'_>, rows: Range<usize>, columns: Range<usize>) -> Result<Tensor, BackendError> {
        let shape = (rows.len(), columns.len());
        let mut values = vec![0.0; rows.len() * columns.len()];
        for (row, values) in rows.zip(values.chunks_exact_mut(columns.len())) {
            view.dequantize_row_columns(row, columns.clone(), values);
        }
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, BackendError> {
        self.checkpoint.tensor(name).map_err(|error| BackendError::Load {
            what: name.to_owned(),
            reason: error.to_string(),
        })
    }
}

fn extent(layout: &UnitLayout, kind: UnitKind, unit: u32) -> Range<usize> {
    let extent = layout.extent(kind, UnitId(unit));
    extent.start as usize..extent.end as usize
}
