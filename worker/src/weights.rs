//! A rank's weights, loaded and repacked by unit, so that a rank can take and drop units between epochs.
//!
//! A unit's matrices are kept as long as an epoch uses them and reused by the next one. What is read in a step lies in
//! the order of reading: layers outside, then matrices, units inside. The token embedding stays in the mapped file: a step reads one
//! row per token of it.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use kvasir_kv::{RankShare, UnitId, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, LayerTensors, RotatedPairs, TensorView, WeightMode, quantize};

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
    /// Of q, k and v, one value for each of their rows; empty without.
    pub biases: [Vec<f32>; 3],
}

/// An FFN unit's part of one layer.
#[derive(Debug)]
pub struct FfnLayer {
    /// `[unit columns, hidden]`
    pub gate: PackedMatrix,
    pub up: PackedMatrix,
    /// `[hidden, unit columns]`
    pub down: PackedMatrix,
    /// Of gate and up, `[unit columns]` each; empty without.
    pub biases: [Vec<f32>; 2],
}

/// What one layer has on every rank. Vectors are `[hidden]` where not said otherwise, and empty where a model has none.
#[derive(Debug)]
pub struct ReplicatedLayer {
    pub attention_norm: Vec<f32>,
    /// Norms of each head of q and of k, `[head_dim]`.
    pub qk_norms: [Vec<f32>; 2],
    /// Added once, after the reduce.
    pub attention_bias: Vec<f32>,
    pub ffn_norm: Vec<f32>,
    /// Added once, after the reduce.
    pub ffn_bias: Vec<f32>,
}

/// The units of one rank's share. Keys are unit numbers, so iteration is in unit order.
#[derive(Debug)]
pub struct RankWeights {
    checkpoint: Arc<Checkpoint>,
    mode: WeightMode,
    pub replicated: Vec<ReplicatedLayer>,
    pub output_norm: Vec<f32>,
    /// By layer.
    pub attention: BTreeMap<u32, Vec<AttentionLayer>>,
    pub ffn: BTreeMap<u32, Vec<FfnLayer>>,
    /// Rows of the output head, `[unit rows, hidden]`.
    pub vocab: BTreeMap<u32, PackedMatrix>,
    /// Loaded ahead, for the next epoch.
    staged: Option<LoadedUnits>,
}

/// Units by number.
#[derive(Debug, Default)]
pub struct LoadedUnits {
    attention: BTreeMap<u32, Vec<AttentionLayer>>,
    ffn: BTreeMap<u32, Vec<FfnLayer>>,
    vocab: BTreeMap<u32, PackedMatrix>,
}

/// Numbers of units that are to be loaded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MissingUnits {
    attention: Vec<u32>,
    ffn: Vec<u32>,
    vocab: Vec<u32>,
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
        let (attention, ffn, vocab) = Default::default();
        let mut arena = WeightArena::new();
        let loader = Loader::new(&checkpoint, mode, &mut arena);
        let tensors = checkpoint.tensors();
        let replicated = tensors.layers.iter().map(|layer| loader.replicated(layer));
        let replicated = replicated.collect::<Result<_, _>>()?;
        let output_norm = loader.vector(&tensors.output_norm)?;
        Ok(Self {
            checkpoint,
            mode,
            replicated,
            output_norm,
            attention,
            ffn,
            vocab,
            staged: None,
        })
    }

    /// Makes `share` the units held: drops the others, keeps what it has, takes what was staged, loads the rest.
    pub fn take(&mut self, layout: &UnitLayout, share: &RankShare) -> Result<Taken, BackendError> {
        if let Some(staged) = self.staged.take() {
            self.insert(staged);
        }
        self.attention.retain(|unit, _| share.attention.contains(unit));
        self.ffn.retain(|unit, _| share.ffn.contains(unit));
        self.vocab.retain(|unit, _| share.vocab.contains(unit));
        let kept = self.num_units();
        let missing = self.missing(share);
        self.insert(missing.load(&self.checkpoint, self.mode, layout)?);
        Ok(Taken {
            loaded: self.num_units() - kept,
            kept,
            bytes: share.weight_bytes(layout),
        })
    }

    /// The units of `share` that are not here.
    pub fn missing(&self, share: &RankShare) -> MissingUnits {
        let lacks =
            |range: &Range<u32>, here: &dyn Fn(&u32) -> bool| range.clone().filter(|unit| !here(unit)).collect();
        MissingUnits {
            attention: lacks(&share.attention, &|unit| self.attention.contains_key(unit)),
            ffn: lacks(&share.ffn, &|unit| self.ffn.contains_key(unit)),
            vocab: lacks(&share.vocab, &|unit| self.vocab.contains_key(unit)),
        }
    }

    /// Lays units aside for the next `take`.
    pub fn stage(&mut self, units: LoadedUnits) {
        self.staged = Some(units);
    }

    fn insert(&mut self, units: LoadedUnits) {
        self.attention.extend(units.attention);
        self.ffn.extend(units.ffn);
        self.vocab.extend(units.vocab);
    }

    fn num_units(&self) -> u32 {
        (self.attention.len() + self.ffn.len() + self.vocab.len()) as u32
    }

    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    pub fn mode(&self) -> WeightMode {
        self.mode
    }
}

