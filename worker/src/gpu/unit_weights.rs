//! A rank's weights on the device, by unit, so that a rank can take and drop units between epochs.
//!
//! A unit is one buffer with its matrices of all layers. It is packed on the host and brought over whole, so loading needs
//! host memory for one unit at a time.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use kvasir_kv::{RankShare, UnitId, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, LayerTensors, WeightMode, quantize};

use super::{
    device::{DeviceBuffer, GpuDevice},
    packed_rows::{PackedKind, pack_rows},
};
use crate::{
    backend::BackendError,
    weights::{Taken, rotated_rows, tensor, vector_places},
};

/// A matrix in a unit's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub kind: PackedKind,
    pub rows: usize,
    pub cols: usize,
    /// Bytes from the buffer's begin.
    at: usize,
}

/// One layer of a unit.
#[derive(Debug)]
pub struct UnitLayer {
    /// Attention: q, k, v, and the output projection. FFN: gate, up, and down.
    pub columns: Vec<Matrix>,
    pub partials: Matrix,
    /// One value for each row of `columns`; empty if no matrix has any. A matrix without has -0: added, it changes nothing.
    pub biases: Vec<f32>,
}

#[derive(Debug)]
pub struct Unit<B> {
    buffer: B,
    pub layers: Vec<UnitLayer>,
}

impl<B: DeviceBuffer> Unit<B> {
    pub fn address(&self, matrix: &Matrix) -> u64 {
        self.buffer.address() + matrix.at as u64
    }
}

/// Rows of the output head.
#[derive(Debug)]
pub struct VocabUnit<B> {
    buffer: B,
    pub matrix: Matrix,
}

impl<B: DeviceBuffer> VocabUnit<B> {
    pub fn address(&self) -> u64 {
        self.buffer.address() + self.matrix.at as u64
    }
}

/// Keys are unit numbers, so iteration is in unit order.
#[derive(Debug)]
pub struct UnitWeights<B> {
    pub attention: BTreeMap<u32, Unit<B>>,
    pub ffn: BTreeMap<u32, Unit<B>>,
    pub vocab: BTreeMap<u32, VocabUnit<B>>,
}

impl<B> Default for UnitWeights<B> {
    fn default() -> Self {
        Self {
            attention: BTreeMap::new(),
            ffn: BTreeMap::new(),
            vocab: BTreeMap::new(),
        }
    }
}

impl<B: DeviceBuffer> UnitWeights<B> {
    /// Makes `share` the units held: drops the others, keeps what it has, loads the rest.
    pub fn take<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        checkpoint: &Checkpoint,
        mode: WeightMode,
        layout: &UnitLayout,
        share: &RankShare,
    ) -> Result<Taken, BackendError> {
        self.attention.retain(|unit, _| share.attention.contains(unit));
        self.ffn.retain(|unit, _| share.ffn.contains(unit));
        self.vocab.retain(|unit, _| share.vocab.contains(unit));
        let kept = self.num_units();
        let mut packer = Packer::new(checkpoint, mode);
        for unit in missing(&share.attention, &self.attention) {
            let layers = packer.layers(|packer, layer| packer.attention(layout, layer, unit as usize))?;
            let buffer = packer.upload(device)?;
            self.attention.insert(unit, Unit { buffer, layers });
        }
        for unit in missing(&share.ffn, &self.ffn) {
            let columns = extent(layout, UnitKind::Ffn, unit);
            let layers = packer.layers(|packer, layer| packer.ffn(layer, columns.clone()))?;
            let buffer = packer.upload(device)?;
            self.ffn.insert(unit, Unit { buffer, layers });
        }
        for unit in missing(&share.vocab, &self.vocab) {
            let rows = extent(layout, UnitKind::Vocab, unit);
            let matrix = packer.rows(&checkpoint.tensors().output, rows)?;
            let buffer = packer.upload(device)?;
            self.vocab.insert(unit, VocabUnit { buffer, matrix });
        }
        Ok(Taken {
            loaded: self.num_units() - kept,
            kept,
            bytes: self.bytes(),
        })
    }

    fn num_units(&self) -> u32 {
        (self.attention.len() + self.ffn.len() + self.vocab.len()) as u32
    }

    /// What the device holds, which is more than the file where types were made int8.
    fn bytes(&self) -> u64 {
        let units = self.attention.values().chain(self.ffn.values());
        let of_layers: usize = units.map(|unit| unit.buffer.bytes()).sum();
        let of_head: usize = self.vocab.values().map(|unit| unit.buffer.bytes()).sum();
        (of_layers + of_head) as u64
    }
}

fn missing<T>(share: &Range<u32>, held: &BTreeMap<u32, T>) -> Vec<u32> {
    share.clone().filter(|unit| !held.contains_key(unit)).collect()
}

fn extent(layout: &UnitLayout, kind: UnitKind, unit: u32) -> Range<usize> {
    let extent = layout.extent(kind, UnitId(unit));
    extent.start as usize..extent.end as usize
}

