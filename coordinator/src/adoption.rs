//! A scheduler's part in a migration: blocks taken ahead for a sequence that is to come, a sequence that stands still
//! before it goes, its departure, and its arrival with all that was computed. And in a reshard: all of them stand still,
//! and go on in the next epoch.

use std::collections::BTreeMap;

use kvasir_kv::{
    AdoptedBlock, BlockHash, BlockId, BlockPoolError, BlockTable, Epoch, SequenceId, StepPlan, TaggedBlock, TransferId,
};

use crate::{
    detector::Steady,
    scheduler::Scheduler,
    sequence::{Running, Sequence, State},
    step_books::StepBooks,
};

/// Blocks of a sequence that is on its way here.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    table: BlockTable,
    /// It comes soon: no step is sent ahead of it.
    expected: bool,
}

impl Scheduler {
    /// Begins to take blocks for a sequence that is to come. Returns those of `chain` that are here already.
    pub fn open_inbound(&mut self, transfer: TransferId, chain: &[BlockHash]) -> Vec<TaggedBlock> {
        let Some(books) = self.books.as_mut() else {
            return Vec::new();
        };
        let table = books.pool.share_chain(chain);
        let shared = table.tagged().collect();
        let expected = false;
        self.inbound.insert(transfer, Inbound { table, expected });
        shared
    }

    /// Takes `count` more blocks for it, or none.
    pub fn extend_inbound(&mut self, transfer: TransferId, count: u32) -> Result<Vec<TaggedBlock>, BlockPoolError> {
        let nothing = BlockPoolError::OutOfBlocks {
            needed: count,
            available: 0,
        };
        let (Some(books), Some(inbound)) = (self.books.as_mut(), self.inbound.get_mut(&transfer)) else {
            return Err(nothing);
        };
        let before = inbound.table.len();
        let evicted = books.pool.allocate(count, &mut inbound.table)?;
        self.counters.evictions += u64::from(evicted);
        Ok(inbound.table.tagged().skip(before).collect())
    }

    pub fn expect_inbound(&mut self, transfer: TransferId) {
        if let Some(inbound) = self.inbound.get_mut(&transfer) {
            inbound.expected = true;
        }
    }

    /// Somebody is about to come and is to be in the next step.
    pub(super) fn expects_somebody(&self) -> bool {
        self.inbound.values().any(|inbound| inbound.expected)
    }

    /// It does not come after all.
    ///
    /// The ranks must be told before the next plan: they take nothing for these blocks from then on.
    pub fn close_inbound(&mut self, transfer: TransferId) {
        if let (Some(mut inbound), Some(books)) = (self.inbound.remove(&transfer), self.books.as_mut()) {
            books.pool.release(inbound.table.take(), None);
        }
    }

    /// Keeps cached blocks for a copy to another group. Returns those that there are, from the first on.
    pub fn pin(&mut self, transfer: TransferId, chain: &[BlockHash]) -> Vec<TaggedBlock> {
        let Some(books) = self.books.as_mut() else {
            return Vec::new();
        };
        let table = books.pool.share_chain(chain);
        let pinned = table.tagged().collect();
        self.outbound.insert(transfer, table);
        pinned
    }

    /// The ranks must have been told that the transfer is over.
    pub fn unpin(&mut self, transfer: TransferId) {
        if let (Some(mut table), Some(books)) = (self.outbound.remove(&transfer), self.books.as_mut()) {
            books.pool.release(table.take(), None);
        }
    }

    /// The sequence gets no more steps here until it is thawed or departs.
    pub fn freeze(&mut self, id: SequenceId, frozen: bool) {
        if let Some(running) = self.sequences.get_mut(&id).and_then(Sequence::running_mut) {
            running.frozen = frozen;
        }
    }

    /// Whether all that its steps here have computed is known.
    pub fn is_drained(&self, id: SequenceId) -> bool {
        self.books.as_ref().is_some_and(|books| !books.is_out(id))
    }

    /// Hands out a running sequence of which nothing is on its way. Its blocks are released, and the ranks forget it with
    /// the next plan: see `farewell`.
    ///
    /// # Panics
    /// If it does not run here, or awaits samples.
    pub fn depart(&mut self, id: SequenceId) -> Sequence {
        self.release(id);
        self.hand_over(id)
    }

    /// A plan that tells the ranks to forget whom they need not know any more; `None` if there is nobody.
    pub fn farewell(&mut self, steady: Steady) -> Option<StepPlan> {
        let books = self.books.as_ref()?;
        (!books.retired.is_empty()).then(|| self.commit(&[], steady))
    }

    /// Takes a sequence with its blocks, `computed` positions of which have come or were here. It runs at once.
    ///
    /// # Panics
    /// If no blocks were taken for it in this epoch.
    pub fn adopt(&mut self, mut sequence: Sequence, transfer: TransferId, computed: u32, adopted: Vec<AdoptedBlock>) {
        let inbound = self.inbound.remove(&transfer).expect("blocks were taken for it");
        sequence.state = State::Running(Running::adopted(inbound.table, computed, adopted));
        self.accept(sequence);
    }

