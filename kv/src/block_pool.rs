//! The block pool of a TP group: every block is free, cached, held or in flight, and none is ever lost.
//!
//! When the ranks change while blocks are held, blocks keep their ids: a pool that shrinks withholds ids, whichever are
//! free, and gives them out again when it grows.
//!
//! A `Block` is an owning handle and not `Clone`; giving it back takes it. A full block may have several handles: the
//! pool makes them, and it is held until the last one is back. Then it stays *in flight* until all ranks have
//! acknowledged the last step that names it, because a rank may still be writing to it; after that it is free, or
//! cached if it can be found.

use std::collections::VecDeque;

use crate::{BlockHash, BlockId, BlockTag, StepId, prefix_cache::PrefixCache};

/// A reference to a block. Dropping it without releasing it to its pool is a leak; `check_invariants` finds it.
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

    pub fn get(&self, index: usize) -> Option<&Block> {
        self.blocks.get(index)
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

/// Blocks by state. `free + cached + held + in_flight == total`: a block with several handles is held once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockCounts {
    pub free: u32,
    pub cached: u32,
    pub held: u32,
    pub in_flight: u32,
    pub total: u32,
}

impl BlockCounts {
    /// `total` less all others: 0, or blocks have been lost (above) or doubled (below).
    pub fn unaccounted(&self) -> i64 {
        let known = [self.free, self.cached, self.held, self.in_flight].map(i64::from);
        i64::from(self.total) - known.iter().sum::<i64>()
    }

    /// Blocks that can be allocated: cached ones are evicted for it.
    pub fn available(&self) -> u32 {
        self.free + self.cached
    }
}

