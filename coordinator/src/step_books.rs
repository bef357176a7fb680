//! The books of one epoch: its block pool, the steps sent and who has acknowledged them.
//!
//! A released block becomes free when *every* rank has acknowledged the last step that names it, and a full one
//! findable when every rank has acknowledged the step that filled it.

use std::collections::VecDeque;

use kvasir_kv::{
    Block, BlockHash, BlockPool, Epoch, Rank, SequenceId, SequenceWork, StepId, StepOutput, StepPlan, TaggedBlock,
};

use crate::detector::Steady;

#[derive(Debug)]
pub(crate) struct StepBooks {
    pub epoch: Epoch,
    pub pool: BlockPool,
    /// Sequences that the ranks hold and are to forget with the next plan.
    pub retired: Vec<SequenceId>,
    next_step: StepId,
    /// Steps acknowledged, by rank.
    acknowledged: Vec<u64>,
    /// From the oldest without output on.
    without_output: VecDeque<SentStep>,
    /// Full blocks whose step a rank may not have done yet.
    filled: Vec<FilledBlock>,
    last_output: Steady,
}

#[derive(Debug)]
struct SentStep {
    sent: Steady,
    work: Vec<SequenceWork>,
}

/// A block that a step has filled, with the history up to its end.
#[derive(Debug)]
pub(crate) struct FilledBlock {
    pub step: StepId,
    pub block: TaggedBlock,
    pub hash: BlockHash,
    pub parent: BlockHash,
}

/// A rank spoke out of turn.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum StepViolation {
    #[error("step {found} acknowledged where {expected} is next, {sent} sent")]
    WrongStep { expected: u64, found: StepId, sent: u64 },
    #[error("step {0} without its output")]
    NoOutput(StepId),
    #[error("the output of step {step} names step {found_step} of epoch {found_epoch}")]
    ForeignOutput {
        step: StepId,
        found_step: StepId,
        found_epoch: Epoch,
    },
    #[error("the output of step {step} has no sample of sequence {sequence}, or has too many")]
    WrongSamples { step: StepId, sequence: SequenceId },
    #[error("the output of step {step} has other logprobs of the prompt of sequence {sequence} than were asked for")]
    WrongScores { step: StepId, sequence: SequenceId },
}

/// What the output of a step was for.
#[derive(Debug)]
pub(crate) struct StepReturn {
    pub step: StepId,
    pub work: Vec<SequenceWork>,
    pub output: StepOutput,
    /// From the sending, or from the output before it if that was later.
    pub took: std::time::Duration,
}

impl StepBooks {
    pub fn new(epoch: Epoch, num_blocks: u32, world_size: usize) -> Self {
        Self {
            epoch,
            pool: BlockPool::new(num_blocks),
            retired: Vec::new(),
            next_step: StepId(0),
            acknowledged: vec![0; world_size],
            without_output: VecDeque::new(),
            filled: Vec::new(),
            last_output: Steady::default(),
        }
    }

    /// The books of the epoch that takes the place of this one, of which no step is out; blocks live on.
    ///
    /// # Panics
    /// If a step is out, or more blocks are held than there will be.
    pub fn begin_again(self, epoch: Epoch, num_blocks: u32, world_size: usize) -> Self {
        assert!(
            !self.awaits_any(),
            "epoch {epoch} begins while steps of {} are out",
            self.epoch
        );
        let mut books = Self::new(epoch, 0, world_size);
        books.pool = self.pool;
        books.pool.begin_again(num_blocks).expect("room was made");
        books.last_output = self.last_output;
        books
    }

    pub fn next_step(&self) -> StepId {
        self.next_step
    }

    /// Steps sent whose output is not back.
    pub fn num_without_output(&self) -> u32 {
        self.without_output.len() as u32
    }

    /// Tokens of the steps whose output is not back.
    pub fn tokens_without_output(&self) -> u32 {
        let work = self.without_output.iter().flat_map(|sent| &sent.work);
        work.map(|work| work.num_tokens).sum()
    }

    pub fn is_busy(&self, rank: Rank) -> bool {
        self.acknowledged[rank.0 as usize] < self.next_step.0
    }

    /// True if a rank has not acknowledged all steps sent.
    pub fn awaits_any(&self) -> bool {
        self.acknowledged_by_all() < self.next_step.0
    }

    /// Samples of a sequence that steps sent will bring.
    pub fn samples_awaited(&self, sequence: SequenceId) -> u32 {
        let work = self.without_output.iter().flat_map(|sent| &sent.work);
        work.filter(|work| work.sequence == sequence && work.samples).count() as u32
    }

