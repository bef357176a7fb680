//! What a rank holds in an epoch: its sequences, their tokens and blocks, and which step comes next.
//!
//! A plan is a delta. `apply` checks all of it against what is held before it changes anything, so that a stale, torn
//! or foreign plan is refused whole; then it names the rows to compute. It does no arithmetic and touches no cell.
//!
//! A new sequence may start after full blocks that others have computed, or after blocks whose cells have come from
//! another rank. How much of each block is written is kept here too: nothing is started from that was not written in this
//! epoch or has not come whole, and nothing is written twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use kvasir_kv::{
    AdmittedSequence, AdoptedBlock, BlockId, Epoch, EpochSpec, Sampling, SequenceId, SequenceWork, StepId, StepPlan,
    StepRefused, TaggedBlock, TokenId,
};

/// What one accepted step computes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StepInput {
    pub step: StepId,
    /// In the plan's order, which is the order of the batch's rows.
    pub work: Vec<WorkInput>,
    /// Blocks that others have filled in earlier steps and that new sequences start after.
    pub shared: Vec<BlockId>,
    /// Blocks that are full after this step and were not before.
    pub filled: Vec<BlockId>,
    /// Full blocks whose cells have come by a transfer, and that new sequences start after.
    pub adopted: Vec<TaggedBlock>,
}

impl StepInput {
    pub fn num_tokens(&self) -> usize {
        self.work.iter().map(|work| work.tokens.len()).sum()
    }
}

/// One sequence's rows of a step.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct WorkInput {
    pub sequence: SequenceId,
    /// The tokens at positions `start..start + tokens.len()`; not empty.
    pub tokens: Vec<TokenId>,
    pub start: u32,
    /// The block table: position p lies in `blocks[p / block_size]`.
    pub blocks: Vec<BlockId>,
    /// True if the last row is sampled.
    pub samples: bool,
    pub sampling: Sampling,
    pub prompt_len: u32,
    /// Tokens of prompt and answer, by token, with how often each is in the answer. Empty unless the last row is sampled
    /// with penalties.
    pub seen: Vec<(TokenId, u32)>,
    /// Tokens of the answer. Empty unless the last row is sampled under a constraint.
    pub answer: Vec<TokenId>,
    /// Positions whose tokens are to be scored by the rows before them.
    pub scored: Range<u32>,
    /// The tokens at those positions.
    pub targets: Vec<TokenId>,
    /// Likeliest tokens to report at each of them.
    pub prompt_top_logprobs: u32,
}

impl WorkInput {
    /// The rows that score, counted from the first of this sequence, with the tokens that come next.
    pub fn scored_rows(&self) -> impl Iterator<Item = (usize, TokenId)> {
        let rows = self.scored.clone().map(|position| (position - 1 - self.start) as usize);
        rows.zip(self.targets.iter().copied())
    }

    /// One past the last position computed.
    pub fn end(&self) -> u32 {
        self.start + self.tokens.len() as u32
    }

    /// Index in the answer of the token that the last row samples. Meaningful only where `samples` is true.
    pub fn answer_index(&self) -> u32 {
        self.end() - self.prompt_len
    }
}

#[derive(Debug)]
pub struct RankBooks {
    epoch: Epoch,
    block_size: u32,
    step_tokens_max: u32,
    next_step: StepId,
    sequences: BTreeMap<SequenceId, HeldSequence>,
    /// Newest tag seen, by block.
    tags: Vec<u32>,
    /// Positions written under that tag, by block.
    written: Vec<u32>,
    /// Cells that have come by transfers, by block; no plan has named them yet.
    arrived: BTreeMap<u32, Arrived>,
    /// Cells that make a block whole on this rank.
    cells_per_block: u32,
    /// What was written in the epoch before, of KV heads that stay here.
    inherited: Inherited,
}

#[derive(Debug, Default)]
struct Inherited {
    heads: u32,
    tags: Vec<u32>,
    written: Vec<u32>,
}

/// What has come of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Arrived {
    tag: u32,
    written: u32,
    cells: u32,
}

#[derive(Debug)]
struct HeldSequence {
    tokens: Vec<TokenId>,
    prompt_len: u32,
    sampling: Sampling,
    prompt_top_logprobs: u32,
    blocks: Vec<TaggedBlock>,
    num_computed: u32,
    /// Tokens of prompt and answer, with how often each is in the answer; counted only where it matters.
    seen: BTreeMap<TokenId, u32>,
}

