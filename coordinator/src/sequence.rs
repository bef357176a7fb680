//! A request being generated: its tokens, its progress and, while it runs, its blocks.
//!
//! Two counts may run ahead of what is known: positions scheduled in plans that are still on their way, and samples
//! that those plans will bring. Everything the scheduler wants of a sequence is one subtraction between them.

use kvasir_kv::{
    AdmittedSequence, BlockTable, FinishReason, Request, SequenceId, SequenceWork, StepId, TaggedBlock, TokenId,
};

use crate::{Now, Usage};

#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SequenceId,
    pub request: Request,
    pub deadline: Option<Now>,
    pub submitted: Now,
    /// Prompt and answer: the token log.
    pub tokens: Vec<TokenId>,
    /// Samples that plans on their way will bring. Outlives a preemption.
    pub samples_in_flight: u32,
    /// Positions that were computed at some time, whether or not their cells are still held.
    pub computed_max: u32,
    pub recomputed: u32,
    pub state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    Waiting,
    Running(Running),
}

/// What the ranks hold of a sequence.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub blocks: BlockTable,
    /// Positions in plans sent.
    pub scheduled: u32,
    /// Last step that names its blocks; `None` until its first plan is made.
    pub last_named: Option<StepId>,
    /// Blocks that plans have named.
    named: usize,
}

impl Running {
    fn name_new_blocks(&mut self) -> Vec<TaggedBlock> {
        let unnamed = self.blocks.tagged().skip(self.named).collect();
        self.named = self.blocks.len();
        unnamed
    }
}

/// A sequence's part in a plan.
#[derive(Debug)]
pub(crate) struct Scheduled {
    /// In its first plan.
    pub admitted: Option<AdmittedSequence>,
    pub work: SequenceWork,
    /// Positions that had been computed before.
    pub recomputed: u32,
}

impl Sequence {
    pub fn new(id: SequenceId, request: Request, deadline: Option<Now>, now: Now) -> Self {
        let tokens = [request.prompt.as_slice(), &request.generated].concat();
        Self {
            id,
            request,
            deadline,
            submitted: now,
            tokens,
            samples_in_flight: 0,
            computed_max: 0,
            recomputed: 0,
            state: State::Waiting,
        }
    }

    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Waiting => None,
        }
    }

    pub fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            State::Waiting => None,
        }
    }

    /// Tokens known, and those that steps in flight will bring.
    pub fn len_expected(&self) -> u32 {
        self.tokens.len() as u32 + self.samples_in_flight
    }

    /// Positions that can be computed next; 0 while it waits for its last token. The last token of an answer is never
    /// computed: nobody samples after it.
    pub fn wanted(&self) -> u32 {
        let expected = self.len_expected();
        if expected >= self.request.total_len_max() {
            return 0;
        }
        expected - self.running().map_or(0, |running| running.scheduled)
    }

    /// Puts its next `num_tokens` positions into a plan; it runs and has the blocks for them.
    pub fn schedule(&mut self, step: StepId, num_tokens: u32) -> Scheduled {
        let expected = self.len_expected();
        let running = self.running_mut().expect("only running sequences are scheduled");
        let start = running.scheduled;
        let end = start + num_tokens;
        let is_new = running.last_named.replace(step).is_none();
        let new_blocks = running.name_new_blocks();
        running.scheduled = end;
        let recomputed = end.min(self.computed_max).saturating_sub(start);
        self.recomputed += recomputed;
        let samples = end == expected;
        self.samples_in_flight += u32::from(samples);
        Scheduled {
            admitted: is_new.then(|| self.describe()),
            work: SequenceWork {
                sequence: self.id,
                start,
                num_tokens,
                new_blocks,
                samples,
            },
            recomputed,
        }
    }

    fn describe(&self) -> AdmittedSequence {
        AdmittedSequence {
            sequence: self.id,
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len(),
            sampling: self.request.sampling.clone(),
        }
    }

    pub fn prompt_len(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    /// Tokens of the answer, also the index of the next one.
    pub fn answer_len(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_len()
    }

    /// Most positions that are ever computed.
    pub fn positions_max(&self) -> u32 {
        self.request.total_len_max() - 1
    }

    /// Whether the answer is complete as it stands.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        let last = (self.answer_len() > 0).then(|| self.tokens.last()).flatten();
        if last.is_some_and(|token| self.request.stop_tokens.contains(token)) {
            Some(FinishReason::Stop)
        } else if self.answer_len() >= self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len(),
            cached_tokens: 0,
            completion_tokens: self.answer_len(),
            recomputed_tokens: self.recomputed,
        }
    }
}
