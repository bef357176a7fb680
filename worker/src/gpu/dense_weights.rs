//! A rank's weights in the fast mode: bf16 matrices, row-major, one for each product of a layer whatever the number of units.
//!
//! Every stored type becomes bf16, so a quantized file takes more memory here than on disk. The units of a share are neighbours,
//! so a share is ranges of rows and columns; another share loads all of its own anew.

use std::ops::Range;

use half::bf16;
use kvasir_kv::{RankShare, UnitId, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, LayerTensors};

use super::device::{DeviceBuffer, GpuDevice};
use crate::{
    backend::BackendError,
    weights::{rotated_rows, tensor, vector_places},
};

/// `[rows][cols]`, bf16.
#[derive(Debug)]
pub struct Dense<B> {
    buffer: B,
    pub rows: u32,
    pub cols: u32,
}

impl<B: DeviceBuffer> Dense<B> {
    pub fn address(&self) -> u64 {
        self.buffer.address()
    }
}

/// A phase of a layer.
#[derive(Debug)]
pub struct DensePhase<B> {
    /// Attention: q, k and v of each local head in turn. FFN: gate of all columns, then up.
    pub columns: Dense<B>,
    /// The output projection's, or down's, local columns.
    pub partials: Dense<B>,
    /// As `columns`' rows; empty where a model has none.
    pub biases: Vec<f32>,
}

#[derive(Debug)]
pub struct DenseLayer<B> {
    /// `None` where this rank has no unit of it.
    pub attention: Option<DensePhase<B>>,
    pub ffn: Option<DensePhase<B>>,
}

#[derive(Debug)]
pub struct DenseWeights<B> {
    share: RankShare,
    pub layers: Vec<DenseLayer<B>>,
    pub head: Option<Dense<B>>,
}

impl<B: DeviceBuffer> DenseWeights<B> {
    pub fn load<D: GpuDevice<Buffer = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        layout: &UnitLayout,
        share: &RankShare,
    ) -> Result<Self, BackendError> {
        let mut loader = Loader { device, checkpoint };
        let columns = extent(layout, UnitKind::Ffn, &share.ffn);
        let mut layers = Vec::new();
        for layer in &checkpoint.tensors().layers {
            layers.push(DenseLayer {
                attention: loader.attention(layout, layer, share.attention.clone())?,
                ffn: loader.ffn(layer, columns.clone())?,
            });
        }
        let rows = extent(layout, UnitKind::Vocab, &share.vocab);
        let head = match rows.is_empty() {
            true => None,
            false => Some(loader.rows(&[(&checkpoint.tensors().output, rows.collect())])?),
        };
        let share = share.clone();
        Ok(Self { share, layers, head })
    }

    pub fn share(&self) -> &RankShare {
        &self.share
    }

    pub fn bytes(&self) -> u64 {
        let phases = self.layers.iter().flat_map(|layer| [&layer.attention, &layer.ffn]);
        let of_layers = phases
            .flatten()
            .map(|phase| phase.columns.buffer.bytes() + phase.partials.buffer.bytes());
        let of_head = self.head.as_ref().map_or(0, |head| head.buffer.bytes());
        (of_layers.sum::<usize>() + of_head) as u64
    }
}

/// Columns or rows of some units.
fn extent(layout: &UnitLayout, kind: UnitKind, units: &Range<u32>) -> Range<usize> {
    if units.is_empty() {
        return 0..0;
    }
    let (first, last) = (UnitId(units.start), UnitId(units.end - 1));
    layout.extent(kind, first).start as usize..layout.extent(kind, last).end as usize
}

struct Loader<'a, D> {
    device: &'a mut D,
    checkpoint: &'a Checkpoint,
}

