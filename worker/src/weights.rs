//! A rank's weights, loaded and repacked by unit, so that a rank can take and drop units between epochs.
//!
//! A unit's matrices are kept as long as an epoch uses them and reused by the next one. What is read in a step lies in
//! the order of reading: layers outside, units inside. The token embedding stays in the mapped file: a step reads one
//! row per token of it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

use kvasir_kv::{RankShare, UnitId, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, LlamaLayer, TensorView, WeightMode, WeightType, dequantize};

use crate::{
    arith::{PackedMatrix, WeightArena},
    backend::BackendError,
};

/// KV head j's part of one layer.
#[derive(Debug)]
pub struct AttentionLayer {
    /// `[group_size * head_dim, hidden]`
    pub wq: PackedMatrix,
    /// `[head_dim, hidden]`
    pub wk: PackedMatrix,
    pub wv: PackedMatrix,
    /// `[hidden, group_size * head_dim]`
    pub wo: PackedMatrix,
}

/// An FFN unit's part of one layer.
#[derive(Debug)]
pub struct FfnLayer {
    /// `[unit columns, hidden]`
    pub gate: PackedMatrix,
    pub up: PackedMatrix,
    /// `[hidden, unit columns]`
    pub down: PackedMatrix,
}

/// The norms, replicated on every rank. All `[hidden]`.
#[derive(Debug)]
pub struct Norms {
    pub attention: Vec<Vec<f32>>,
    pub ffn: Vec<Vec<f32>>,
    pub output: Vec<f32>,
}

/// The units of one rank's share. Keys are unit numbers, so iteration is in unit order.
#[derive(Debug)]
pub struct RankWeights {
    checkpoint: Arc<Checkpoint>,
    mode: WeightMode,
    pub norms: Norms,
    /// By layer.
    pub attention: BTreeMap<u32, Vec<AttentionLayer>>,
    pub ffn: BTreeMap<u32, Vec<FfnLayer>>,
    /// Rows of the output head, `[unit rows, hidden]`.
    pub vocab: BTreeMap<u32, PackedMatrix>,
}

/// How many units a change of share loaded and kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    pub loaded: u32,
    pub kept: u32,
    pub bytes: u64,
}

impl RankWeights {
    /// The replicated parts; no unit yet.
    pub fn new(checkpoint: Arc<Checkpoint>, mode: WeightMode) -> Result<Self, BackendError> {
        let tensors = checkpoint.tensors();
        let norms = Norms {
            attention: load_norms(&checkpoint, tensors.layers.iter().map(|layer| &layer.attn_norm))?,
            ffn: load_norms(&checkpoint, tensors.layers.iter().map(|layer| &layer.ffn_norm))?,
            output: load_norm(&checkpoint, &tensors.output_norm)?,
        };
        let (attention, ffn, vocab) = Default::default();
        Ok(Self {
            checkpoint,
            mode,
            norms,
            attention,
            ffn,
            vocab,
        })
    }

    /// Makes `share` the units held: drops the others, keeps what it has, loads the rest.
    pub fn take(&mut self, layout: &UnitLayout, share: &RankShare) -> Result<Taken, BackendError> {
        self.attention.retain(|unit, _| share.attention.contains(unit));
        self.ffn.retain(|unit, _| share.ffn.contains(unit));
        self.vocab.retain(|unit, _| share.vocab.contains(unit));
        let kept = self.num_units();
        let mut arena = WeightArena::new();
        let mut loader = Loader {
            checkpoint: &self.checkpoint,
            mode: self.mode,
            arena: &mut arena,
            rows: Vec::new(),
        };
        let heads: Vec<u32> = share
            .attention
            .clone()
            .filter(|unit| !self.attention.contains_key(unit))
            .collect();
        let ffn: Vec<u32> = share.ffn.clone().filter(|unit| !self.ffn.contains_key(unit)).collect();
        // Layers outside, units inside: the order in which a step reads them is the order in the arena.
        for layer in &self.checkpoint.tensors().layers {
            for &head in &heads {
                self.attention
                    .entry(head)
                    .or_default()
                    .push(loader.attention(layout, layer, head as usize)?);
            }
            for &unit in &ffn {
                let columns = layout.extent(UnitKind::Ffn, UnitId(unit));
                let loaded = loader.ffn(layer, columns.start as usize..columns.end as usize)?;
                self.ffn.entry(unit).or_default().push(loaded);
            }
        }
        for unit in share.vocab.clone() {
            if let Entry::Vacant(vacant) = self.vocab.entry(unit) {
                let rows = layout.extent(UnitKind::Vocab, UnitId(unit));
                let name = &self.checkpoint.tensors().output;
                vacant.insert(loader.rows(name, rows.start as usize..rows.end as usize)?);
            }
        }
        Ok(Taken {
            loaded: self.num_units() - kept,
            kept,
            bytes: share.weight_bytes(layout),
        })
    }

