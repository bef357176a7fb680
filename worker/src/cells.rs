//! A rank's KV cells: one slab per local KV head, in memory that is only touched when a block is used.
//!
//! Who may write to which block is the books' matter; `CellLayout` says where the bytes lie.

use std::ops::Range;

use kvasir_kv::{BlockId, CellLayout};

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

    /// CRC-32C of a block's cell of each local head.
    pub fn checksums(&self, block: BlockId) -> Vec<u32> {
        let start = block.0 as usize * self.layout.cell_bytes();
        let cell = start..start + self.layout.cell_bytes();
        let cells = self.slabs.iter().map(|slab| &slab[cell.clone()]);
        cells.map(crc32c::crc32c).collect()
    }

    /// Where layer `layer` of block `block` lies in a slab.
    pub fn layer_cell(layout: &CellLayout, block: u32, layer: u32) -> Range<usize> {
        let start = block as usize * layout.cell_bytes();
        let range = layout.layer_range(layer);
        start + range.start..start + range.end
    }
}

#[cfg(test)]
mod tests {
    use kvasir_kv::KvDtype;

    use super::*;

    #[test]
    fn one_flipped_bit_changes_the_checksum_of_its_cell_alone() {
        let layout = CellLayout::new(2, 16, 16, KvDtype::F16).unwrap();
        let mut cells = Cells::new(layout);
        cells.resize(1..3, 4).unwrap();
        let of_all = |cells: &Cells| (0..4).map(|block| cells.checksums(BlockId(block))).collect::<Vec<_>>();
        let before = of_all(&cells);
        for at in [0, layout.cell_bytes() / 2, layout.cell_bytes() - 1] {
            cells.slabs_mut()[1][2 * layout.cell_bytes() + at] ^= 4;
            let after = of_all(&cells);
            let changed = |block: usize, head: usize| before[block][head] != after[block][head];
            for block in 0..4 {
                assert_eq!([changed(block, 0), changed(block, 1)], [false, block == 2]);
            }
            cells.slabs_mut()[1][2 * layout.cell_bytes() + at] ^= 4;
        }
    }
}