impl HeldSequence {
    /// `start` positions are in blocks that others have computed.
    fn admit(admitted: &AdmittedSequence, start: u32) -> Self {
        Self {
            tokens: admitted.tokens.clone(),
            prompt_len: admitted.prompt_len,
            sampling: admitted.sampling.clone(),
            prompt_top_logprobs: admitted.prompt_top_logprobs,
            blocks: Vec::new(),
            num_computed: start,
            seen: BTreeMap::new(),
        }
    }

    /// What penalties go by, from the tokens: whoever comes back is told all of them.
    fn count_seen(&mut self) {
        if !self.sampling.is_penalized() {
            return;
        }
        let prompt_len = self.tokens.len().min(self.prompt_len as usize);
        let (prompt, answer) = self.tokens.split_at(prompt_len);
        self.seen.extend(prompt.iter().map(|token| (*token, 0)));
        for token in answer {
            *self.seen.entry(*token).or_default() += 1;
        }
    }

    fn append(&mut self, token: TokenId) {
        self.tokens.push(token);
        if self.sampling.is_penalized() {
            *self.seen.entry(token).or_default() += 1;
        }
    }
}

impl Inherited {
    fn cells_of(&self, block: TaggedBlock, written: u32) -> u32 {
        let index = block.id.0 as usize;
        let is_whole = self.tags.get(index) == Some(&block.tag.0) && self.written[index] == written;
        if is_whole { self.heads } else { 0 }
    }
}

impl RankBooks {
    /// Empty books: the first plan of an epoch is whole.
    pub fn new(spec: &EpochSpec) -> Self {
        Self {
            epoch: spec.epoch,
            block_size: spec.block_size,
            step_tokens_max: spec.step_tokens_max,
            next_step: StepId(0),
            sequences: BTreeMap::new(),
            tags: vec![0; spec.num_blocks as usize],
            written: vec![0; spec.num_blocks as usize],
            arrived: BTreeMap::new(),
            cells_per_block: spec.shares[spec.rank.0 as usize].num_kv_heads(),
            inherited: Inherited::default(),
        }
    }