    fn num_units(&self) -> u32 {
        (self.attention.len() + self.ffn.len() + self.vocab.len()) as u32
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    mode: WeightMode,
    arena: &'a mut WeightArena,
    rows: Vec<u8>,
}

impl Loader<'_> {
    fn attention(
        &mut self,
        layout: &UnitLayout,
        layer: &LlamaLayer,
        head: usize,
    ) -> Result<AttentionLayer, BackendError> {
        let heads = layout.shape().heads;
        let (group, dim) = (heads.group_columns() as usize, heads.head_dim() as usize);
        Ok(AttentionLayer {
            wq: self.rows(&layer.wq, head * group..(head + 1) * group)?,
            wk: self.rows(&layer.wk, head * dim..(head + 1) * dim)?,
            wv: self.rows(&layer.wv, head * dim..(head + 1) * dim)?,
            wo: self.columns(&layer.wo, head * group..(head + 1) * group)?,
        })
    }

    fn ffn(&mut self, layer: &LlamaLayer, columns: Range<usize>) -> Result<FfnLayer, BackendError> {
        Ok(FfnLayer {
            gate: self.rows(&layer.gate, columns.clone())?,
            up: self.rows(&layer.up, columns.clone())?,
            down: self.columns(&layer.down, columns)?,
        })
    }

    /// Rows of a column-parallel weight, all columns.
    fn rows(&mut self, name: &str, rows: Range<usize>) -> Result<PackedMatrix, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        self.pack(&tensor, rows, 0..tensor.cols)
    }

    /// Columns of a row-parallel weight, all rows.
    fn columns(&mut self, name: &str, columns: Range<usize>) -> Result<PackedMatrix, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        self.pack(&tensor, 0..tensor.rows, columns)
    }

    fn pack(
        &mut self,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<PackedMatrix, BackendError> {
        let (num_rows, num_cols) = (rows.len(), columns.len());
        let weight_type = match self.mode {
            WeightMode::File => tensor.weight_type,
            WeightMode::F32 => WeightType::F32,
        };
        self.rows.clear();
        let mut values = vec![0.0; num_cols];
        for row in rows {
            let stored = tensor.row_columns(row, columns.clone());
            if weight_type == tensor.weight_type {
                self.rows.extend_from_slice(stored);
            } else {
                dequantize(tensor.weight_type, stored, &mut values);
                self.rows.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        let row_bytes = weight_type.row_bytes(num_cols);
        let rows = &self.rows;
        let stored = |row: usize| &rows[row * row_bytes..][..row_bytes];
        PackedMatrix::pack(weight_type, num_rows, num_cols, self.arena, stored).map_err(|_| BackendError::OutOfMemory {
            what: "weights",
            bytes: num_rows * row_bytes,
        })
    }
}

fn tensor<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<TensorView<'a>, BackendError> {
    checkpoint.tensor(name).map_err(|error| BackendError::Load {
        what: name.to_owned(),
        reason: error.to_string(),
    })
}

fn load_norms<'a>(
    checkpoint: &Checkpoint,
    names: impl Iterator<Item = &'a String>,
) -> Result<Vec<Vec<f32>>, BackendError> {
    names.map(|name| load_norm(checkpoint, name)).collect()
}

fn load_norm(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, BackendError> {
    let tensor = tensor(checkpoint, name)?;
    let mut norm = vec![0.0; tensor.cols];
    tensor.dequantize_row(0, &mut norm);
    Ok(norm)
}
