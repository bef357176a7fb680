//! The scheduler: the sequences of a group, their tokens and their blocks.
//!
//! Here is the life of sequences: submission, tokens, end, and what becomes of them when an epoch ends. How a step is
//! composed is in `planner`. It awaits nothing and never asks the time.

use std::{collections::BTreeMap, time::Duration};

use kvasir_kv::{
    BlockCounts, BlockHash, Epoch, FinishReason, NumericsId, Rank, Request, SampledToken, SequenceId, StepId,
    StepOutput,
};

use crate::{
    ClusterConfig, Effect, Now, SequenceError,
    detector::Steady,
    recovery::{Outage, Recovery},
    sequence::{Sequence, State},
    status::Counters,
    step_books::{StepBooks, StepReturn, StepViolation},
};

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(super) limits: Limits,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    /// Oldest first.
    pub(super) by_age: Vec<SequenceId>,
    /// `None` between epochs.
    pub(super) books: Option<StepBooks>,
    pub(super) recovery: Option<Recovery>,
    /// What every history starts from; `None` without a prefix cache, or before the numerics are known.
    pub(super) prefix_root: Option<BlockHash>,
    pub counters: Counters,
}

#[derive(Debug)]
pub(crate) struct Limits {
    pub step_tokens_max: u32,
    pub chunk_tokens_max: u32,
    pub sequences_max: u32,
    pub queue_max: u32,
    pub look_ahead: u32,
    pub block_size: u32,
    pub context_len: u32,
    pub prefix_cache: bool,
}

impl Scheduler {
    pub fn new(config: &ClusterConfig, context_len: u32) -> Self {
        let step_tokens_max = config.step_tokens_max.max(1);
        let limits = Limits {
            step_tokens_max,
            chunk_tokens_max: config.chunk_tokens_max.clamp(1, step_tokens_max),
            sequences_max: config.sequences_max.clamp(1, step_tokens_max),
            queue_max: config.queue_max,
            look_ahead: config.look_ahead,
            block_size: config.cell.block_size(),
            context_len,
            prefix_cache: config.prefix_cache,
        };
        Self {
            limits,
            sequences: BTreeMap::new(),
            by_age: Vec::new(),
            books: None,
            recovery: None,
            prefix_root: None,
            counters: Counters::default(),
        }
    }

    /// The numerics of the cells; the same in every epoch. Requests have no tenants yet.
    pub fn key_prefixes(&mut self, numerics_id: &NumericsId) {
        let enabled = self.limits.prefix_cache;
        self.prefix_root = enabled.then(|| BlockHash::root(numerics_id, b""));
    }

    /// Takes a request, or refuses it at once with the numbers.
    pub fn submit(
        &mut self,
        id: SequenceId,
        request: Request,
        deadline: Option<Now>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.counters.submitted += 1;
        if let Err(error) = self.admissible(id, &request) {
            self.counters.failed += 1;
            effects.push(Effect::Failed { sequence: id, error });
            return;
        }
        self.counters.prompt_tokens += request.prompt.len() as u64;
        let sequence = Sequence::new(id, request, deadline, now);
        let finished = sequence.finish_reason();
        self.sequences.insert(id, sequence);
        self.by_age.push(id);
        if let Some(reason) = finished {
            self.finish(id, reason, effects);
        }
    }

