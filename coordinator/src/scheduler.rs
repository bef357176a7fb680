//! The scheduler: the sequences of a group, their tokens and their blocks.
//!
//! Here is the life of sequences: how they come, their tokens, their end, and what becomes of them when an epoch ends.
//! Which group a sequence comes to is decided in `router`, how a step is composed in `planner`, who gives way to whom in
//! `preemption`. It awaits nothing and never asks the time.

use std::{collections::BTreeMap, time::Duration};

use kvasir_kv::{
    BlockCounts, BlockHash, BlockTable, Epoch, FinishReason, NumericsId, Rank, Request, SampledToken, ScoredPrompt,
    SequenceId, StepId, StepOutput, StepPlan, TenantId, TransferId,
};

use crate::{
    ClusterConfig, Effect, Now, SequenceError,
    adoption::Inbound,
    copy_cost::{PromptCost, Stretch},
    detector::Steady,
    fair_share::FairShare,
    recovery::Outage,
    sequence::{Precedence, Sequence, State},
    status::Counters,
    step_books::{StepBooks, StepReturn, StepViolation},
};

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(super) limits: Limits,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    /// Who gives way first comes last.
    pub(super) order: BTreeMap<Precedence, SequenceId>,
    pub(super) share: FairShare,
    /// Others made room for a sequence of it, and none of its own has moved in yet.
    pub(super) claimant: Option<TenantId>,
    /// Who is to come from other groups in this epoch.
    pub(super) inbound: BTreeMap<TransferId, Inbound>,
    /// Cached blocks that other groups copy.
    pub(super) outbound: BTreeMap<TransferId, BlockTable>,
    pub(super) prompt_cost: PromptCost,
    /// No plan is made.
    pub(super) stands_still: bool,
    /// `None` between epochs.
    pub(super) books: Option<StepBooks>,
    /// What cells are computed with; `None` without a prefix cache, or before it is known.
    pub(super) numerics_id: Option<NumericsId>,
    /// Sequences that a loss had interrupted and that have gone on or ended, with the positions computed again for it.
    went_on: Vec<(SequenceId, u32)>,
    pub counters: Counters,
}

#[derive(Debug)]
pub(crate) struct Limits {
    pub step_tokens_max: u32,
    pub chunk_tokens_max: u32,
    pub mixed_prefill_tokens_max: u32,
    pub sequences_max: u32,
    pub queue_wait_max: Duration,
    pub look_ahead: u32,
    pub look_ahead_tokens_max: u32,
    pub block_size: u32,
    pub prefix_cache: bool,
}