    /// Whether a step that computes something of a sequence is out.
    pub fn is_out(&self, sequence: SequenceId) -> bool {
        let mut work = self.without_output.iter().flat_map(|sent| &sent.work);
        work.any(|work| work.sequence == sequence)
    }

    pub fn note_sent(&mut self, plan: &StepPlan, now: Steady) {
        self.next_step = StepId(self.next_step.0 + 1);
        self.without_output.push_back(SentStep {
            sent: now,
            work: plan.work.clone(),
        });
    }

    /// Takes blocks back. They are free once every rank has acknowledged `last_named`.
    pub fn release(&mut self, blocks: Vec<Block>, last_named: Option<StepId>) {
        let pending = last_named.filter(|step| step.0 >= self.acknowledged_by_all());
        self.pool.release(blocks, pending);
    }

    /// A rank has done a step and all before it; rank 0 brings the output of each. Errors before anything changes.
    pub fn acknowledge(
        &mut self,
        rank: Rank,
        step: StepId,
        output: Option<StepOutput>,
        now: Steady,
    ) -> Result<Option<StepReturn>, StepViolation> {
        let expected = self.acknowledged[rank.0 as usize];
        let is_skipped = rank == Rank(0) && step.0 > expected;
        if step.0 < expected || is_skipped || step >= self.next_step {
            return Err(StepViolation::WrongStep {
                expected,
                found: step,
                sent: self.next_step.0,
            });
        }
        let returned = if rank == Rank(0) {
            Some(self.take_output(step, output.ok_or(StepViolation::NoOutput(step))?, now)?)
        } else {
            None
        };
        self.acknowledged[rank.0 as usize] = step.0 + 1;
        self.settle();
        Ok(returned)
    }

    /// The output of a step has shown that all is well with the blocks that it filled.
    pub fn note_filled(&mut self, blocks: Vec<FilledBlock>) {
        self.filled.extend(blocks);
        self.settle();
    }

    /// Draws the consequences of what every rank has acknowledged. Blocks become findable before they become free.
    fn settle(&mut self) {
        let acknowledged = self.acknowledged_by_all();
        for filled in self.filled.extract_if(.., |filled| filled.step.0 < acknowledged) {
            self.pool.commit(filled.block, filled.hash, filled.parent);
        }
        if let Some(last) = acknowledged.checked_sub(1) {
            self.pool.acknowledge(StepId(last));
        }
    }

    fn acknowledged_by_all(&self) -> u64 {
        self.acknowledged.iter().copied().min().unwrap_or(0)
    }

    fn take_output(&mut self, step: StepId, output: StepOutput, now: Steady) -> Result<StepReturn, StepViolation> {
        if (output.epoch, output.step) != (self.epoch, step) {
            return Err(StepViolation::ForeignOutput {
                step,
                found_step: output.step,
                found_epoch: output.epoch,
            });
        }
        let sent = self.without_output.front().expect("rank 0 acknowledges in order");
        check_samples(&sent.work, &output)?;
        check_scores(&sent.work, &output)?;
        let sent = self.without_output.pop_front().expect("just seen");
        let took = now.since(sent.sent.max(self.last_output));
        self.last_output = now;
        Ok(StepReturn {
            step,
            work: sent.work,
            output,
            took,
        })
    }
}

/// One sample per entry that samples, in order; a poisoned one may be missing.
fn check_samples(work: &[SequenceWork], output: &StepOutput) -> Result<(), StepViolation> {
    let mut sampled = output.sampled.iter().map(|token| token.sequence).peekable();
    for work in work.iter().filter(|work| work.samples) {
        if sampled.next_if_eq(&work.sequence).is_none() && !output.poisoned.contains(&work.sequence) {
            return Err(StepViolation::WrongSamples {
                step: output.step,
                sequence: work.sequence,
            });
        }
    }
    match sampled.next() {
        Some(sequence) => Err(StepViolation::WrongSamples {
            step: output.step,
            sequence,
        }),
        None => Ok(()),
    }
}

/// The logprobs asked for, in order; those of a poisoned sequence may be missing.
fn check_scores(work: &[SequenceWork], output: &StepOutput) -> Result<(), StepViolation> {
    let wrong = |sequence| StepViolation::WrongScores {
        step: output.step,
        sequence,
    };
    let mut scored = output.scored.iter().peekable();
    for work in work.iter().filter(|work| !work.scored.is_empty()) {
        match scored.next_if(|scored| scored.sequence == work.sequence) {
            Some(scored) if scored.start == work.scored.start && scored.logprobs.len() == work.scored.len() => {}
            None if output.poisoned.contains(&work.sequence) => {}
            _ => return Err(wrong(work.sequence)),
        }
    }
    scored.next().map_or(Ok(()), |scored| Err(wrong(scored.sequence)))
}
