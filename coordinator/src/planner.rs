//! How a step is composed: which tokens of which sequences the next plan computes.
//!
//! It knows no prefill and no decode, only positions wanted. Tokens go first to those that want one, then to the
//! oldest. Blocks are dealt by age: the oldest always gets on, if need be by preempting the newest. Waiting sequences
//! are admitted strictly oldest first, so every waiting sequence is newer than every running one. An admitted one
//! starts from the longest chain of full blocks that the prefix cache has of it.

use std::collections::BTreeSet;

use kvasir_kv::{BlockHash, BlockTable, PrefixHit, SequenceId, StepPlan};

use crate::{
    detector::Steady,
    scheduler::Scheduler,
    sequence::{Running, Sequence, State},
};

/// Tokens that a sequence adds to the step being made.
#[derive(Clone, Copy, Debug)]
struct Grant {
    sequence: SequenceId,
    num_tokens: u32,
}

/// Whether a sequence's blocks could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    Ready,
    /// Not in this step: blocks are in flight, or it was preempted itself.
    Wait,
}

impl Scheduler {
    /// The next step, if there is anything to compute and fewer than `look_ahead + 1` steps are out.
    pub fn next_plan(&mut self, steady: Steady) -> Option<StepPlan> {
        let books = self.books.as_ref()?;
        if books.num_without_output() > self.limits.look_ahead {
            return None;
        }
        let grants = self.grant_running();
        let (placed, short_of_blocks) = self.place(&grants);
        let mut grants: Vec<Grant> = grants
            .into_iter()
            .filter(|grant| placed.contains(&grant.sequence))
            .collect();
        // Who waits for blocks must not see them go to a newcomer.
        if !short_of_blocks {
            let used: u32 = grants.iter().map(|grant| grant.num_tokens).sum();
            self.admit(self.limits.step_tokens_max - used, &mut grants);
        }
        if grants.is_empty() {
            return None;
        }
        Some(self.commit(&grants, steady))
    }

    /// Tokens for the running sequences: those that want one first, then by age.
    fn grant_running(&self) -> Vec<Grant> {
        let mut wanting: Vec<(bool, &Sequence)> = self
            .sequences()
            .take_while(|sequence| sequence.running().is_some())
            .filter(|sequence| sequence.wanted() > 0)
            .map(|sequence| (sequence.wanted() > 1, sequence))
            .collect();
        wanting.sort_by_key(|(wants_many, _)| *wants_many);
        let mut budget = self.limits.step_tokens_max;
        let mut grants = Vec::new();
        for (_, sequence) in wanting {
            let num_tokens = sequence.wanted().min(self.limits.chunk_tokens_max).min(budget);
            if num_tokens > 0 {
                budget -= num_tokens;
                grants.push(Grant {
                    sequence: sequence.id,
                    num_tokens,
                });
            }
        }
        grants
    }

    /// Allocates blocks for the granted tokens, oldest first: whoever is preempted for it comes later in this order and
    /// has got nothing yet. Returns who has all it needs, and whether anybody has not.
    fn place(&mut self, grants: &[Grant]) -> (BTreeSet<SequenceId>, bool) {
        let mut placed = BTreeSet::new();
        let mut short = false;
        for id in self.by_age.clone() {
            let Some(grant) = grants.iter().find(|grant| grant.sequence == id) else {
                continue;
            };
            if self.sequences[&id].running().is_none() {
                continue; // preempted by an older one a moment ago
            }
            let needed = self.blocks_missing(id, grant.num_tokens);
            if needed > 0 && (short || self.make_room(id, needed) == Room::Wait) {
                short = true;
                continue;
            }
            self.allocate(id, needed);
            placed.insert(id);
        }
        (placed, short)
    }

    /// Blocks that a running sequence lacks for `num_tokens` more positions.
    fn blocks_missing(&self, id: SequenceId, num_tokens: u32) -> u32 {
        let running = self.sequences[&id]
            .running()
            .expect("only running sequences are granted tokens");
        let needed = (running.scheduled + num_tokens).div_ceil(self.limits.block_size);
        needed.saturating_sub(running.blocks.len() as u32)
    }