/// The longest findable start of a chain of hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PrefixHit {
    pub num_blocks: u32,
    /// Those among them that nobody references: taking them leaves so many fewer to allocate.
    pub num_cached: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockPoolError {
    #[error("{needed} blocks needed, {available} free or cached")]
    OutOfBlocks { needed: u32, available: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Cached,
    /// With this many handles.
    Held(u32),
    InFlight,
    /// Not given out: there are more ids than blocks.
    Withheld,
}

#[derive(Debug)]
pub struct BlockPool {
    states: Vec<State>,
    tags: Vec<BlockTag>,
    /// By block, the last step that a handle given back was named in.
    last_named: Vec<Option<StepId>>,
    /// Oldest first, so that a stale write has the longest time to be noticed.
    free: VecDeque<BlockId>,
    /// Blocks without handles with the last step that may name them.
    in_flight: Vec<(StepId, BlockId)>,
    cache: PrefixCache,
    held: u32,
    withheld: u32,
    /// The newest step that every rank has acknowledged.
    acknowledged: Option<StepId>,
}

impl BlockPool {
    pub fn new(num_blocks: u32) -> Self {
        Self {
            states: vec![State::Free; num_blocks as usize],
            tags: vec![BlockTag(0); num_blocks as usize],
            last_named: vec![None; num_blocks as usize],
            free: (0..num_blocks).map(BlockId).collect(),
            in_flight: Vec::new(),
            cache: PrefixCache::default(),
            held: 0,
            withheld: 0,
            acknowledged: None,
        }
    }

    pub fn counts(&self) -> BlockCounts {
        BlockCounts {
            free: self.free.len() as u32,
            cached: self.cache.num_cached(),
            held: self.held,
            in_flight: self.in_flight.len() as u32,
            total: self.num_ids() - self.withheld,
        }
    }

    /// Ids that blocks have, from 0.
    pub fn num_ids(&self) -> u32 {
        self.states.len() as u32
    }

    /// Ids of blocks with handles.
    pub fn held_ids(&self) -> impl Iterator<Item = BlockId> + '_ {
        let held = |state: &State| matches!(state, State::Held(_));
        let ids = self.states.iter().zip(0..).filter(move |(state, _)| held(state));
        ids.map(|(_, id)| BlockId(id))
    }

    /// For a new epoch that blocks live on in: there are `num_blocks` of them from now on, none of them in flight or
    /// findable. Nothing is changed if more are held.
    pub fn begin_again(&mut self, num_blocks: u32) -> Result<(), BlockPoolError> {
        if self.held > num_blocks {
            return Err(BlockPoolError::OutOfBlocks {
                needed: self.held,
                available: num_blocks,
            });
        }
        self.acknowledge_all();
        self.acknowledged = None;
        self.last_named.fill(None);
        self.cache = PrefixCache::default();
        let len = self.states.len().max(num_blocks as usize);
        self.states.resize(len, State::Free);
        self.tags.resize(len, BlockTag(0));
        self.last_named.resize(len, None);
        let mut left = num_blocks - self.held;
        self.withheld = 0;
        self.free.clear();
        for (state, id) in self.states.iter_mut().zip(0..) {
            if matches!(state, State::Held(_)) {
                continue;
            }
            if left > 0 {
                left -= 1;
                *state = State::Free;
                self.free.push_back(BlockId(id));
            } else {
                self.withheld += 1;
                *state = State::Withheld;
            }
        }
        Ok(())
    }

    /// Appends `count` blocks to `table`, or takes nothing and errors. Returns how many cached blocks were evicted.
    pub fn allocate(&mut self, count: u32, table: &mut BlockTable) -> Result<u32, BlockPoolError> {
        let available = self.counts().available();
        if count > available {
            return Err(BlockPoolError::OutOfBlocks {
                needed: count,
                available,
            });
        }
        let mut evicted = 0;
        for _ in 0..count {
            let id = self.free.pop_front().unwrap_or_else(|| {
                evicted += 1;
                self.cache.evict().expect("every cached block can be evicted")
            });
            let index = id.0 as usize;
            self.states[index] = State::Held(1);
            self.last_named[index] = None;
            // Whoever still names what the block held before is refused.
            self.tags[index] = BlockTag(self.tags[index].0.wrapping_add(1));
            table.append(self.handle(id));
        }
        self.held += count;
        Ok(evicted)
    }

    /// How much of `chain` can be shared.
    pub fn find(&self, chain: &[BlockHash]) -> PrefixHit {
        let mut hit = PrefixHit::default();
        for id in chain.iter().map_while(|hash| self.cache.find(*hash)) {
            hit.num_blocks += 1;
            hit.num_cached += u32::from(self.states[id.0 as usize] == State::Cached);
        }
        hit
    }

    /// Blocks of `table` that nobody else references: releasing it gives back so many.
    pub fn num_sole(&self, table: &BlockTable) -> u32 {
        let sole = |block: &TaggedBlock| self.states[block.id.0 as usize] == State::Held(1);
        table.tagged().filter(sole).count() as u32
    }

    /// Handles of the blocks of these histories, from the first on as long as they can be found.
    pub fn share_chain(&mut self, chain: &[BlockHash]) -> BlockTable {
        let blocks = chain.iter().map_while(|hash| self.share(*hash)).collect();
        BlockTable { blocks }
    }

    /// One more handle of the block with this history, if it can be found. It is full: nobody may write to it.
    pub fn share(&mut self, hash: BlockHash) -> Option<Block> {
        let id = self.cache.find(hash)?;
        let state = &mut self.states[id.0 as usize];
        let handles = match *state {
            State::Held(handles) => handles,
            State::Cached => {
                self.cache.take(id);
                0
            }
            State::InFlight => {
                self.in_flight.retain(|(_, other)| *other != id);
                0
            }
            State::Free | State::Withheld => unreachable!("a free block cannot be found"),
        };
        *state = State::Held(handles + 1);
        self.held += u32::from(handles == 0);
        Some(self.handle(id))
    }

    fn handle(&self, id: BlockId) -> Block {
        let tag = self.tags[id.0 as usize];
        Block { id, tag }
    }

    /// Makes a block findable: it is full, and every rank has acknowledged the step that filled it. If another one with
    /// this history can be found already, that one stays.
    ///
    /// # Panics
    /// If the block is free, or belongs to somebody else by now.
    pub fn commit(&mut self, block: TaggedBlock, hash: BlockHash, parent: BlockHash) {
        let index = block.id.0 as usize;
        assert!(
            matches!(self.states[index], State::Held(_) | State::InFlight) && self.tags[index] == block.tag,
            "block {} committed while {:?}, tag {} against {}",
            block.id,
            self.states[index],
            block.tag,
            self.tags[index]
        );
        self.cache.insert(block.id, hash, parent);
    }

    /// Takes handles back. A block without any is free or cached when `last_named` of all its handles are acknowledged;
    /// at once if they are, or are `None`.
    ///
    /// # Panics
    /// If a block is not held under this tag: it was released too often or belongs to another pool.
    pub fn release(&mut self, blocks: Vec<Block>, last_named: Option<StepId>) {
        for block in blocks {
            let index = block.id.0 as usize;
            let state = self.states[index];
            let State::Held(handles) = state else {
                panic!("block {} released while {state:?}", block.id);
            };
            assert!(
                self.tags[index] == block.tag,
                "block {} released with tag {} against {}",
                block.id,
                block.tag,
                self.tags[index]
            );
            self.last_named[index] = self.last_named[index].max(last_named);
            if handles > 1 {
                self.states[index] = State::Held(handles - 1);
                continue;
            }
            self.held -= 1;
            match self.last_named[index].filter(|step| Some(*step) > self.acknowledged) {
                Some(step) => {
                    self.states[index] = State::InFlight;
                    self.in_flight.push((step, block.id));
                }
                None => self.settle(block.id),
            }
        }
    }

    /// Every rank has acknowledged all steps up to and including `step`.
    pub fn acknowledge(&mut self, step: StepId) {
        self.acknowledged = self.acknowledged.max(Some(step));
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(last, _)| *last <= step);
        self.in_flight = waiting;
        for (_, id) in done {
            self.settle(id);
        }
    }

    /// An epoch ended: nothing of it is in flight any more.
    pub fn acknowledge_all(&mut self) {
        for (_, id) in std::mem::take(&mut self.in_flight) {
            self.settle(id);
        }
    }

    /// Nobody references or names this block.
    fn settle(&mut self, id: BlockId) {
        if self.cache.contains(id) {
            self.states[id.0 as usize] = State::Cached;
            self.cache.give_back(id);
        } else {
            self.states[id.0 as usize] = State::Free;
            self.free.push_back(id);
        }
    }

    /// Conservation, and that each list agrees with the states.
    ///
    /// # Panics
    /// If a block is lost, doubled, or has other than `tables_len` handles in table entries.
    pub fn check_invariants(&self, tables_len: usize) {
        let counts = self.counts();
        assert_eq!(
            counts.free + counts.cached + counts.held + counts.in_flight,
            counts.total,
            "{counts:?}"
        );
        let handles = self.states.iter().map(|state| match state {
            State::Held(handles) => *handles as usize,
            _ => 0,
        });
        assert_eq!(handles.sum::<usize>(), tables_len, "handles and table entries differ");
        let of = |wanted: fn(&State) -> bool| self.states.iter().filter(|state| wanted(state)).count() as u32;
        let counted = BlockCounts {
            free: of(|state| *state == State::Free),
            cached: of(|state| *state == State::Cached),
            held: of(|state| matches!(state, State::Held(_))),
            in_flight: of(|state| *state == State::InFlight),
            total: counts.total,
        };
        assert_eq!(counted, counts, "states and lists differ");
        assert_eq!(
            self.withheld,
            of(|state| *state == State::Withheld),
            "ids are withheld uncounted"
        );
        self.cache.check_invariants();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{NumericsId, TokenId};

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
        assert_eq!(pool.counts().free, 0);
        pool.acknowledge(StepId(7));
        assert_eq!(pool.counts().free, 2);
    }

    proptest! {
        #[test]
        fn a_pool_that_begins_again_keeps_what_is_held_and_counts_what_there_is(
            before in 1u32..20, takes in proptest::collection::vec(0u32..6, 0..5), after in 0u32..30, third in 0u32..30,
        ) {
            let mut pool = BlockPool::new(before);
            let mut tables = Vec::new();
            for count in takes {
                let mut table = BlockTable::default();
                if pool.allocate(count, &mut table).is_ok() {
                    tables.push(table);
                }
            }
            // One of them is in flight when the epoch ends.
            if let Some(mut table) = tables.pop() {
                pool.release(table.take(), Some(StepId(3)));
            }
            let held: Vec<TaggedBlock> = tables.iter().flat_map(BlockTable::tagged).collect();
            for num_blocks in [after, third] {
                let begun = pool.begin_again(num_blocks);
                prop_assert_eq!(begun.is_ok(), held.len() as u32 <= num_blocks);
                pool.check_invariants(held.len());
                if begun.is_ok() {
                    let counts = pool.counts();
                    prop_assert_eq!((counts.total, counts.free), (num_blocks, num_blocks - held.len() as u32));
                    let mut ids: Vec<BlockId> = held.iter().map(|block| block.id).collect();
                    ids.sort();
                    prop_assert_eq!(pool.held_ids().collect::<Vec<_>>(), ids);
                }
            }
            let free = pool.counts().free;
            let mut fresh = BlockTable::default();
            pool.allocate(free, &mut fresh).unwrap();
            prop_assert!(fresh.tagged().all(|block| held.iter().all(|other| other.id != block.id)));
            pool.check_invariants(held.len() + free as usize);
        }
    }

    #[test]
    fn a_refused_allocation_takes_nothing() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        assert_eq!(
            pool.allocate(3, &mut table),
            Err(BlockPoolError::OutOfBlocks {
                needed: 3,
                available: 2
            })
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

    /// The history of `len` equal blocks.
    fn hash(kind: u32, len: usize) -> BlockHash {
        let root = BlockHash::root(&NumericsId([0; 16]), b"");
        (0..len).fold(root, |hash, _| hash.child(&[TokenId(kind)]))
    }

    fn commit(pool: &mut BlockPool, table: &BlockTable, kind: u32) {
        for (index, block) in table.tagged().enumerate() {
            pool.commit(block, hash(kind, index + 1), hash(kind, index));
        }
    }

    #[test]
    fn a_shared_block_is_held_once_until_its_last_handle_is_back_and_its_last_step_acknowledged() {
        let mut pool = BlockPool::new(1);
        let mut table = BlockTable::default();
        pool.allocate(1, &mut table).unwrap();
        assert_eq!(pool.share(hash(0, 1)), None, "not committed yet");
        commit(&mut pool, &table, 0);
        let second = pool.share(hash(0, 1)).unwrap();
        assert_eq!(second.tagged(), table.tagged().next().unwrap());
        pool.check_invariants(2);
        assert_eq!(pool.counts().held, 1);
        pool.release(table.take(), Some(StepId(9)));
        assert_eq!(pool.counts().held, 1);
        pool.release(vec![second], Some(StepId(4)));
        pool.acknowledge(StepId(8));
        assert_eq!(pool.counts().in_flight, 1);
        // In flight it can be had again.
        let third = pool.share(hash(0, 1)).unwrap();
        pool.check_invariants(1);
        pool.acknowledge(StepId(9));
        pool.release(vec![third], Some(StepId(9)));
        assert_eq!(pool.counts().cached, 1);
    }

    #[test]
    fn an_evicted_block_is_not_found_and_its_old_name_is_stale() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        pool.allocate(2, &mut table).unwrap();
        commit(&mut pool, &table, 0);
        let before: Vec<_> = table.tagged().collect();
        pool.release(table.take(), None);
        let chain = [hash(0, 1), hash(0, 2)];
        assert_eq!(
            pool.find(&chain),
            PrefixHit {
                num_blocks: 2,
                num_cached: 2
            }
        );
        assert_eq!(pool.allocate(1, &mut table), Ok(1));
        assert_eq!(pool.find(&chain).num_blocks, 1, "the leaf goes first");
        let taken = table.tagged().next().unwrap();
        assert_eq!(taken.id, before[1].id);
        assert_ne!(taken.tag, before[1].tag);
        assert_eq!(pool.share(hash(0, 2)), None);
    }

    proptest! {
        /// Sequences of five histories come and go: shared blocks, evictions, steps in flight.
        #[test]
        fn no_block_is_lost_and_no_hit_is_stale(
            operations in prop::collection::vec((0u8..6, 0usize..5, 0u32..4, 0usize..5), 1..200)
        ) {
            let mut pool = BlockPool::new(16);
            let mut tables: Vec<(u32, BlockTable)> = (0..5).map(|_| (0, BlockTable::default())).collect();
            // What the cells hold, by block: written at allocation, or `None`.
            let mut cells = [None; 16];
            let mut step = 0;
            for (operation, table, count, kind) in operations {
                let (history, table) = &mut tables[table];
                match operation {
                    0 | 1 => {
                        let from = table.len();
                        if pool.allocate(count, table).is_ok() {
                            for index in from..table.len() {
                                cells[table.get(index).unwrap().id().0 as usize] = Some(hash(*history, index + 1));
                            }
                        }
                    }
                    2 => pool.release(table.take(), Some(StepId(step))),
                    3 => commit(&mut pool, table, *history),
                    4 if table.is_empty() => {
                        *history = kind as u32;
                        let chain: Vec<BlockHash> = (1..=8).map(|len| hash(*history, len)).collect();
                        let hit = pool.find(&chain);
                        let cached = pool.counts().cached;
                        for wanted in &chain[..hit.num_blocks as usize] {
                            let block = pool.share(*wanted).unwrap();
                            prop_assert_eq!(cells[block.id().0 as usize], Some(*wanted));
                            table.append(block);
                        }
                        prop_assert_eq!(cached - pool.counts().cached, hit.num_cached);
                    }
                    _ => { pool.acknowledge(StepId(step)); step += 1; }
                }
                pool.check_invariants(tables.iter().map(|(_, table)| table.len()).sum());
            }
            for (_, table) in &mut tables {
                pool.release(table.take(), None);
            }
            pool.acknowledge_all();
            prop_assert_eq!(pool.counts().available(), 16);
            let mut all = BlockTable::default();
            prop_assert!(pool.allocate(16, &mut all).is_ok());
            pool.check_invariants(16);
        }
    }
}