    /// Ends a sequence early. Does nothing if it has ended.
    pub fn cancel(&mut self, id: SequenceId, reason: FinishReason, effects: &mut Vec<Effect>) {
        if self.sequences.contains_key(&id) {
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

    /// Ends what waited too long.
    pub fn check_deadlines(&mut self, now: Now, outage: Option<&Outage>, effects: &mut Vec<Effect>) {
        for id in self.by_age.clone() {
            let sequence = &self.sequences[&id];
            let overdue = sequence.deadline.is_some_and(|deadline| now >= deadline);
            match outage {
                Some(outage) => {
                    let waited = now.since(sequence.submitted.max(outage.since));
                    if overdue || waited >= outage.wait_max {
                        self.fail(id, outage.error(now.since(sequence.submitted)), effects);
                    }
                }
                None if overdue => self.finish(id, FinishReason::Deadline, effects),
                None => {}
            }
        }
    }

    pub fn start_epoch(
        &mut self,
        epoch: Epoch,
        num_blocks: u32,
        world_size: usize,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        assert!(self.books.is_none(), "epoch {epoch} starts while another runs");
        self.books = Some(StepBooks::new(epoch, num_blocks, world_size));
        for id in self.by_age.clone() {
            if let Err(error) = self.fits_pool(&self.sequences[&id].request) {
                self.fail(id, error, effects);
            }
        }
        self.report_recovery(now, effects);
    }

    /// The epoch is over: its cells are gone, its sequences wait again. What was sampled and not heard is forgotten.
    pub fn end_epoch(&mut self, now: Now) {
        if self.books.take().is_none() {
            return;
        }
        let mut interrupted = Vec::new();
        for sequence in self.sequences.values_mut() {
            let held = std::mem::replace(&mut sequence.state, State::Waiting);
            if matches!(held, State::Running(_)) || sequence.samples_in_flight > 0 {
                interrupted.push(sequence.id);
            }
            sequence.samples_in_flight = 0;
        }
        self.recovery
            .get_or_insert_with(|| Recovery::begin(now))
            .interrupt(interrupted.into_iter());
    }

    /// A rank has done a step. Returns how long the step took if this brought its output.
    pub fn on_step_done(
        &mut self,
        rank: Rank,
        step: StepId,
        output: Option<StepOutput>,
        now: Now,
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
        let took = returned.took;
        self.take_return(returned, effects);
        self.report_recovery(now, effects);
        Ok(Some(took))
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
        for token in returned.output.sampled {
            self.deliver(token, effects);
        }
    }

    /// What the step filled can soon be found. Not so where it went out of range: whoever starts from there would not
    /// notice. Nor of sequences that have ended: their last tokens may be ones that nobody asked for.
    fn note_filled(&mut self, returned: &StepReturn) {
        let (Some(root), Some(books)) = (self.prefix_root, self.books.as_mut()) else {
            return;
        };
        let mut filled = Vec::new();
        for work in &returned.work {
            if let Some(sequence) = self.sequences.get_mut(&work.sequence)
                && !returned.output.poisoned.contains(&work.sequence)
            {
                filled.extend(sequence.filled_by(returned.step, work, root, self.limits.block_size));
            }
        }
        books.note_filled(filled);
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
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.went_on(id);
        }
        if let Some(reason) = finished {
            self.finish(id, reason, effects);
        }
    }

    fn report_recovery(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(books) = &self.books else { return };
        let report = self
            .recovery
            .as_ref()
            .and_then(|recovery| recovery.finished(books.epoch, now));
        if let Some(report) = report {
            self.counters.recoveries += 1;
            self.recovery = None;
            effects.push(report);
        }
    }

    fn admissible(&self, id: SequenceId, request: &Request) -> Result<(), SequenceError> {
        let prompt_len = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = request.max_tokens;
        let context_len = self.limits.context_len;
        if self.sequences.contains_key(&id) {
            return Err(SequenceError::Duplicate(id));
        }
        if prompt_len == 0 || max_tokens == 0 {
            return Err(SequenceError::Empty { prompt_len, max_tokens });
        }
        if prompt_len.saturating_add(max_tokens) > context_len {
            return Err(SequenceError::TooLong {
                prompt_len,
                max_tokens,
                context_len,
            });
        }
        self.fits_pool(request)?;
        let waiting = self.num_waiting();
        if waiting >= self.limits.queue_max {
            let queue_max = self.limits.queue_max;
            return Err(SequenceError::QueueFull { waiting, queue_max });
        }
        Ok(())
    }

    /// Whether its worst case, alone, fits an empty pool. Unknown, hence not refused, while no group runs.
    fn fits_pool(&self, request: &Request) -> Result<(), SequenceError> {
        let Some(books) = &self.books else { return Ok(()) };
        let needed_blocks = (request.total_len_max() - 1).div_ceil(self.limits.block_size);
        let num_blocks = books.pool.counts().total;
        if needed_blocks > num_blocks {
            return Err(SequenceError::TooFewBlocks {
                needed_blocks,
                num_blocks,
                block_size: self.limits.block_size,
            });
        }
        Ok(())
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason, effects: &mut Vec<Effect>) {
        let usage = self.end(id).usage();
        self.counters.finished += 1;
        effects.push(Effect::Finished {
            sequence: id,
            reason,
            usage,
        });
    }

    fn fail(&mut self, id: SequenceId, error: SequenceError, effects: &mut Vec<Effect>) {
        self.end(id);
        self.counters.failed += 1;
        effects.push(Effect::Failed { sequence: id, error });
    }

    /// Takes a sequence out of the books. The ranks forget it with the next plan.
    fn end(&mut self, id: SequenceId) -> Sequence {
        self.release(id);
        self.by_age.retain(|other| *other != id);
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.went_on(id);
        }
        self.sequences.remove(&id).expect("only live sequences end")
    }

    /// Takes a running sequence's blocks back and lets the ranks forget it. A waiting one has none.
    pub(super) fn release(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences hold blocks");
        if let State::Running(mut running) = std::mem::replace(&mut sequence.state, State::Waiting) {
            let books = self.books.as_mut().expect("a sequence runs only in an epoch");
            books.release(running.blocks.take(), running.last_named);
            if running.last_named.is_some() {
                books.retired.push(id);
            }
        }
    }

    fn num_waiting(&self) -> u32 {
        let waiting = self.sequences.values().filter(|sequence| sequence.running().is_none());
        waiting.count() as u32
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

    /// Oldest first.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.by_age.iter().map(|id| &self.sequences[id])
    }

    /// Conservation of blocks; that the queue is in order; that what is awaited is on its way.
    ///
    /// # Panics
    /// If one of them does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.by_age.len(), self.sequences.len(), "a sequence is lost or doubled");
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
        books.pool.check_invariants(held);
        let counts = books.pool.counts();
        assert!(
            counts.in_flight == 0 || books.awaits_any(),
            "blocks in flight, but no step is: {counts:?}"
        );
        let mut waiting_seen = false;
        for sequence in self.sequences() {
            waiting_seen |= sequence.running().is_none();
            assert!(
                !waiting_seen || sequence.running().is_none(),
                "a newer sequence runs while an older one waits"
            );
            let awaited = books.samples_awaited(sequence.id);
            assert_eq!(
                sequence.samples_in_flight, awaited,
                "samples of {} in flight",
                sequence.id
            );
        }
    }
}