impl<D: GpuDevice> Loader<'_, D> {
    fn attention(
        &mut self,
        layout: &UnitLayout,
        layer: &LayerTensors,
        heads: Range<u32>,
    ) -> Result<Option<DensePhase<D::Buffer>>, BackendError> {
        if heads.is_empty() {
            return Ok(None);
        }
        let shape = layout.shape().heads;
        let (group, dim) = (shape.group_columns() as usize, shape.head_dim() as usize);
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        for head in heads.start as usize..heads.end as usize {
            let queries = rotated_rows(self.checkpoint, head * group..(head + 1) * group);
            let keys = rotated_rows(self.checkpoint, head * dim..(head + 1) * dim);
            let values = head * dim..(head + 1) * dim;
            biases.push((&layer.biases.q, queries.clone().collect()));
            biases.push((&layer.biases.k, keys.clone().collect()));
            biases.push((&layer.biases.v, values.clone().collect()));
            parts.push((&layer.wq, queries.collect()));
            parts.push((&layer.wk, keys.collect()));
            parts.push((&layer.wv, values.collect()));
        }
        let columns = heads.start as usize * group..heads.end as usize * group;
        Ok(Some(DensePhase {
            columns: self.rows(&parts)?,
            partials: self.columns(&layer.wo, columns)?,
            biases: self.biases(&biases)?,
        }))
    }

    fn ffn(
        &mut self,
        layer: &LayerTensors,
        columns: Range<usize>,
    ) -> Result<Option<DensePhase<D::Buffer>>, BackendError> {
        if columns.is_empty() {
            return Ok(None);
        }
        let rows: Vec<usize> = columns.clone().collect();
        let biases = [(&layer.biases.gate, rows.clone()), (&layer.biases.up, rows.clone())];
        Ok(Some(DensePhase {
            columns: self.rows(&[(&layer.gate, rows.clone()), (&layer.up, rows)])?,
            partials: self.columns(&layer.down, columns)?,
            biases: self.biases(&biases)?,
        }))
    }

    /// Of all parts one after the other; zeros for a part without, unless all are.
    fn biases(&self, parts: &[(&Option<String>, Vec<usize>)]) -> Result<Vec<f32>, BackendError> {
        if parts.iter().all(|(name, _)| name.is_none()) {
            return Ok(Vec::new());
        }
        let mut biases = Vec::new();
        for (name, places) in parts {
            match name {
                Some(_) => biases.extend(vector_places(self.checkpoint, name, places.iter().copied())?),
                None => biases.resize(biases.len() + places.len(), 0.0),
            }
        }
        Ok(biases)
    }

    /// Whole rows of some tensors, one after the other.
    fn rows(&mut self, parts: &[(&String, Vec<usize>)]) -> Result<Dense<D::Buffer>, BackendError> {
        let (mut values, mut cols) = (Vec::new(), 0);
        for (name, rows) in parts {
            let tensor = tensor(self.checkpoint, name)?;
            cols = tensor.cols;
            let mut row = vec![0.0; cols];
            for &number in rows {
                tensor.dequantize_row(number, &mut row);
                values.extend(row.iter().map(|x| bf16::from_f32(*x)));
            }
        }
        self.upload(&values, cols)
    }

    /// Some columns of all rows.
    fn columns(&mut self, name: &str, columns: Range<usize>) -> Result<Dense<D::Buffer>, BackendError> {
        let tensor = tensor(self.checkpoint, name)?;
        let mut part = vec![0.0; columns.len()];
        let mut values = Vec::with_capacity(tensor.rows * columns.len());
        for row in 0..tensor.rows {
            tensor.dequantize_row_columns(row, columns.clone(), &mut part);
            values.extend(part.iter().map(|x| bf16::from_f32(*x)));
        }
        self.upload(&values, columns.len())
    }

    fn upload(&mut self, values: &[bf16], cols: usize) -> Result<Dense<D::Buffer>, BackendError> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let buffer = self.device.allocate("weights", bytes.len())?;
        self.device.upload(&bytes, &buffer, 0)?;
        let rows = (values.len() / cols) as u32;
        Ok(Dense {
            buffer,
            rows,
            cols: cols as u32,
        })
    }
}
