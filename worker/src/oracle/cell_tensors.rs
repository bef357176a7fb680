//! K and V of the rank's heads by block: one tensor per cell, made when something is first written to it.
//!
//! Who may write to which block is the books' matter. K is stored after its rotation, both in the cells' dtype.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{DType, Device, Result, Tensor};
use kvasir_kv::{BlockId, CellLayout, KvDtype, KvHead, Q8_0_LEN};

use crate::backend::BackendError;

type BackendResult<T> = std::result::Result<T, BackendError>;

#[derive(Debug)]
pub(super) struct CellTensors {
    layout: CellLayout,
    device: Device,
    /// By KV head and block: [num_layers * 2 * block_size, head_dim], of each layer K, then V.
    cells: BTreeMap<(u32, BlockId), Tensor>,
}

/// One layer of one head's cells.
pub(super) struct HeadCells<'a> {
    all: &'a mut CellTensors,
    head: u32,
    layer: usize,
}

/// Which half of a layer's part of a cell.
#[derive(Clone, Copy)]
enum Plane {
    K,
    V,
}

impl CellTensors {
    pub(super) fn new(layout: CellLayout, device: Device) -> Self {
        let cells = BTreeMap::new();
        Self { layout, device, cells }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
    }

    /// The cells of `heads` and `held` blocks; all others are forgotten.
    pub(super) fn take(&mut self, heads: Range<u32>, held: &[BlockId]) -> BTreeMap<(u32, BlockId), Tensor> {
        let mut cells = std::mem::take(&mut self.cells);
        cells.retain(|(head, block), _| heads.contains(head) && held.contains(block));
        cells
    }

    pub(super) fn put_back(&mut self, cells: BTreeMap<(u32, BlockId), Tensor>) {
        self.cells.extend(cells);
    }

    pub(super) fn of_head(&mut self, head: u32, layer: usize) -> HeadCells<'_> {
        HeadCells { all: self, head, layer }
    }

    /// A cell in the order of `CellLayout`: K transposed, then V, layer by layer. One that was never written is zeros.
    pub(super) fn export(&self, head: KvHead, block: BlockId, bytes: &mut [u8]) -> BackendResult<()> {
        self.check_movable(bytes.len(), head, block)?;
        let Some(cell) = self.cells.get(&(head.0, block)) else {
            bytes.fill(0);
            return Ok(());
        };
        let values = cell.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for (at, source) in self.order().enumerate() {
            match self.layout.dtype() {
                KvDtype::F16 => {
                    let value = half::f16::from_f32(values[source]);
                    bytes[2 * at..][..2].copy_from_slice(&value.to_le_bytes());
                }
                _ => bytes[4 * at..][..4].copy_from_slice(&values[source].to_le_bytes()),
            }
        }
        Ok(())
    }

    pub(super) fn import(&mut self, head: KvHead, block: BlockId, bytes: &[u8]) -> BackendResult<()> {
        self.check_movable(bytes.len(), head, block)?;
        let num_values = self.layout.num_layers() as usize * 2 * self.block_size() * self.layout.head_dim() as usize;
        let mut values = vec![0.0f32; num_values];
        for (at, target) in self.order().enumerate() {
            values[target] = match self.layout.dtype() {
                KvDtype::F16 => half::f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32(),
                _ => f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
            };
        }
        let columns = self.layout.head_dim() as usize;
        let cell = Tensor::from_vec(values, (num_values / columns, columns), &self.device)?.to_dtype(self.dtype())?;
        self.cells.insert((head.0, block), cell);
        Ok(())
    }

    fn check_movable(&self, len: usize, head: KvHead, block: BlockId) -> BackendResult<()> {
        if self.layout.dtype() == KvDtype::Q8_0 {
            let reason = "cells of q8_0 are kept as what they stand for, and are not moved; use f16 or f32".to_owned();
            return Err(BackendError::Device {
                backend: "candle",
                reason,
            });
        }
        match len == self.layout.cell_bytes() {
            true => Ok(()),
            false => Err(BackendError::NoSuchCell { head, block }),
        }
    }

    /// For each value in the order of `CellLayout`, where it is in a cell's tensor.
    fn order(&self) -> impl Iterator<Item = usize> {
        let (block_size, head_dim) = (self.block_size(), self.layout.head_dim() as usize);
        let plane = block_size * head_dim;
        (0..self.layout.num_layers() as usize).flat_map(move |layer| {
            let (k, v) = (2 * layer * plane, (2 * layer + 1) * plane);
            let k = (0..plane).map(move |i| k + i % block_size * head_dim + i / block_size);
            k.chain((0..plane).map(move |i| v + i))
        })
    }

    fn block_size(&self) -> usize {
        self.layout.block_size() as usize
    }

    /// Of the tensors: what q8_0 would hold is kept in f32.
    fn dtype(&self) -> DType {
        match self.layout.dtype() {
            KvDtype::F32 | KvDtype::Q8_0 => DType::F32,
            KvDtype::F16 => DType::F16,
        }
    }

    /// values: [positions, head_dim], to what cells would hold of them.
    fn round(&self, values: &Tensor) -> Result<Tensor> {
        if self.layout.dtype() == KvDtype::Q8_0 {
            return round_to_q8_0(values);
        }
        values.to_dtype(self.dtype())?.contiguous()
    }

    fn cell(&mut self, head: u32, block: BlockId) -> Result<&Tensor> {
        let dtype = self.dtype();
        let rows = self.layout.num_layers() as usize * 2 * self.block_size();
        let columns = self.layout.head_dim() as usize;
        Ok(match self.cells.entry((head, block)) {
            std::collections::btree_map::Entry::Occupied(cell) => cell.into_mut(),
            std::collections::btree_map::Entry::Vacant(room) => {
                room.insert(Tensor::zeros((rows, columns), dtype, &self.device)?)
            }
        })
    }
}