    /// Preempts newer sequences until `needed` blocks can be had, or will be; the newest preempts itself.
    fn make_room(&mut self, id: SequenceId, needed: u32) -> Room {
        loop {
            let counts = self.block_counts();
            if counts.available() >= needed {
                return Room::Ready;
            }
            if counts.available() + counts.in_flight >= needed {
                return Room::Wait;
            }
            let newest = *self
                .by_age
                .iter()
                .rfind(|id| self.sequences[*id].running().is_some())
                .expect("the one that needs blocks runs");
            self.preempt(newest);
            if newest == id {
                return Room::Wait;
            }
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        self.release(id);
        self.counters.preemptions += 1;
    }

    fn allocate(&mut self, id: SequenceId, count: u32) {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let sequence = self.sequences.get_mut(&id).expect("granted sequences are live");
        let running = sequence.running_mut().expect("granted sequences run");
        let evicted = books.pool.allocate(count, &mut running.blocks).expect("room was made");
        self.counters.evictions += u64::from(evicted);
    }

    /// Admits waiting sequences, oldest first, while tokens, places and blocks last.
    fn admit(&mut self, mut budget: u32, grants: &mut Vec<Grant>) {
        let mut num_running = self.sequences().filter(|sequence| sequence.running().is_some()).count() as u32;
        while budget > 0 && num_running < self.limits.sequences_max {
            let Some(sequence) = self.sequences().find(|sequence| sequence.running().is_none()) else {
                return;
            };
            // Its last sample is still on its way, and the ranks must be told all tokens.
            if sequence.samples_in_flight > 0 {
                return;
            }
            let id = sequence.id;
            let (chain, hit) = self.find_prefix(id);
            if !self.has_blocks_for(&self.sequences[&id], hit) {
                return;
            }
            self.start_from(id, &chain[..hit.num_blocks as usize]);
            let wanted = self.sequences[&id].wanted();
            let num_tokens = wanted.min(self.limits.chunk_tokens_max).min(budget);
            self.allocate(id, self.blocks_missing(id, num_tokens));
            grants.push(Grant {
                sequence: id,
                num_tokens,
            });
            budget -= num_tokens;
            num_running += 1;
        }
    }

    /// The hashes of a waiting sequence's full blocks, and how many of them can be found. The last token is always
    /// computed: its logits are needed.
    fn find_prefix(&mut self, id: SequenceId) -> (Vec<BlockHash>, PrefixHit) {
        let (Some(root), Some(books)) = (self.prefix_root, &self.books) else {
            return Default::default();
        };
        let block_size = self.limits.block_size;
        let sequence = self.sequences.get_mut(&id).expect("waiting sequences are live");
        let reusable = (sequence.tokens.len() - 1) / block_size as usize;
        let chain = sequence.block_hashes(root, block_size)[..reusable].to_vec();
        let hit = books.pool.find(&chain);
        (chain, hit)
    }

    /// A waiting sequence runs, with the blocks of `chain` computed already.
    fn start_from(&mut self, id: SequenceId, chain: &[BlockHash]) {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let sequence = self.sequences.get_mut(&id).expect("waiting sequences are live");
        let mut blocks = BlockTable::default();
        for hash in chain {
            blocks.append(books.pool.share(*hash).expect("it was found a moment ago"));
        }
        let computed = blocks.len() as u32 * self.limits.block_size;
        if self.prefix_root.is_some() {
            self.counters.prefix_queries_tokens += sequence.tokens.len() as u64;
            self.counters.prefix_hits_tokens += u64::from(computed);
        }
        let cached = computed.min(sequence.prompt_len());
        sequence.cached.get_or_insert(cached);
        sequence.state = State::Running(Running::after(blocks, computed));
    }

    /// Whether all its known tokens and one block more would fit beside what running sequences still lack for theirs:
    /// one that is admitted only to be preempted has computed for nothing. Blocks that it shares are there already; the
    /// cached ones among them cannot be evicted for others any more.
    fn has_blocks_for(&self, sequence: &Sequence, hit: PrefixHit) -> bool {
        let block_size = self.limits.block_size;
        let promised: u32 = self
            .sequences()
            .filter_map(|other| Some((other, other.running()?)))
            .map(|(other, running)| {
                other
                    .len_expected()
                    .div_ceil(block_size)
                    .saturating_sub(running.blocks.len() as u32)
            })
            .sum();
        let worst = sequence.positions_max().div_ceil(block_size);
        let needed = (sequence.len_expected().div_ceil(block_size) + 1).min(worst);
        self.block_counts().available() - hit.num_cached >= promised + needed - hit.num_blocks
    }

    /// Writes the plan down: from here on it counts as sent.
    fn commit(&mut self, grants: &[Grant], steady: Steady) -> StepPlan {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let mut plan = StepPlan {
            epoch: books.epoch,
            step: books.next_step(),
            admitted: Vec::new(),
            work: Vec::with_capacity(grants.len()),
            retired: std::mem::take(&mut books.retired),
        };
        for grant in grants {
            let sequence = self
                .sequences
                .get_mut(&grant.sequence)
                .expect("granted sequences are live");
            let scheduled = sequence.schedule(plan.step, grant.num_tokens);
            self.counters.tokens_recomputed += u64::from(scheduled.recomputed);
            if let Some(recovery) = self.recovery.as_mut() {
                recovery.count_recomputed(grant.sequence, scheduled.recomputed);
            }
            plan.admitted.extend(scheduled.admitted);
            plan.work.push(scheduled.work);
        }
        books.note_sent(&plan, steady);
        plan
    }
}