impl Scheduler {
    pub fn new(config: &ClusterConfig) -> Self {
        let step_tokens_max = config.step_tokens_max.max(1);
        let limits = Limits {
            step_tokens_max,
            chunk_tokens_max: config.chunk_tokens_max.clamp(1, step_tokens_max),
            mixed_prefill_tokens_max: config.mixed_prefill_tokens_max.max(1),
            sequences_max: config.sequences_max.clamp(1, step_tokens_max),
            queue_wait_max: config.queue_wait_max,
            look_ahead: config.look_ahead,
            look_ahead_tokens_max: config.look_ahead_tokens_max.max(1),
            block_size: config.cell.block_size(),
            prefix_cache: config.prefix_cache,
        };
        Self {
            limits,
            sequences: BTreeMap::new(),
            order: BTreeMap::new(),
            share: FairShare::default(),
            claimant: None,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            prompt_cost: PromptCost::default(),
            stands_still: false,
            books: None,
            numerics_id: None,
            went_on: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The numerics of the cells; the same in every epoch.
    pub fn key_prefixes(&mut self, numerics_id: &NumericsId) {
        self.numerics_id = self.limits.prefix_cache.then_some(*numerics_id);
    }

    /// What every history of a tenant starts from.
    pub(super) fn prefix_root(&self, tenant: &TenantId) -> Option<BlockHash> {
        let numerics_id = self.numerics_id.as_ref()?;
        Some(BlockHash::root(numerics_id, tenant.0.as_bytes()))
    }

    /// Takes a sequence that waits, new or from another group.
    pub fn accept(&mut self, sequence: Sequence) {
        self.share.enter(&sequence.request.tenant);
        self.order.insert(sequence.precedence, sequence.id);
        self.sequences.insert(sequence.id, sequence);
    }

    /// Hands out a sequence that waits, for another group.
    ///
    /// # Panics
    /// If it does not wait here.
    pub fn hand_over(&mut self, id: SequenceId) -> Sequence {
        let mut sequence = self.sequences.remove(&id).expect("it waits here");
        sequence.copy_asked = false;
        assert!(sequence.is_portable(), "what runs is not handed over");
        self.forget(&sequence);
        sequence
    }

    fn forget(&mut self, sequence: &Sequence) {
        self.order.remove(&sequence.precedence);
        self.share.leave(&sequence.request.tenant);
    }

    /// Ends a sequence early. Does nothing if it has ended.
    pub fn cancel(&mut self, id: SequenceId, reason: FinishReason, effects: &mut Vec<Effect>) {
        if self.sequences.contains_key(&id) {
            self.counters.cancelled += u64::from(reason == FinishReason::Cancelled);
            self.finish(id, reason, effects);
        }
    }

    /// Ends a sequence after the answer token `last_index`. Does nothing if it has ended.
    pub fn stop(&mut self, id: SequenceId, last_index: u32, effects: &mut Vec<Effect>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let kept = (sequence.prompt_len() + last_index + 1) as usize;
            self.counters.tokens_discarded += sequence.tokens.len().saturating_sub(kept) as u64;
            sequence.tokens.truncate(kept);
            self.finish(id, FinishReason::Stop, effects);
        }
    }

    /// Ends what waited too long. `outage` says since when and why the group does not serve, if it does not.
    pub fn check_deadlines(&mut self, now: Now, outage: Option<&Outage>, effects: &mut Vec<Effect>) {
        for id in self.ids() {
            let sequence = &self.sequences[&id];
            let overdue = sequence.deadline.is_some_and(|deadline| now >= deadline);
            let waited = now.since(sequence.submitted);
            if let Some(outage) = outage {
                let without_group = now.since(sequence.submitted.max(outage.since));
                if overdue || without_group >= outage.wait_max {
                    self.fail(id, outage.error(waited), effects);
                }
            } else if overdue {
                self.finish(id, FinishReason::Deadline, effects);
            } else if sequence.is_fresh() && waited >= self.limits.queue_wait_max {
                let error = SequenceError::QueueWait {
                    waited_ms: waited.as_millis() as u64,
                    queue_wait_ms_max: self.limits.queue_wait_max.as_millis() as u64,
                };
                self.counters.rejected += 1;
                self.fail(id, error, effects);
            }
        }
    }

    pub fn start_epoch(&mut self, epoch: Epoch, num_blocks: u32, world_size: usize) {
        assert!(self.books.is_none(), "epoch {epoch} starts while another runs");
        self.books = Some(StepBooks::new(epoch, num_blocks, world_size));
    }

    /// Sequences whose worst case, alone, does not fit the pool, with the numbers.
    pub fn misfits(&self) -> Vec<(SequenceId, SequenceError)> {
        let misfit = |sequence: &Sequence| Some((sequence.id, self.fits_pool(&sequence.request).err()?));
        self.sequences().filter_map(misfit).collect()
    }

    /// For some sequences the wait is over.
    pub fn note_first_steps(&mut self, plan: &StepPlan, now: Now) {
        for admitted in &plan.admitted {
            if let Some(sequence) = self.sequences.get_mut(&admitted.sequence) {
                sequence.queued.get_or_insert(now.since(sequence.submitted));
            }
        }
    }

    /// The epoch is over: its cells are gone, its sequences wait again. What was sampled and not heard is forgotten.
    /// Returns whom it interrupted.
    pub fn end_epoch(&mut self) -> Option<Vec<SequenceId>> {
        self.books.take()?;
        self.inbound.clear();
        self.outbound.clear();
        self.stands_still = false;
        self.claimant = None;
        let mut interrupted = Vec::new();
        for sequence in self.sequences.values_mut() {
            let held = std::mem::replace(&mut sequence.state, State::Waiting);
            if matches!(held, State::Running(_)) || sequence.samples_in_flight > 0 {
                sequence.interrupted.get_or_insert(sequence.recomputed);
                interrupted.push(sequence.id);
            }
            sequence.samples_in_flight = 0;
            sequence.copy_asked = false;
        }
        Some(interrupted)
    }

    pub fn take_went_on(&mut self) -> Vec<(SequenceId, u32)> {
        std::mem::take(&mut self.went_on)
    }

    /// A rank has done a step. Returns how long the step took if this brought its output.
    pub fn on_step_done(
        &mut self,
        rank: Rank,
        step: StepId,
        output: Option<StepOutput>,
        steady: Steady,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Duration>, StepViolation> {
        let Some(books) = self.books.as_mut() else {
            return Ok(None);
        };
        let Some(returned) = books.acknowledge(rank, step, output, steady)? else {
            return Ok(None);
        };
        self.counters.steps += 1;
        // A step that only lets the ranks forget is no measure of a step.
        let took = (!returned.work.is_empty()).then_some(returned.took);
        let stretches = returned.work.iter().map(|work| Stretch {
            start: work.start,
            tokens: work.num_tokens,
        });
        self.prompt_cost.observe(stretches, returned.took);
        self.take_return(returned, effects);
        let unaccounted = self.block_counts().unaccounted();
        self.counters.conservation_violations += u64::from(unaccounted != 0);
        Ok(took)
    }

    fn take_return(&mut self, returned: StepReturn, effects: &mut Vec<Effect>) {
        // Before a sequence that ends gives its blocks back.
        self.note_filled(&returned);
        for work in &returned.work {
            if let Some(sequence) = self.sequences.get_mut(&work.sequence) {
                sequence.computed_max = sequence.computed_max.max(work.start + work.num_tokens);
                sequence.samples_in_flight -= u32::from(work.samples);
            }
        }
        for id in &returned.output.poisoned {
            if let Some(sequence) = self.sequences.get(id) {
                let index = sequence.answer_len();
                self.fail(*id, SequenceError::Numerical { index }, effects);
            }
        }
        for scored in returned.output.scored {
            self.deliver_scores(scored, effects);
        }
        for token in returned.output.sampled {
            self.deliver(token, effects);
        }
    }

    /// What the step filled can soon be found. Not so where it went out of range: whoever starts from there would not
    /// notice. Nor of sequences that have ended: their last tokens may be ones that nobody asked for.
    fn note_filled(&mut self, returned: &StepReturn) {
        let mut filled = Vec::new();
        for work in &returned.work {
            if returned.output.poisoned.contains(&work.sequence) {
                continue;
            }
            if let Some(sequence) = self.sequences.get(&work.sequence)
                && let Some(root) = self.prefix_root(&sequence.request.tenant)
            {
                let sequence = self.sequences.get_mut(&work.sequence).expect("just seen");
                filled.extend(sequence.filled_by(returned.step, work, root, self.limits.block_size));
            }
        }
        if let Some(books) = self.books.as_mut() {
            books.note_filled(filled);
        }
    }

    /// Hands on the logprobs of a prompt. A sequence that was to be scored only has ended with the last of them.
    fn deliver_scores(&mut self, scored: ScoredPrompt, effects: &mut Vec<Effect>) {
        let id = scored.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let Some((position, logprobs)) = sequence.take_scores(scored) else {
            return;
        };
        let finished = sequence.finish_reason();
        effects.push(Effect::PromptLogprobs {
            sequence: id,
            position,
            logprobs,
        });
        if let Some(reason) = finished {
            self.finish(id, reason, effects);
        }
    }

    /// Appends to the token log. A sequence that has ended wants no more.
    fn deliver(&mut self, token: SampledToken, effects: &mut Vec<Effect>) {
        let id = token.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            self.counters.tokens_discarded += 1;
            return;
        };
        let index = sequence.answer_len();
        sequence.tokens.push(token.token);
        let finished = sequence.finish_reason();
        self.counters.generation_tokens += 1;
        effects.push(Effect::Token {
            sequence: id,
            index,
            token,
        });
        self.note_went_on(id);
        if let Some(reason) = finished {
            self.finish(id, reason, effects);
        }
    }

    fn note_went_on(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences go on");
        if let Some(before) = sequence.interrupted.take() {
            self.went_on.push((id, sequence.recomputed - before));
        }
    }

    /// Whether its worst case, alone, fits an empty pool. Unknown, hence not refused, while no group runs.
    pub fn fits_pool(&self, request: &Request) -> Result<(), SequenceError> {
        let Some(books) = &self.books else { return Ok(()) };
        self.fits_blocks(request, books.pool.counts().total)
    }

    /// Whether its worst case, alone, fits so many blocks.
    pub fn fits_blocks(&self, request: &Request, num_blocks: u32) -> Result<(), SequenceError> {
        let needed_blocks = request.positions_max().div_ceil(self.limits.block_size);
        if needed_blocks > num_blocks {
            return Err(SequenceError::TooFewBlocks {
                needed_blocks,
                num_blocks,
                block_size: self.limits.block_size,
            });
        }
        Ok(())
    }

    pub fn finish(&mut self, id: SequenceId, reason: FinishReason, effects: &mut Vec<Effect>) {
        let usage = self.end(id).usage();
        self.counters.finished += 1;
        effects.push(Effect::Finished {
            sequence: id,
            reason,
            usage,
        });
    }

    pub fn fail(&mut self, id: SequenceId, error: SequenceError, effects: &mut Vec<Effect>) {
        self.end(id);
        self.counters.failed += 1;
        effects.push(Effect::Failed { sequence: id, error });
    }

    /// Takes a sequence out of the books. The ranks forget it with the next plan.
    fn end(&mut self, id: SequenceId) -> Sequence {
        self.release(id);
        self.note_went_on(id);
        let sequence = self.sequences.remove(&id).expect("only live sequences end");
        self.forget(&sequence);
        sequence
    }

    /// Takes a running sequence's blocks back and lets the ranks forget it. A waiting one has none.
    pub(super) fn release(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences hold blocks");
        sequence.copy_asked = false;
        if let State::Running(mut running) = std::mem::replace(&mut sequence.state, State::Waiting) {
            let books = self.books.as_mut().expect("a sequence runs only in an epoch");
            books.release(running.blocks.take(), running.last_named);
            if running.last_named.is_some() {
                books.retired.push(id);
            }
        }
    }

    pub fn contains(&self, id: SequenceId) -> bool {
        self.sequences.contains_key(&id)
    }

    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.get_mut(&id)
    }