    /// The cells of so many KV heads are those of the epoch before; blocks have kept their ids and tags.
    pub fn inherit(&mut self, before: &Self, heads: u32) {
        self.inherited = Inherited {
            heads,
            tags: before.tags.clone(),
            written: before.written.clone(),
        };
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Steps accepted.
    pub fn steps_accepted(&self) -> u64 {
        self.next_step.0
    }

    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Whether a block is still this one, and holds so many positions: its cells may be sent away.
    pub fn holds(&self, block: TaggedBlock, written: u32) -> bool {
        let index = block.id.0 as usize;
        self.tags.get(index) == Some(&block.tag.0) && self.written[index] >= written
    }

    /// Whether a block is still this one, and full.
    pub fn is_whole(&self, block: TaggedBlock) -> bool {
        self.holds(block, self.block_size)
    }

    pub fn is_full(&self, written: u32) -> bool {
        written == self.block_size
    }

    /// Whether cells of this block may be taken: it is newer than what any plan has named.
    pub fn may_take(&self, block: TaggedBlock) -> bool {
        let newest = self.tags.get(block.id.0 as usize);
        newest.is_some_and(|newest| is_older(*newest, block.tag.0))
    }

    /// One more cell of a block has come whole, with so many positions.
    pub fn note_arrived(&mut self, block: TaggedBlock, written: u32) {
        let (tag, cells) = (block.tag.0, 0);
        let fresh = Arrived { tag, written, cells };
        let arrived = self.arrived.entry(block.id.0).or_insert(fresh);
        if (arrived.tag, arrived.written) != (tag, written) {
            *arrived = fresh;
        }
        arrived.cells += 1;
    }

    /// What has come of this block is not wanted any more.
    pub fn forget_arrived(&mut self, block: TaggedBlock) {
        if let Some(arrived) = self.arrived.get(&block.id.0)
            && arrived.tag == block.tag.0
        {
            self.arrived.remove(&block.id.0);
        }
    }

    /// Takes a plan. What it sampled must be committed before the next one.
    ///
    /// Errors if any of it does not fit what is held; then nothing has changed.
    pub fn apply(&mut self, plan: &StepPlan) -> Result<StepInput, StepRefused> {
        self.check_order(plan)?;
        self.check_membership(plan)?;
        let tags = self.check_tags(plan)?;
        self.check_adopted(plan)?;
        let written = self.check_all_work(plan, &tags)?;

        self.next_step = StepId(self.next_step.0 + 1);
        for sequence in &plan.retired {
            self.sequences.remove(sequence);
        }
        for admitted in &plan.admitted {
            let start = start_of(plan, admitted.sequence);
            let mut held = HeldSequence::admit(admitted, start);
            held.count_seen();
            self.sequences.insert(admitted.sequence, held);
        }
        for (block, tag) in tags {
            self.tags[block as usize] = tag;
            self.arrived.remove(&block);
        }
        let is_full = |written: &u32| *written == self.block_size;
        let adopted: Vec<TaggedBlock> = plan
            .adopted
            .iter()
            .filter(|adopted| is_full(&adopted.written))
            .map(|adopted| adopted.block)
            .collect();
        let came_full = |block: &u32| adopted.iter().any(|adopted| adopted.id.0 == *block);
        let filled = written
            .iter()
            .filter(|(block, written)| is_full(written) && !came_full(block));
        let filled = filled.map(|(block, _)| BlockId(*block)).collect();
        for (block, written) in written {
            self.written[block as usize] = written;
        }
        Ok(StepInput {
            step: plan.step,
            shared: self.shared(plan),
            filled,
            adopted,
            work: plan.work.iter().map(|work| self.take_up(work)).collect(),
        })
    }

    /// Appends what the last step sampled. Where the sample was poisoned, any token will do: plans that name it may be on
    /// their way, and the sequence ends when the coordinator hears of it.
    pub fn commit(&mut self, sampled: &[(SequenceId, TokenId)]) {
        for (sequence, token) in sampled {
            if let Some(held) = self.sequences.get_mut(sequence) {
                held.append(*token);
            }
        }
    }

    fn check_order(&self, plan: &StepPlan) -> Result<(), StepRefused> {
        if plan.epoch != self.epoch {
            return Err(StepRefused::WrongEpoch {
                expected: self.epoch,
                found: plan.epoch,
            });
        }
        if plan.step != self.next_step {
            return Err(StepRefused::WrongStep {
                expected: self.next_step,
                found: plan.step,
            });
        }
        let num_tokens: u64 = plan.work.iter().map(|work| u64::from(work.num_tokens)).sum();
        if num_tokens > u64::from(self.step_tokens_max) {
            return Err(StepRefused::TooManyTokens {
                max: self.step_tokens_max,
                found: u32::try_from(num_tokens).unwrap_or(u32::MAX),
            });
        }
        Ok(())
    }

    fn check_membership(&self, plan: &StepPlan) -> Result<(), StepRefused> {
        let mut retired = BTreeSet::new();
        for sequence in &plan.retired {
            if !self.sequences.contains_key(sequence) || !retired.insert(*sequence) {
                return Err(StepRefused::UnknownSequence(*sequence));
            }
        }
        let mut admitted = BTreeSet::new();
        for sequence in plan.admitted.iter().map(|admitted| admitted.sequence) {
            let held = self.sequences.contains_key(&sequence) && !retired.contains(&sequence);
            if held || !admitted.insert(sequence) {
                return Err(StepRefused::AlreadyHeld(sequence));
            }
        }
        let mut worked = BTreeSet::new();
        for sequence in plan.work.iter().map(|work| work.sequence) {
            let held = self.sequences.contains_key(&sequence) && !retired.contains(&sequence);
            if !held && !admitted.contains(&sequence) {
                return Err(StepRefused::UnknownSequence(sequence));
            }
            if !worked.insert(sequence) {
                return Err(StepRefused::WorkedTwice(sequence));
            }
        }
        Ok(())
    }

    /// The newest tags as of this plan, for the blocks that it allocates.
    fn check_tags(&self, plan: &StepPlan) -> Result<BTreeMap<u32, u32>, StepRefused> {
        let mut tags = BTreeMap::new();
        for block in plan.work.iter().flat_map(|work| &work.new_blocks) {
            let newest = tags
                .get(&block.id.0)
                .or(self.tags.get(block.id.0 as usize))
                .copied()
                .ok_or(StepRefused::StaleBlock {
                    block: *block,
                    newest: 0,
                })?;
            if is_older(block.tag.0, newest) {
                return Err(StepRefused::StaleBlock { block: *block, newest });
            }
            tags.insert(block.id.0, block.tag.0);
        }
        Ok(tags)
    }

    /// Every adopted block has come whole, and belongs to a sequence that this plan admits.
    fn check_adopted(&self, plan: &StepPlan) -> Result<(), StepRefused> {
        let admitted = |work: &&SequenceWork| plan.admitted.iter().any(|admitted| admitted.sequence == work.sequence);
        for AdoptedBlock { block, written } in &plan.adopted {
            let arrived = self
                .arrived
                .get(&block.id.0)
                .filter(|arrived| arrived.tag == block.tag.0);
            let came = arrived.filter(|arrived| arrived.written == *written);
            let cells = came.map_or(0, |arrived| arrived.cells) + self.inherited.cells_of(*block, *written);
            // Another sequence has gone on with it already.
            let is_here = self.holds(*block, *written);
            if cells != self.cells_per_block && !is_here {
                return Err(StepRefused::NotArrived {
                    block: *block,
                    written: *written,
                    cells,
                    expected: self.cells_per_block,
                });
            }
            if !plan
                .work
                .iter()
                .filter(admitted)
                .any(|work| work.new_blocks.contains(block))
            {
                return Err(StepRefused::AdoptedByNobody { block: *block });
            }
        }
        Ok(())
    }

    /// How much is written, after this plan, of each block that it names anew or writes to.
    fn check_all_work(&self, plan: &StepPlan, tags: &BTreeMap<u32, u32>) -> Result<BTreeMap<u32, u32>, StepRefused> {
        let allocated = tags.iter().filter(|(block, tag)| self.tags[**block as usize] != **tag);
        let mut written: BTreeMap<u32, u32> = allocated.map(|(block, _)| (*block, 0)).collect();
        written.extend(plan.adopted.iter().map(|adopted| (adopted.block.id.0, adopted.written)));
        // Only what earlier steps wrote can be started from.
        let before = written.clone();
        for work in &plan.work {
            let admitted = plan.admitted.iter().find(|admitted| admitted.sequence == work.sequence);
            match admitted {
                Some(admitted) => {
                    let start = self.start_allowed(plan, work);
                    let held = HeldSequence::admit(admitted, start);
                    self.check_work(work, &held, tags)?;
                    self.check_shared(work, &before)?;
                    self.write(work, &held, &mut written)?;
                }
                None => {
                    let held = &self.sequences[&work.sequence];
                    self.check_work(work, held, tags)?;
                    self.write(work, held, &mut written)?;
                }
            }
        }
        Ok(written)
    }

    /// Where a new sequence may start: at the end of a block, or inside one whose cells have come with it.
    fn start_allowed(&self, plan: &StepPlan, work: &SequenceWork) -> u32 {
        let inside = work.new_blocks.get((work.start / self.block_size) as usize);
        let is_adopted = |block: &TaggedBlock| plan.adopted.iter().any(|adopted| adopted.block == *block);
        match inside.is_some_and(is_adopted) {
            true => work.start,
            false => work.start - work.start % self.block_size,
        }
    }

    /// A new sequence's blocks before its start were written to their ends.
    fn check_shared(&self, work: &SequenceWork, written: &BTreeMap<u32, u32>) -> Result<(), StepRefused> {
        for block in work.new_blocks.iter().take((work.start / self.block_size) as usize) {
            let written = self.written_of(*block, written);
            if written != self.block_size {
                let (sequence, block) = (work.sequence, *block);
                return Err(StepRefused::UnwrittenBlock {
                    sequence,
                    block,
                    written,
                });
            }
        }
        Ok(())
    }

    /// Notes the positions of a work entry as written; each must be the next of its block.
    fn write(
        &self,
        work: &SequenceWork,
        held: &HeldSequence,
        written: &mut BTreeMap<u32, u32>,
    ) -> Result<(), StepRefused> {
        let end = work.start + work.num_tokens;
        let first = work.start / self.block_size;
        for index in first..end.div_ceil(self.block_size) {
            let mut blocks = held.blocks.iter().chain(&work.new_blocks);
            let block = *blocks.nth(index as usize).expect("there are blocks up to the end");
            let offset = work.start.saturating_sub(index * self.block_size);
            let found = self.written_of(block, written);
            if found != offset {
                return Err(StepRefused::WrittenBlock {
                    sequence: work.sequence,
                    block,
                    offset,
                    written: found,
                });
            }
            written.insert(block.id.0, (end - index * self.block_size).min(self.block_size));
        }
        Ok(())
    }

    fn written_of(&self, block: TaggedBlock, written: &BTreeMap<u32, u32>) -> u32 {
        let now = written.get(&block.id.0).copied();
        now.unwrap_or(self.written[block.id.0 as usize])
    }

    fn shared(&self, plan: &StepPlan) -> Vec<BlockId> {
        let admitted = plan
            .work
            .iter()
            .filter(|work| plan.admitted.iter().any(|admitted| admitted.sequence == work.sequence));
        let shared = admitted.flat_map(|work| &work.new_blocks[..(work.start / self.block_size) as usize]);
        let came = |block: &&TaggedBlock| plan.adopted.iter().any(|adopted| adopted.block == **block);
        shared.filter(|block| !came(block)).map(|block| block.id).collect()
    }

    fn check_work(
        &self,
        work: &SequenceWork,
        held: &HeldSequence,
        tags: &BTreeMap<u32, u32>,
    ) -> Result<(), StepRefused> {
        let sequence = work.sequence;
        if work.num_tokens == 0 {
            return Err(StepRefused::NoTokens(sequence));
        }
        if work.start != held.num_computed {
            return Err(StepRefused::WrongStart {
                sequence,
                expected: held.num_computed,
                found: work.start,
            });
        }
        let known = held.tokens.len() as u32;
        let end = work.start.saturating_add(work.num_tokens);
        if end > known {
            return Err(StepRefused::UnknownTokens { sequence, end, known });
        }
        if work.samples != (end == known) {
            return Err(StepRefused::WrongSamples {
                sequence,
                samples: work.samples,
                end,
                known,
            });
        }
        check_scores(work, held)?;
        let num_blocks = held.blocks.len() + work.new_blocks.len();
        if num_blocks < end.div_ceil(self.block_size) as usize {
            return Err(StepRefused::TooFewBlocks {
                sequence,
                blocks: num_blocks as u32,
                end,
            });
        }
        // Also the blocks that it has long held: one that was allocated anew since belongs to someone else.
        for block in held.blocks.iter().chain(&work.new_blocks) {
            let newest = tags.get(&block.id.0).copied().unwrap_or(self.tags[block.id.0 as usize]);
            if block.tag.0 != newest {
                return Err(StepRefused::StaleBlock { block: *block, newest });
            }
        }
        Ok(())
    }

    fn take_up(&mut self, work: &SequenceWork) -> WorkInput {
        let held = self.sequences.get_mut(&work.sequence).expect("membership was checked");
        held.blocks.extend(&work.new_blocks);
        held.num_computed = work.start + work.num_tokens;
        WorkInput {
            sequence: work.sequence,
            tokens: held.tokens[work.start as usize..held.num_computed as usize].to_vec(),
            start: work.start,
            blocks: held.blocks.iter().map(|block| block.id).collect(),
            samples: work.samples,
            sampling: held.sampling.clone(),
            prompt_len: held.prompt_len,
            seen: match work.samples {
                true => held.seen.iter().map(|(token, count)| (*token, *count)).collect(),
                false => Vec::new(),
            },
            answer: match work.samples && held.sampling.constraint.is_some() {
                true => held.tokens.get(held.prompt_len as usize..).unwrap_or_default().to_vec(),
                false => Vec::new(),
            },
            targets: held.tokens[work.scored.start as usize..work.scored.end as usize].to_vec(),
            scored: work.scored.clone(),
            prompt_top_logprobs: held.prompt_top_logprobs,
        }
    }
}

/// Each scored token is of the prompt, and the row before it is of this work.
fn check_scores(work: &SequenceWork, held: &HeldSequence) -> Result<(), StepRefused> {
    let Range { start: begin, end } = work.scored;
    let known = held.prompt_len.min(held.tokens.len() as u32);
    let last = known.min(work.start + work.num_tokens + 1);
    if begin == end && end == 0 || work.start < begin && begin < end && end <= last {
        return Ok(());
    }
    Err(StepRefused::WrongScores {
        sequence: work.sequence,
        begin,
        end,
        start: work.start,
        num_tokens: work.num_tokens,
        prompt_len: held.prompt_len,
    })
}

/// Where a sequence's work starts.
fn start_of(plan: &StepPlan, sequence: SequenceId) -> u32 {
    let work = plan.work.iter().find(|work| work.sequence == sequence);
    work.map_or(0, |work| work.start)
}

/// Tags wrap around: older means less than half the circle behind.
fn is_older(tag: u32, newest: u32) -> bool {
    (tag.wrapping_sub(newest) as i32) < 0
}

#[cfg(test)]
mod tests;