/// Reads tensors, cuts them, and lays them side by side.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    mode: WeightMode,
    bytes: Vec<u8>,
}

impl<'a> Packer<'a> {
    fn new(checkpoint: &'a Checkpoint, mode: WeightMode) -> Self {
        let bytes = Vec::new();
        Self {
            checkpoint,
            mode,
            bytes,
        }
    }

    /// What was packed since the last time.
    fn upload<D: GpuDevice>(&mut self, device: &mut D) -> Result<D::Buffer, BackendError> {
        let buffer = device.allocate("weights", self.bytes.len())?;
        device.upload(&self.bytes, &buffer, 0)?;
        self.bytes.clear();
        Ok(buffer)
    }

    fn layers(
        &mut self,
        mut layer: impl FnMut(&mut Self, &LayerTensors) -> Result<UnitLayer, BackendError>,
    ) -> Result<Vec<UnitLayer>, BackendError> {
        let layers = self.checkpoint.tensors().layers.iter();
        layers.map(|tensors| layer(self, tensors)).collect()
    }

    /// As `weights::AttentionLayer`.
    fn attention(&mut self, layout: &UnitLayout, layer: &LayerTensors, head: usize) -> Result<UnitLayer, BackendError> {
        let heads = layout.shape().heads;
        let (group, dim) = (heads.group_columns() as usize, heads.head_dim() as usize);
        let queries = head * group..(head + 1) * group;
        let keys = head * dim..(head + 1) * dim;
        let rotated = |rows: &Range<usize>| rotated_rows(self.checkpoint, rows.clone());
        let (query_rows, key_rows) = (rotated(&queries), rotated(&keys));
        let biases = &layer.biases;
        let biases = [
            vector_places(self.checkpoint, &biases.q, query_rows.clone())?,
            vector_places(self.checkpoint, &biases.k, key_rows.clone())?,
            vector_places(self.checkpoint, &biases.v, keys.clone())?,
        ];
        let columns = vec![
            self.rows(&layer.wq, query_rows)?,
            self.rows(&layer.wk, key_rows)?,
            self.rows(&layer.wv, keys)?,
        ];
        Ok(UnitLayer {
            biases: joined_biases(&biases, &columns),
            columns,
            partials: self.columns(&layer.wo, queries)?,
        })
    }

    fn ffn(&mut self, layer: &LayerTensors, columns: Range<usize>) -> Result<UnitLayer, BackendError> {
        let biases = &layer.biases;
        let biases = [
            vector_places(self.checkpoint, &biases.gate, columns.clone())?,
            vector_places(self.checkpoint, &biases.up, columns.clone())?,
        ];
        let matrices = vec![
            self.rows(&layer.gate, columns.clone())?,
            self.rows(&layer.up, columns.clone())?,
        ];
        Ok(UnitLayer {
            biases: joined_biases(&biases, &matrices),
            columns: matrices,
            partials: self.columns(&layer.down, columns)?,
        })
    }

    /// Rows of a column-parallel weight, all columns.
    fn rows(&mut self, name: &str, rows: impl IntoIterator<Item = usize>) -> Result<Matrix, BackendError> {
        let cols = tensor(self.checkpoint, name)?.cols;
        self.pack(name, &rows.into_iter().collect::<Vec<_>>(), 0..cols)
    }

    /// Columns of a row-parallel weight, all rows.
    fn columns(&mut self, name: &str, columns: Range<usize>) -> Result<Matrix, BackendError> {
        let rows = tensor(self.checkpoint, name)?.rows;
        self.pack(name, &(0..rows).collect::<Vec<_>>(), columns)
    }

    fn pack(&mut self, name: &str, rows: &[usize], columns: Range<usize>) -> Result<Matrix, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        let weight_type = self.mode.weight_type(tensor.weight_type);
        let matrix = Matrix {
            kind: PackedKind::of(weight_type),
            rows: rows.len(),
            cols: columns.len(),
            at: self.bytes.len(),
        };
        if weight_type == tensor.weight_type {
            let row = |row: usize| Cow::Borrowed(tensor.row(rows[row]));
            pack_rows(weight_type, rows.len(), columns, row, &mut self.bytes);
        } else {
            let row = |row: usize| {
                let mut values = vec![0.0; columns.len()];
                tensor.dequantize_row_columns(rows[row], columns.clone(), &mut values);
                let mut stored = Vec::with_capacity(weight_type.row_bytes(values.len()));
                quantize(weight_type, &values, &mut stored);
                Cow::Owned(stored)
            };
            pack_rows(weight_type, rows.len(), 0..columns.len(), row, &mut self.bytes);
        }
        Ok(matrix)
    }
}

fn joined_biases(biases: &[Vec<f32>], matrices: &[Matrix]) -> Vec<f32> {
    if biases.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let absent = |matrix: &Matrix| vec![-0.0; matrix.rows];
    let each = biases.iter().zip(matrices);
    each.flat_map(|(bias, matrix)| if bias.is_empty() { absent(matrix) } else { bias.clone() })
        .collect()
}