impl HeadCells<'_> {
    /// Writes K and V of the positions from `start` of a sequence with this block table; both [positions, head_dim].
    pub(super) fn write(&mut self, blocks: &[BlockId], start: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        for (plane, values) in [(Plane::K, k), (Plane::V, v)] {
            let values = self.all.round(values)?;
            let end = start + values.dim(0)?;
            let mut position = start;
            while position < end {
                let offset = position % self.all.block_size();
                let len = (self.all.block_size() - offset).min(end - position);
                let run = values.narrow(0, position - start, len)?;
                let row = self.first_row(plane) + offset;
                let block = blocks[position / self.all.block_size()];
                self.all.cell(self.head, block)?.slice_set(&run, 0, row)?;
                position += len;
            }
        }
        Ok(())
    }

    /// K and V of the first `len` positions, in f32; both [len, head_dim].
    pub(super) fn read(&mut self, blocks: &[BlockId], len: usize) -> Result<(Tensor, Tensor)> {
        Ok((
            self.read_plane(Plane::K, blocks, len)?,
            self.read_plane(Plane::V, blocks, len)?,
        ))
    }

    fn read_plane(&mut self, plane: Plane, blocks: &[BlockId], len: usize) -> Result<Tensor> {
        let (first, block_size) = (self.first_row(plane), self.all.block_size());
        let mut parts = Vec::new();
        for (index, block) in blocks[..len.div_ceil(block_size)].iter().enumerate() {
            let rows = block_size.min(len - index * block_size);
            parts.push(self.all.cell(self.head, *block)?.narrow(0, first, rows)?);
        }
        Tensor::cat(&parts, 0)?.to_dtype(DType::F32)
    }

    fn first_row(&self, plane: Plane) -> usize {
        (2 * self.layer + plane as usize) * self.all.block_size()
    }
}

/// Each 32 dimensions of a position as an f16 scale times integers of -127 to 127. Not finite values stay so.
fn round_to_q8_0(values: &Tensor) -> Result<Tensor> {
    let rounded = values.flatten_all()?.to_vec1::<f32>()?;
    let rounded = rounded.chunks(Q8_0_LEN).flat_map(|block| {
        let amax = block.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
        let scale = half::f16::from_f32(amax / 127.0).to_f32();
        let round = move |x: &f32| {
            if scale == 0.0 {
                0.0 * x
            } else {
                scale * (x / (amax / 127.0)).round()
            }
        };
        block.iter().map(round)
    });
    Tensor::from_vec(rounded.collect::<Vec<f32>>(), values.shape(), values.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_in_pieces_is_read_in_order_and_rounded() {
        let layout = CellLayout::new(2, 1, 16, KvDtype::F16).unwrap();
        let mut all = CellTensors::new(layout, Device::Cpu);
        let blocks = [7, 2, 5].map(BlockId);
        let k: Vec<f32> = (0..40).map(|position| position as f32 + 0.2).collect();
        let column = |values: &[f32]| Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap();
        let v: Vec<f32> = k.iter().map(|k| -k).collect();
        for layer in [1, 0] {
            for (start, end) in [(0, 10), (10, 40)] {
                let factor = 1.0 + layer as f64;
                let k = (column(&k[start..end]) * factor).unwrap();
                all.of_head(3, layer)
                    .write(&blocks, start, &k, &column(&v[start..end]))
                    .unwrap();
            }
        }
        for (layer, factor) in [(0, 1.0), (1, 2.0)] {
            let (read_k, read_v) = all.of_head(3, layer).read(&blocks, 39).unwrap();
            let rounded = |value: f32| half::f16::from_f32(value).to_f32();
            let expected_k: Vec<f32> = k[..39].iter().map(|k| rounded(k * factor)).collect();
            let expected_v: Vec<f32> = v[..39].iter().map(|v| rounded(*v)).collect();
            assert_eq!(read_k.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected_k);
            assert_eq!(read_v.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected_v);
        }
    }
}