    /// Who has waited for a copy of cached blocks runs, and starts after them.
    ///
    /// # Panics
    /// If no blocks were taken for it in this epoch.
    pub fn start_after_copy(&mut self, id: SequenceId, transfer: TransferId, adopted: Vec<AdoptedBlock>) {
        let inbound = self.inbound.remove(&transfer).expect("blocks were taken for it");
        let computed = inbound.table.len() as u32 * self.limits.block_size;
        let sequence = self.sequences.get_mut(&id).expect("it waits here");
        sequence.state = State::Running(Running::adopted(inbound.table, computed, adopted));
        let tenant = &sequence.request.tenant;
        self.claimant.take_if(|claimant| claimant == tenant);
        self.count_hits(id, computed);
    }

    /// It does not wait for that copy any more.
    pub fn stop_awaiting(&mut self, id: SequenceId, transfer: TransferId) {
        let waits = |sequence: &&mut Sequence| sequence.awaits(transfer);
        if let Some(sequence) = self.sequences.get_mut(&id).filter(waits) {
            sequence.state = State::Waiting;
        }
    }

    /// The ranks are about to learn of blocks that have come: from here on others may start after the full ones.
    pub(super) fn note_adopted(&mut self, id: SequenceId, adopted: &[AdoptedBlock]) {
        let block_size = self.limits.block_size;
        let sequence = self.sequences.get_mut(&id).expect("adopted sequences are live");
        let numerics_root = self.numerics_id.as_ref();
        let root = numerics_root.map(|numerics| BlockHash::root(numerics, sequence.request.tenant.0.as_bytes()));
        let (Some(root), Some(books)) = (root, self.books.as_mut()) else {
            return;
        };
        let hashes = sequence.block_hashes(root, block_size).to_vec();
        let running = sequence.running().expect("adopted sequences run");
        for block in adopted
            .iter()
            .filter(|adopted| adopted.written == block_size)
            .map(|adopted| adopted.block)
        {
            let index = running
                .blocks
                .tagged()
                .position(|held| held == block)
                .expect("it was taken for it");
            let parent = index.checked_sub(1).map_or(root, |before| hashes[before]);
            books.pool.commit(block, hashes[index], parent);
        }
    }

    /// The blocks of running sequences that hold something, each once, with the positions that they hold once the steps
    /// that are out are done.
    pub fn held_blocks(&self) -> Vec<(TaggedBlock, u32)> {
        let block_size = self.limits.block_size;
        let mut held: BTreeMap<BlockId, (TaggedBlock, u32)> = BTreeMap::new();
        for running in self.sequences.values().filter_map(Sequence::running) {
            for (block, begin) in running
                .blocks
                .tagged()
                .zip((0..running.scheduled).step_by(block_size as usize))
            {
                let written = (running.scheduled - begin).min(block_size);
                held.insert(block.id, (block, written));
            }
        }
        held.into_values().collect()
    }

    /// Somebody has come with its blocks and is in no plan yet.
    pub fn has_arrivals(&self) -> bool {
        let mut running = self.sequences.values().filter_map(Sequence::running);
        running.any(Running::is_arriving)
    }

    /// No plan is made until this is taken back.
    pub fn stand_still(&mut self, still: bool) {
        self.stands_still = still;
    }

    pub fn stands_still(&self) -> bool {
        self.stands_still
    }

    /// A rank has not acknowledged all steps.
    pub fn awaits_any(&self) -> bool {
        self.books.as_ref().is_some_and(StepBooks::awaits_any)
    }

    pub fn num_block_ids(&self) -> u32 {
        self.books.as_ref().map_or(0, |books| books.pool.num_ids())
    }

    /// Goes on in another epoch of other ranks with all that is held: `num_blocks` blocks from now on. Who does not fit
    /// gives up its blocks, last in precedence first. Cached blocks are forgotten. Returns the blocks that are held.
    ///
    /// # Panics
    /// If a step is out.
    pub fn switch_epoch(&mut self, epoch: Epoch, num_blocks: u32, world_size: usize) -> Vec<BlockId> {
        self.stands_still = false;
        while self.block_counts().held > num_blocks {
            self.preempt_last();
        }
        let block_size = self.limits.block_size;
        for sequence in self.sequences.values_mut() {
            if let Some(running) = sequence.running_mut() {
                running.begin_again(block_size);
            }
        }
        let books = self.books.take().expect("an epoch ends where another begins");
        let books = self.books.insert(books.begin_again(epoch, num_blocks, world_size));
        books.pool.held_ids().collect()
    }

    pub(super) fn num_inbound(&self) -> u32 {
        self.inbound.len() as u32
    }

    pub(super) fn num_blocks_in_transfers(&self) -> usize {
        let inbound = self.inbound.values().map(|inbound| &inbound.table);
        inbound.chain(self.outbound.values()).map(BlockTable::len).sum()
    }
}
