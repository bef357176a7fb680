//! The block pool of a TP group: every block is free, held or in flight, and none is ever lost.
//!
//! A `Block` is an owning handle and not `Clone`; giving it back takes it. A returned block stays *in flight* until all
//! ranks have acknowledged the last step that names it, because a rank may still be writing to it.

use std::collections::VecDeque;

use crate::{BlockId, BlockTag, StepId};

/// An owned block. Dropping it without releasing it to its pool is a leak; `check_invariants` finds it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a block is given back with BlockPool::release"]
pub struct Block {
    id: BlockId,
    tag: BlockTag,
}

impl Block {
    pub fn id(&self) -> BlockId {
        self.id
    }

    pub fn tag(&self) -> BlockTag {
        self.tag
    }

    pub fn tagged(&self) -> TaggedBlock {
        TaggedBlock {
            id: self.id,
            tag: self.tag,
        }
    }
}

/// Names a block as of one allocation; plans carry it and ranks check it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaggedBlock {
    pub id: BlockId,
    pub tag: BlockTag,
}

/// A sequence's blocks in token order, append-only. Not `Clone`: it owns them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<Block>,
}

impl BlockTable {
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn append(&mut self, block: Block) {
        self.blocks.push(block);
    }

    pub fn tagged(&self) -> impl Iterator<Item = TaggedBlock> + '_ {
        self.blocks.iter().map(Block::tagged)
    }

    /// Gives all blocks back to the pool's keeper.
    pub fn take(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.blocks)
    }
}

