//! A rank's KV cells: one slab per local KV head, in memory that is only touched when a block is used.
//!
//! Who may write to which block is the books' matter; `CellLayout` says where the bytes lie.

use std::{collections::BTreeMap, ops::Range};

use kvasir_kv::{BlockId, CellLayout, KvHead};

use crate::{arith::HugeBuffer, backend::BackendError};

/// Of one slab.
const RESERVE_BYTES_MAX: u64 = 1 << 36;

#[derive(Debug)]
pub struct Cells {
    layout: CellLayout,
    num_blocks: u32,
    /// Address space of a slab at least, so that a pool may grow without its cells being moved.
    reserve_bytes: usize,
    heads: Range<u32>,
    /// One per head of `heads`: `[num_blocks][cell_bytes]`
    slabs: Vec<HugeBuffer>,
    /// Of heads that the next epoch will have, by head.
    ahead: BTreeMap<u32, HugeBuffer>,
}

impl Cells {
    pub fn new(layout: CellLayout) -> Self {
        Self {
            layout,
            num_blocks: 0,
            reserve_bytes: 0,
            heads: 0..0,
            slabs: Vec::new(),
            ahead: BTreeMap::new(),
        }
    }

    /// Slabs get an address space of so many bytes each; memory only as they are used.
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        let bytes = usize::try_from(bytes.min(RESERVE_BYTES_MAX)).unwrap_or(0);
        self.reserve_bytes = bytes / self.layout.cell_bytes() * self.layout.cell_bytes();
        self
    }

    pub fn layout(&self) -> &CellLayout {
        &self.layout
    }

    /// Makes room for `num_blocks` cells of each of `heads`. What the cells held before is forgotten, not cleared.
    pub fn resize(&mut self, heads: Range<u32>, num_blocks: u32) -> Result<(), BackendError> {
        self.ahead.clear();
        if num_blocks != self.num_blocks {
            self.slabs.clear();
        }
        self.slabs.truncate(heads.len());
        while self.slabs.len() < heads.len() {
            let slab = self.slab(num_blocks)?;
            self.slabs.push(slab);
        }
        self.num_blocks = num_blocks;
        self.heads = heads;
        Ok(())
    }

    /// Makes room for cells of those of `heads` that are not here yet, beside all that is.
    pub fn prepare(&mut self, heads: Range<u32>, num_blocks: u32) -> Result<(), BackendError> {
        self.ahead.clear();
        for head in heads.filter(|head| !self.heads.contains(head)) {
            let slab = self.slab(num_blocks)?;
            self.ahead.insert(head, slab);
        }
        Ok(())
    }

    /// Goes on with `heads`: those that were here keep their cells, the others have what was prepared. Of other blocks than
    /// `held` the memory is given back.
    pub fn switch(&mut self, heads: Range<u32>, num_blocks: u32, held: &[BlockId]) -> Result<(), BackendError> {
        let mut all = std::mem::take(&mut self.ahead);
        all.extend(self.heads.clone().zip(std::mem::take(&mut self.slabs)));
        let bytes = self.layout.slab_bytes(num_blocks);
        for head in heads.clone() {
            let mut slab = match all.remove(&head) {
                Some(slab) if slab.len() >= bytes => slab,
                Some(short) => {
                    let mut slab = self.slab(num_blocks)?;
                    slab[..short.len()].copy_from_slice(&short);
                    slab
                }
                None => self.slab(num_blocks)?,
            };
            self.discard_but(&mut slab, held);
            self.slabs.push(slab);
        }
        self.num_blocks = num_blocks;
        self.heads = heads;
        Ok(())
    }

    fn discard_but(&self, slab: &mut HugeBuffer, held: &[BlockId]) {
        let mut held = held.to_vec();
        held.sort();
        let mut begin = 0;
        let ends = held.iter().map(|block| self.range(*block));
        for kept in ends.chain(std::iter::once(slab.len()..slab.len())) {
            if begin < kept.start.min(slab.len()) {
                slab.discard(begin..kept.start.min(slab.len()));
            }
            begin = kept.end;
        }
    }

    fn slab(&self, num_blocks: u32) -> Result<HugeBuffer, BackendError> {
        let bytes = self.layout.slab_bytes(num_blocks);
        // Where address space is short, a pool that grows has its cells moved.
        let slab = HugeBuffer::new(bytes.max(self.reserve_bytes)).or_else(|_| HugeBuffer::new(bytes));
        slab.map_err(|_| BackendError::OutOfMemory {
            what: "KV cells",
            bytes,
        })
    }

    pub fn slabs_mut(&mut self) -> &mut [HugeBuffer] {
        &mut self.slabs
    }

    /// The bytes of a cell, of this epoch or prepared for the next; `None` if it is neither.
    pub fn cell(&self, head: KvHead, block: BlockId) -> Option<&[u8]> {
        let slab = match self.slab_of(head) {
            Some(index) => self.slabs.get(index),
            None => self.ahead.get(&head.0),
        };
        slab?.get(self.range(block))
    }

    pub fn cell_mut(&mut self, head: KvHead, block: BlockId) -> Option<&mut [u8]> {
        let range = self.range(block);
        let slab = match self.slab_of(head) {
            Some(index) => self.slabs.get_mut(index),
            None => self.ahead.get_mut(&head.0),
        };
        slab?.get_mut(range)
    }

    fn slab_of(&self, head: KvHead) -> Option<usize> {
        let is_local = self.heads.contains(&head.0);
        is_local.then(|| (head.0 - self.heads.start) as usize)
    }

    fn range(&self, block: BlockId) -> Range<usize> {
        let start = block.0 as usize * self.layout.cell_bytes();
        start..start + self.layout.cell_bytes()
    }

    /// Of the cells of these blocks of each local head: what is there, not what should be.
    pub fn held_bytes(&self, blocks: &[BlockId]) -> u64 {
        let heads = self.heads.clone().map(KvHead);
        let cells = heads.flat_map(|head| blocks.iter().filter_map(move |block| self.cell(head, *block)));
        cells.map(|cell| cell.len() as u64).sum()
    }

    /// CRC-32C of a block's cell of each local head.
    pub fn checksums(&self, block: BlockId) -> Vec<u32> {
        let cell = self.range(block);
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
    fn cells_of_heads_that_stay_are_where_they_were_after_a_switch_and_others_are_those_prepared() {
        let layout = CellLayout::new(2, 64, 64, KvDtype::F16).unwrap();
        let byte = |head: u32, block: u32| (10 * head + block + 1) as u8;
        for (reserve, blocks) in [(0, 6), (1 << 30, 6), (1 << 30, 3)] {
            let mut cells = Cells::new(layout).with_reserve(reserve);
            cells.resize(0..3, 4).unwrap();
            let fill = |cells: &mut Cells, head: u32, block: u32| {
                cells
                    .cell_mut(KvHead(head), BlockId(block))
                    .unwrap()
                    .fill(byte(head, block));
            };
            for (head, block) in (0..3).flat_map(|head| (0..4).map(move |block| (head, block))) {
                fill(&mut cells, head, block);
            }
            cells.prepare(2..5, blocks).unwrap();
            assert!(cells.cell(KvHead(5), BlockId(0)).is_none());
            for head in [3, 4] {
                fill(&mut cells, head, 2);
            }
            cells.switch(2..5, blocks, &[BlockId(2)]).unwrap();
            for head in 2..5 {
                let cell = cells.cell(KvHead(head), BlockId(2)).unwrap();
                assert!(
                    cell.iter().all(|found| *found == byte(head, 2)),
                    "head {head}, reserve {reserve}"
                );
            }
            // The cells are larger than pages: what is inside them is given back.
            let freed = cells.cell(KvHead(2), BlockId(1)).unwrap();
            assert_eq!(freed[freed.len() / 2], 0);
            assert!(cells.cell(KvHead(1), BlockId(2)).is_none());
            assert_eq!(cells.checksums(BlockId(2)).len(), 3);
        }
    }

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
