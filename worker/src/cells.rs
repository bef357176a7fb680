//! A rank's KV cells: one slab per local KV head, in memory that is only touched when a block is used.
//!
//! Who may write to which block is the books' matter; `CellLayout` says where the bytes lie.

use std::ops::Range;

use kvasir_kv::CellLayout;

use crate::{
    arith::{HugeBuffer, KvView},
    backend::BackendError,
};

#[derive(Debug)]
pub struct Cells {
    layout: CellLayout,
    num_blocks: u32,
    heads: Range<u32>,
    /// One per head of `heads`: `[num_blocks][cell_bytes]`
    slabs: Vec<HugeBuffer>,
}

impl Cells {
    pub fn new(layout: CellLayout) -> Self {
        Self {
            layout,
            num_blocks: 0,
            heads: 0..0,
            slabs: Vec::new(),
        }
    }

    pub fn layout(&self) -> &CellLayout {
        &self.layout
    }

    /// Makes room for `num_blocks` cells of each of `heads`. What the cells held before is forgotten, not cleared.
    pub fn resize(&mut self, heads: Range<u32>, num_blocks: u32) -> Result<(), BackendError> {
        if num_blocks != self.num_blocks {
            self.slabs.clear();
        }
        let bytes = self.layout.slab_bytes(num_blocks);
        self.slabs.truncate(heads.len());
        while self.slabs.len() < heads.len() {
            let slab = HugeBuffer::new(bytes).map_err(|_| BackendError::OutOfMemory {
                what: "KV cells",
                bytes,
            })?;
            self.slabs.push(slab);
        }
        self.num_blocks = num_blocks;
        self.heads = heads;
        Ok(())
    }

    pub fn slabs_mut(&mut self) -> &mut [HugeBuffer] {
        &mut self.slabs
    }

    /// One layer of all cells of the local head `index`.
    pub fn view(&self, index: usize, layer: u32) -> KvView<'_> {
        KvView::new(&self.slabs[index], self.layout, layer)
    }

    /// Where layer `layer` of block `block` lies in a slab.
    pub fn layer_cell(layout: &CellLayout, block: u32, layer: u32) -> Range<usize> {
        let start = block as usize * layout.cell_bytes();
        let range = layout.layer_range(layer);
        start + range.start..start + range.end
    }
}