impl LoadedUnits {
    pub fn num_units(&self) -> u32 {
        (self.attention.len() + self.ffn.len() + self.vocab.len()) as u32
    }
}

impl MissingUnits {
    /// Reads and repacks them; takes as long as it takes, and touches nothing that a step reads but the checkpoint, which is
    /// not kept in memory beside what was made of it.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        mode: WeightMode,
        layout: &UnitLayout,
    ) -> Result<LoadedUnits, BackendError> {
        let mut arena = WeightArena::new();
        let mut loader = Loader::new(checkpoint, mode, &mut arena);
        let mut units = LoadedUnits::default();
        // The order in which a step reads them is the order in the arena: layers outside, then the phase's matrices, units inside.
        for layer in &checkpoint.tensors().layers {
            let heads = loader.attention(layout, layer, &self.attention)?;
            for (&head, loaded) in self.attention.iter().zip(heads) {
                units.attention.entry(head).or_default().push(loaded);
            }
            let ffn = loader.ffn(layout, layer, &self.ffn)?;
            for (&unit, loaded) in self.ffn.iter().zip(ffn) {
                units.ffn.entry(unit).or_default().push(loaded);
            }
        }
        for &unit in &self.vocab {
            let rows = layout.extent(UnitKind::Vocab, UnitId(unit));
            let name = &checkpoint.tensors().output;
            units
                .vocab
                .insert(unit, loader.rows(name, rows.start as usize..rows.end as usize)?);
        }
        if units.num_units() > 0 {
            checkpoint.let_go();
        }
        Ok(units)
    }
}

/// Reads tensors, cuts them, and brings rotated dimensions into the order of the kernels: pairs side by side.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    mode: WeightMode,
    arena: &'a mut WeightArena,
}

impl<'a> Loader<'a> {
    fn new(checkpoint: &'a Checkpoint, mode: WeightMode, arena: &'a mut WeightArena) -> Self {
        Self {
            checkpoint,
            mode,
            arena,
        }
    }

    fn replicated(&self, layer: &LayerTensors) -> Result<ReplicatedLayer, BackendError> {
        let dim = self.checkpoint.spec().head_dim as usize;
        let norm = |name: &Option<String>| self.slice(name, self.rotated(0..dim));
        let whole = |name: &Option<String>| match name {
            Some(name) => self.vector(name),
            None => Ok(Vec::new()),
        };
        Ok(ReplicatedLayer {
            attention_norm: self.vector(&layer.attn_norm)?,
            qk_norms: [norm(&layer.q_norm)?, norm(&layer.k_norm)?],
            attention_bias: whole(&layer.biases.o)?,
            ffn_norm: self.vector(&layer.ffn_norm)?,
            ffn_bias: whole(&layer.biases.down)?,
        })
    }

    /// Of each head: q, k and v of all of them come before the outputs.
    fn attention(
        &mut self,
        layout: &UnitLayout,
        layer: &LayerTensors,
        heads: &[u32],
    ) -> Result<Vec<AttentionLayer>, BackendError> {
        let (group, dim) = (
            layout.shape().heads.group_columns() as usize,
            layout.shape().heads.head_dim() as usize,
        );
        let queries = |head: u32| head as usize * group..(head as usize + 1) * group;
        let keys = |head: u32| head as usize * dim..(head as usize + 1) * dim;
        let inputs = heads.iter().map(|&head| {
            Ok([
                self.rows(&layer.wq, self.rotated(queries(head)))?,
                self.rows(&layer.wk, self.rotated(keys(head)))?,
                self.rows(&layer.wv, keys(head))?,
            ])
        });
        let inputs: Vec<_> = inputs.collect::<Result<_, BackendError>>()?;
        let with_output = |(&head, [wq, wk, wv]): (&u32, [PackedMatrix; 3])| {
            let biases = &layer.biases;
            Ok(AttentionLayer {
                biases: [
                    self.slice(&biases.q, self.rotated(queries(head)))?,
                    self.slice(&biases.k, self.rotated(keys(head)))?,
                    self.slice(&biases.v, keys(head))?,
                ],
                wq,
                wk,
                wv,
                wo: self.columns(&layer.wo, queries(head))?,
            })
        };
        heads.iter().zip(inputs).map(with_output).collect()
    }