/// Blocks by state. `free + cached + held + in_flight == total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockCounts {
    pub free: u32,
    pub cached: u32,
    pub held: u32,
    pub in_flight: u32,
    pub total: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockPoolError {
    #[error("{needed} blocks needed, {free} free")]
    OutOfBlocks { needed: u32, free: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Held,
    InFlight,
}

#[derive(Debug)]
pub struct BlockPool {
    states: Vec<State>,
    tags: Vec<BlockTag>,
    /// Oldest first, so that a stale write has the longest time to be noticed.
    free: VecDeque<BlockId>,
    /// Released blocks with the last step that may name them, in release order.
    in_flight: Vec<(StepId, BlockId)>,
    held: u32,
}

impl BlockPool {
    pub fn new(num_blocks: u32) -> Self {
        Self {
            states: vec![State::Free; num_blocks as usize],
            tags: vec![BlockTag(0); num_blocks as usize],
            free: (0..num_blocks).map(BlockId).collect(),
            in_flight: Vec::new(),
            held: 0,
        }
    }

    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn counts(&self) -> BlockCounts {
        BlockCounts {
            free: self.num_free(),
            cached: 0,
            held: self.held,
            in_flight: self.in_flight.len() as u32,
            total: self.states.len() as u32,
        }
    }

    /// Appends `count` blocks to `table`, or takes nothing and errors.
    pub fn allocate(&mut self, count: u32, table: &mut BlockTable) -> Result<(), BlockPoolError> {
        if count > self.num_free() {
            return Err(BlockPoolError::OutOfBlocks {
                needed: count,
                free: self.num_free(),
            });
        }
        for id in self.free.drain(..count as usize) {
            let index = id.0 as usize;
            self.states[index] = State::Held;
            self.tags[index] = BlockTag(self.tags[index].0.wrapping_add(1));
            table.append(Block {
                id,
                tag: self.tags[index],
            });
        }
        self.held += count;
        Ok(())
    }

    /// Takes blocks back. They become free when step `last_named` is acknowledged; at once if it is `None`.
    ///
    /// # Panics
    /// If a block is not held under this tag: it was released twice or belongs to another pool.
    pub fn release(&mut self, blocks: Vec<Block>, last_named: Option<StepId>) {
        for block in blocks {
            let index = block.id.0 as usize;
            assert!(
                self.states[index] == State::Held && self.tags[index] == block.tag,
                "block {} released while {:?}, tag {} against {}",
                block.id,
                self.states[index],
                block.tag,
                self.tags[index]
            );
            self.held -= 1;
            match last_named {
                Some(step) => {
                    self.states[index] = State::InFlight;
                    self.in_flight.push((step, block.id));
                }
                None => self.make_free(block.id),
            }
        }
    }

    /// Every rank has acknowledged all steps up to and including `step`.
    pub fn acknowledge(&mut self, step: StepId) {
        let (done, waiting) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(last, _)| *last <= step);
        self.in_flight = waiting;
        let done: Vec<(StepId, BlockId)> = done;
        for (_, id) in done {
            self.make_free(id);
        }
    }

    /// An epoch ended: nothing of it is in flight any more.
    pub fn acknowledge_all(&mut self) {
        for (_, id) in std::mem::take(&mut self.in_flight) {
            self.make_free(id);
        }
    }

    fn make_free(&mut self, id: BlockId) {
        self.states[id.0 as usize] = State::Free;
        self.free.push_back(id);
    }

    /// Conservation, and that each list agrees with the states.
    ///
    /// # Panics
    /// If a block is lost, doubled, or held without being in `tables_len` table entries.
    pub fn check_invariants(&self, tables_len: usize) {
        let counts = self.counts();
        assert_eq!(
            counts.free + counts.cached + counts.held + counts.in_flight,
            counts.total,
            "{counts:?}"
        );
        assert_eq!(counts.held as usize, tables_len, "held blocks and table entries differ");
        let of = |state| self.states.iter().filter(|s| **s == state).count() as u32;
        assert_eq!(
            (of(State::Free), of(State::Held)),
            (counts.free, counts.held),
            "states and lists differ"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_released_block_is_free_only_after_its_last_step_is_acknowledged() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        pool.allocate(2, &mut table).unwrap();
        pool.release(table.take(), Some(StepId(7)));
        assert_eq!(
            pool.counts(),
            BlockCounts {
                free: 0,
                cached: 0,
                held: 0,
                in_flight: 2,
                total: 2
            }
        );
        pool.acknowledge(StepId(6));
        assert_eq!(pool.num_free(), 0);
        pool.acknowledge(StepId(7));
        assert_eq!(pool.num_free(), 2);
    }

    #[test]
    fn a_refused_allocation_takes_nothing() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        assert_eq!(
            pool.allocate(3, &mut table),
            Err(BlockPoolError::OutOfBlocks { needed: 3, free: 2 })
        );
        assert!(table.is_empty());
        pool.check_invariants(0);
    }

    #[test]
    fn each_allocation_changes_the_tag() {
        let mut pool = BlockPool::new(1);
        let mut table = BlockTable::default();
        pool.allocate(1, &mut table).unwrap();
        let first = table.tagged().next().unwrap();
        pool.release(table.take(), None);
        pool.allocate(1, &mut table).unwrap();
        assert_ne!(table.tagged().next().unwrap().tag, first.tag);
    }

    #[test]
    #[should_panic(expected = "released while Free")]
    fn a_double_release_is_caught() {
        let mut pool = BlockPool::new(1);
        let mut table = BlockTable::default();
        pool.allocate(1, &mut table).unwrap();
        let blocks = table.take();
        let forged = Block {
            id: blocks[0].id,
            tag: blocks[0].tag,
        };
        pool.release(blocks, None);
        pool.release(vec![forged], None);
    }

    proptest! {
        #[test]
        fn no_block_is_lost(operations in prop::collection::vec((0u8..4, 0usize..5, 0u32..6), 1..200)) {
            let mut pool = BlockPool::new(16);
            let mut tables: Vec<BlockTable> = (0..5).map(|_| BlockTable::default()).collect();
            let mut step = 0;
            for (operation, table, count) in operations {
                match operation {
                    0 | 1 => drop(pool.allocate(count, &mut tables[table])),
                    2 => pool.release(tables[table].take(), Some(StepId(step))),
                    _ => { pool.acknowledge(StepId(step)); step += 1; }
                }
                pool.check_invariants(tables.iter().map(BlockTable::len).sum());
            }
            for table in &mut tables {
                pool.release(table.take(), None);
            }
            pool.acknowledge_all();
            prop_assert_eq!(pool.num_free(), 16);
        }
    }
}
