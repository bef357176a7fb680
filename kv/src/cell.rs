//! Cells: one block of one KV head of one layer class, the unit of ownership, accounting and transfer.
//!
//! `CellLayout` is the one place that decides where a cell's bytes lie. K is stored transposed, `[head_dim][block_size]`,
//! so that a dot product over head_dim runs in lanes of positions; V is row-major, `[block_size][head_dim]`. Where a dtype
//! has scales, they follow the quants of their plane.

use std::ops::Range;

use crate::{BlockId, KvDtype, KvHead};

/// Layers that share one cell geometry. One class today; sliding-window models will have two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LayerClass(pub u8);

/// Names a cell of a group: where it lies is the owner's matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CellId {
    pub block: BlockId,
    pub head: KvHead,
    pub class: LayerClass,
}

/// Positions of one absolute attention chunk; a block size divides it.
pub const ATTENTION_CHUNK: u32 = 256;

/// The strides of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CellLayout {
    num_layers: u32,
    head_dim: u32,
    block_size: u32,
    dtype: KvDtype,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CellLayoutError {
    #[error("block size {block_size} must be 16, 32, 64, 128 or 256 tokens")]
    BlockSize { block_size: u32 },
    #[error("KV dtype {dtype} stores 32 dimensions together, this model's heads have {head_dim}: use f16 or f32")]
    HeadDim { dtype: KvDtype, head_dim: u32 },
}

impl CellLayout {
    pub fn new(num_layers: u32, head_dim: u32, block_size: u32, dtype: KvDtype) -> Result<Self, CellLayoutError> {
        if block_size < 16 || !ATTENTION_CHUNK.is_multiple_of(block_size) {
            return Err(CellLayoutError::BlockSize { block_size });
        }
        if !dtype.fits(head_dim as usize) {
            return Err(CellLayoutError::HeadDim { dtype, head_dim });
        }
        Ok(Self {
            num_layers,
            head_dim,
            block_size,
            dtype,
        })
    }

    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    pub fn num_layers(&self) -> u32 {
        self.num_layers
    }

    /// Bytes of K, or of V, of one layer of a cell.
    pub fn plane_bytes(&self) -> usize {
        self.block_size as usize * self.dtype.row_bytes(self.head_dim as usize)
    }

    /// Bytes of a cell: `2 * num_layers * block_size * row_bytes(head_dim)`.
    pub fn cell_bytes(&self) -> usize {
        2 * self.num_layers as usize * self.plane_bytes()
    }

    /// Bytes of a slab that holds `num_blocks` cells of one KV head.
    pub fn slab_bytes(&self, num_blocks: u32) -> usize {
        num_blocks as usize * self.cell_bytes()
    }

    /// Where layer `layer` of a cell lies inside the cell: K, then V.
    pub fn layer_range(&self, layer: u32) -> Range<usize> {
        assert!(layer < self.num_layers, "layer {layer} of {}", self.num_layers);
        let start = 2 * layer as usize * self.plane_bytes();
        start..start + 2 * self.plane_bytes()
    }

    /// Blocks that hold `num_tokens` positions.
    pub fn blocks_for(&self, num_tokens: u32) -> u32 {
        num_tokens.div_ceil(self.block_size)
    }

    /// KV bytes of one token position over all layers of one head.
    pub fn token_bytes(&self) -> usize {
        self.cell_bytes() / self.block_size as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_bytes_are_the_founding_formula() {
        let layout = CellLayout::new(30, 64, 64, KvDtype::F16).unwrap();
        assert_eq!(layout.cell_bytes(), 2 * 30 * 64 * 64 * 2);
        assert_eq!(layout.layer_range(29).end, layout.cell_bytes());
        assert_eq!(layout.token_bytes(), 2 * 30 * 64 * 2);
        assert_eq!(layout.blocks_for(65), 2);
    }

    #[test]
    fn q8_0_cells_take_34_bytes_for_32_dimensions_and_refuse_other_heads() {
        let layout = CellLayout::new(30, 64, 64, KvDtype::Q8_0).unwrap();
        assert_eq!(layout.token_bytes(), 2 * 30 * 68);
        let error = CellLayout::new(30, 80, 64, KvDtype::Q8_0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "KV dtype q8_0 stores 32 dimensions together, this model's heads have 80: use f16 or f32"
        );
    }

    #[test]
    fn block_sizes_that_do_not_divide_a_chunk_are_refused() {
        for block_size in [0, 1, 8, 24, 48, 512] {
            assert_eq!(
                CellLayout::new(1, 64, block_size, KvDtype::F32),
                Err(CellLayoutError::BlockSize { block_size })
            );
        }
    }
}