    /// Of each unit: gate and up of all of them come before the outputs.
    fn ffn(&mut self, layout: &UnitLayout, layer: &LayerTensors, units: &[u32]) -> Result<Vec<FfnLayer>, BackendError> {
        let columns = |unit: u32| {
            let columns = layout.extent(UnitKind::Ffn, UnitId(unit));
            columns.start as usize..columns.end as usize
        };
        let inputs = units.iter().map(|&unit| {
            Ok([
                self.rows(&layer.gate, columns(unit))?,
                self.rows(&layer.up, columns(unit))?,
            ])
        });
        let inputs: Vec<_> = inputs.collect::<Result<_, BackendError>>()?;
        let with_output = |(&unit, [gate, up]): (&u32, [PackedMatrix; 2])| {
            Ok(FfnLayer {
                biases: [
                    self.slice(&layer.biases.gate, columns(unit))?,
                    self.slice(&layer.biases.up, columns(unit))?,
                ],
                gate,
                up,
                down: self.columns(&layer.down, columns(unit))?,
            })
        };
        units.iter().zip(inputs).map(with_output).collect()
    }

    fn rotated(&self, rows: Range<usize>) -> impl ExactSizeIterator<Item = usize> + Clone + use<> {
        rotated_rows(self.checkpoint, rows)
    }

    /// A whole vector.
    fn vector(&self, name: &str) -> Result<Vec<f32>, BackendError> {
        vector(self.checkpoint, name)
    }

    /// Values of a vector that a model may lack: it is empty then.
    fn slice(&self, name: &Option<String>, places: impl Iterator<Item = usize>) -> Result<Vec<f32>, BackendError> {
        vector_places(self.checkpoint, name, places)
    }

    /// Rows of a column-parallel weight, all columns.
    fn rows(&mut self, name: &str, rows: impl ExactSizeIterator<Item = usize>) -> Result<PackedMatrix, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        self.pack(&tensor, &rows.collect::<Vec<_>>(), 0..tensor.cols)
    }

    /// Columns of a row-parallel weight, all rows.
    fn columns(&mut self, name: &str, columns: Range<usize>) -> Result<PackedMatrix, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        self.pack(&tensor, &(0..tensor.rows).collect::<Vec<_>>(), columns)
    }

    fn pack(
        &mut self,
        tensor: &TensorView<'_>,
        rows: &[usize],
        columns: Range<usize>,
    ) -> Result<PackedMatrix, BackendError> {
        let weight_type = self.mode.weight_type(tensor.weight_type);
        let packed = if weight_type == tensor.weight_type {
            PackedMatrix::pack(weight_type, rows.len(), columns.clone(), self.arena, |row| {
                tensor.row(rows[row])
            })
        } else {
            let mut values = vec![0.0; columns.len()];
            PackedMatrix::pack(weight_type, rows.len(), 0..columns.len(), self.arena, |row| {
                tensor.dequantize_row_columns(rows[row], columns.clone(), &mut values);
                let mut stored = Vec::with_capacity(weight_type.row_bytes(columns.len()));
                quantize(weight_type, &values, &mut stored);
                stored
            })
        };
        packed.map_err(|_| BackendError::OutOfMemory {
            what: "weights",
            bytes: rows.len() * columns.len() * weight_type.block_bytes() / weight_type.block_len(),
        })
    }
}

/// Rows of q or k, whole heads of them, in the order of the kernels.
pub(crate) fn rotated_rows(
    checkpoint: &Checkpoint,
    rows: Range<usize>,
) -> impl ExactSizeIterator<Item = usize> + Clone + use<> {
    let spec = checkpoint.spec();
    let (dim, rope_dim) = (spec.head_dim as usize, spec.rope_dim as usize);
    let pairs: RotatedPairs = spec.rope_pairs;
    rows.map(move |row| row / dim * dim + pairs.source(row % dim, rope_dim))
}

/// A whole vector.
pub(crate) fn vector(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, BackendError> {
    let tensor = tensor(checkpoint, name)?;
    let mut vector = vec![0.0; tensor.cols];
    tensor.dequantize_row(0, &mut vector);
    Ok(vector)
}

/// Values of a vector that a model may lack: it is empty then.
pub(crate) fn vector_places(
    checkpoint: &Checkpoint,
    name: &Option<String>,
    places: impl Iterator<Item = usize>,
) -> Result<Vec<f32>, BackendError> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let whole = vector(checkpoint, name)?;
    Ok(places.map(|place| whole[place]).collect())
}

pub(crate) fn tensor<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<TensorView<'a>, BackendError> {
    checkpoint.tensor(name).map_err(|error| BackendError::Load {
        what: name.to_owned(),
        reason: error.to_string(),
    })
}