    pub fn num_running(&self) -> u32 {
        self.sequences().filter(|sequence| sequence.running().is_some()).count() as u32
    }

    pub fn num_free_places(&self) -> u32 {
        let taken = self.num_running() + self.num_inbound();
        self.limits.sequences_max.saturating_sub(taken)
    }

    pub fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences().filter(|sequence| sequence.is_waiting())
    }

    /// True if a rank has steps that it has not acknowledged.
    pub fn is_busy(&self, rank: Rank) -> bool {
        self.books.as_ref().is_some_and(|books| books.is_busy(rank))
    }

    pub fn has_steps_out(&self) -> bool {
        self.steps_outstanding() > 0
    }

    pub fn steps_outstanding(&self) -> u32 {
        self.books.as_ref().map_or(0, StepBooks::num_without_output)
    }

    pub fn block_counts(&self) -> BlockCounts {
        self.books.as_ref().map(|books| books.pool.counts()).unwrap_or_default()
    }

    /// Who gives way first comes last.
    pub fn sequences(&self) -> impl DoubleEndedIterator<Item = &Sequence> {
        self.order.values().map(|id| &self.sequences[id])
    }

    pub(super) fn ids(&self) -> Vec<SequenceId> {
        self.order.values().copied().collect()
    }

    /// Conservation of blocks; that what is awaited is on its way; that everybody is counted.
    ///
    /// # Panics
    /// If one of them does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.order.len(), self.sequences.len(), "a sequence is lost or doubled");
        let held: usize = self
            .sequences
            .values()
            .filter_map(Sequence::running)
            .map(|r| r.blocks.len())
            .sum();
        let Some(books) = &self.books else {
            assert_eq!(held, 0, "blocks are held outside an epoch");
            return;
        };
        books.pool.check_invariants(held + self.num_blocks_in_transfers());
        let counts = books.pool.counts();
        assert!(
            counts.in_flight == 0 || books.awaits_any(),
            "blocks in flight, but no step is: {counts:?}"
        );
        for sequence in self.sequences() {
            let awaited = books.samples_awaited(sequence.id);
            assert_eq!(
                sequence.samples_in_flight, awaited,
                "samples of {} in flight",
                sequence.id
            );
        }
    }
}
