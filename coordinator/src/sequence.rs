//! A request being generated: its tokens, its progress and, while it runs, its blocks.
//!
//! Two counts may run ahead of what is known: positions scheduled in plans that are still on their way, and samples
//! that those plans will bring. Everything the scheduler wants of a sequence is one subtraction between them.

use std::{ops::Range, time::Duration};

use kvasir_kv::{
    AdmittedSequence, AdoptedBlock, BlockHash, BlockTable, FinishReason, PromptLogprob, Request, ScoredPrompt,
    SequenceId, SequenceWork, StepId, TaggedBlock, TokenId, TransferId,
};

use crate::{Now, Usage, step_books::FilledBlock};

/// Who gives way last: lower priorities before higher ones, then whoever came first. It never changes, so that the first
/// of all always gets on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Precedence {
    pub priority: i32,
    /// Counts the requests of a cluster.
    pub arrival: u64,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SequenceId,
    pub request: Request,
    pub precedence: Precedence,
    pub deadline: Option<Now>,
    pub submitted: Now,
    /// From then to its first step; `None` before.
    pub queued: Option<Duration>,
    /// Prompt and answer: the token log.
    pub tokens: Vec<TokenId>,
    /// Positions of the prompt whose logprobs are known, from position 1; counted only where they are wanted.
    pub num_scored: u32,
    /// Samples that plans on their way will bring. Outlives a preemption.
    pub samples_in_flight: u32,
    /// Positions that were computed at some time, whether or not their cells are still held.
    pub computed_max: u32,
    pub recomputed: u32,
    /// Prompt tokens that the prefix cache had at the first admission; `None` before.
    pub cached: Option<u32>,
    pub preemptions: u32,
    /// `recomputed` as it was when a loss interrupted it; `None` once it has gone on.
    pub interrupted: Option<u32>,
    pub state: State,
    /// Since it waits, it was found whether another group has more of its beginning.
    pub copy_asked: bool,
    /// An operator has put it where it is.
    pub was_ordered: bool,
    /// Of its full blocks, as far as they were wanted.
    hashes: Vec<BlockHash>,
}

#[derive(Debug)]
pub(crate) enum State {
    Waiting,
    /// It has its turn as soon as cached blocks of another group have come.
    AwaitsCopy(TransferId),
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
    /// First step that names them.
    first_named: Option<StepId>,
    /// Blocks that plans have named.
    named: usize,
    /// It gets no steps for now.
    pub frozen: bool,
    /// Blocks that have come from another group, for its first plan here.
    adopted: Vec<AdoptedBlock>,
    /// It came from another group.
    is_adopted: bool,
}

impl Running {
    /// Starts with blocks that are computed already, `scheduled` positions.
    pub fn after(blocks: BlockTable, scheduled: u32) -> Self {
        Self {
            blocks,
            scheduled,
            ..Self::default()
        }
    }

    /// Goes on with blocks that have come from another group.
    pub fn adopted(blocks: BlockTable, scheduled: u32, adopted: Vec<AdoptedBlock>) -> Self {
        Self {
            adopted,
            is_adopted: true,
            ..Self::after(blocks, scheduled)
        }
    }

    /// It came with blocks that no plan has named.
    pub fn is_arriving(&self) -> bool {
        self.is_adopted && self.last_named.is_none()
    }

    /// Its ranks are others from now on, and have the cells of all positions scheduled.
    pub fn begin_again(&mut self, block_size: u32) {
        let begins = (0..self.scheduled).step_by(block_size as usize);
        let adopted = self.blocks.tagged().zip(begins).map(|(block, begin)| AdoptedBlock {
            block,
            written: (self.scheduled - begin).min(block_size),
        });
        self.adopted = adopted.collect();
        self.is_adopted = true;
        self.named = 0;
        self.last_named = None;
        self.first_named = None;
    }

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
    /// In its first plan, if it came from another group.
    pub adopted: Option<Vec<AdoptedBlock>>,
    pub work: SequenceWork,
    /// Positions that had been computed before.
    pub recomputed: u32,
    /// It computes a part of the tokens that are known, and leaves the rest to later plans.
    pub is_chunk: bool,
}

impl Sequence {
    pub fn new(id: SequenceId, request: Request, arrival: u64, deadline: Option<Now>, now: Now) -> Self {
        let tokens = [request.prompt.as_slice(), &request.generated].concat();
        let priority = request.priority;
        let num_scored = request.prompt_logprobs.map_or(0, |wanted| wanted.received);
        Self {
            id,
            request,
            precedence: Precedence { priority, arrival },
            deadline,
            submitted: now,
            queued: None,
            tokens,
            num_scored,
            samples_in_flight: 0,
            computed_max: 0,
            recomputed: 0,
            cached: None,
            preemptions: 0,
            interrupted: None,
            state: State::Waiting,
            copy_asked: false,
            was_ordered: false,
            hashes: Vec::new(),
        }
    }

    /// The hashes of its full blocks, in order.
    pub fn block_hashes(&mut self, root: BlockHash, block_size: u32) -> &[BlockHash] {
        for tokens in self.tokens.chunks_exact(block_size as usize).skip(self.hashes.len()) {
            let parent = self.hashes.last().copied().unwrap_or(root);
            self.hashes.push(parent.child(tokens));
        }
        &self.hashes
    }

    /// The hashes of the blocks that it could start after. The last token is always computed: its logits are needed, and
    /// so are those of each token of a prompt that is still to be scored.
    pub fn reusable_hashes(&mut self, root: BlockHash, block_size: u32) -> &[BlockHash] {
        let reusable_len = match self.wants_scores() {
            true => self.num_scored as usize,
            false => self.tokens.len() - 1,
        };
        let reusable = reusable_len / block_size as usize;
        &self.block_hashes(root, block_size)[..reusable]
    }

    /// The blocks of which `work`, done in `step`, computed the last position. What a plan made before a preemption
    /// computed is in other blocks by now.
    pub fn filled_by(
        &mut self,
        step: StepId,
        work: &SequenceWork,
        root: BlockHash,
        block_size: u32,
    ) -> Vec<FilledBlock> {
        let is_its = |running: &Running| running.first_named.is_some_and(|first| first <= step);
        if !self.running().is_some_and(is_its) {
            return Vec::new();
        }
        self.block_hashes(root, block_size);
        let running = self.running().expect("just seen");
        let filled = work.start / block_size..(work.start + work.num_tokens) / block_size;
        let filled = filled.map(|index| index as usize).map(|index| FilledBlock {
            step,
            block: running.blocks.get(index).expect("it was named").tagged(),
            hash: self.hashes[index],
            parent: index.checked_sub(1).map_or(root, |before| self.hashes[before]),
        });
        filled.collect()
    }

    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Waiting | State::AwaitsCopy(_) => None,
        }
    }

    pub fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            State::Waiting | State::AwaitsCopy(_) => None,
        }
    }

    /// It waits for its turn.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    pub fn awaits(&self, transfer: TransferId) -> bool {
        matches!(self.state, State::AwaitsCopy(awaited) if awaited == transfer)
    }

    /// It has not been admitted yet.
    pub fn is_fresh(&self) -> bool {
        self.cached.is_none()
    }

    /// No rank holds anything of it, and nothing of it is on its way.
    pub fn is_portable(&self) -> bool {
        self.is_waiting() && self.samples_in_flight == 0
    }

    /// Tokens known, and those that steps in flight will bring.
    pub fn len_expected(&self) -> u32 {
        self.tokens.len() as u32 + self.samples_in_flight
    }

    /// Positions that can be computed next; 0 while it waits for its last token, or stands still before it goes. The last token of an answer is never
    /// computed: nobody samples after it.
    pub fn wanted(&self) -> u32 {
        if self.running().is_some_and(|running| running.frozen) {
            return 0;
        }
        let expected = self.len_expected();
        if expected >= self.request.total_len_max() && !self.is_only_scored() {
            return 0;
        }
        self.computable_len() - self.running().map_or(0, |running| running.scheduled)
    }

    /// Nothing is generated after the prompt.
    fn is_only_scored(&self) -> bool {
        self.request.max_tokens == 0
    }

    /// Positions that can be computed as things stand.
    fn computable_len(&self) -> u32 {
        self.len_expected().min(self.positions_max())
    }

    /// Some logprobs of its prompt are wanted and not known.
    pub fn wants_scores(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.num_scored + 1 < self.prompt_len()
    }

    /// The positions of the prompt that the rows from `start` to `end` score.
    fn scored_by(&self, start: u32, end: u32) -> Range<u32> {
        let scored = start.max(self.num_scored) + 1..self.prompt_len().min(end + 1);
        match self.wants_scores() && !scored.is_empty() {
            true => scored,
            false => 0..0,
        }
    }

    /// Takes what a step has scored. Returns what is news, and the position where that begins: a preempted sequence is
    /// computed, and scored, again.
    pub fn take_scores(&mut self, scored: ScoredPrompt) -> Option<(u32, Vec<PromptLogprob>)> {
        let next = self.num_scored + 1;
        assert!(
            scored.start <= next,
            "what came before position {} is missing",
            scored.start
        );
        let news: Vec<_> = scored
            .logprobs
            .into_iter()
            .skip((next - scored.start) as usize)
            .collect();
        self.num_scored += news.len() as u32;
        (!news.is_empty()).then_some((next, news))
    }

    /// Puts its next `num_tokens` positions into a plan; it runs and has the blocks for them.
    pub fn schedule(&mut self, step: StepId, num_tokens: u32) -> Scheduled {
        let expected = self.len_expected();
        let running = self.running_mut().expect("only running sequences are scheduled");
        let start = running.scheduled;
        let end = start + num_tokens;
        let is_new = running.last_named.replace(step).is_none();
        running.first_named.get_or_insert(step);
        let new_blocks = running.name_new_blocks();
        let adopted = running.is_adopted.then(|| std::mem::take(&mut running.adopted));
        running.scheduled = end;
        let recomputed = end.min(self.computed_max).saturating_sub(start);
        self.recomputed += recomputed;
        let samples = end == expected;
        let is_chunk = end < self.computable_len().min(self.tokens.len() as u32);
        let scored = self.scored_by(start, end);
        self.samples_in_flight += u32::from(samples);
        Scheduled {
            admitted: is_new.then(|| self.describe()),
            adopted: adopted.filter(|_| is_new),
            work: SequenceWork {
                sequence: self.id,
                start,
                num_tokens,
                new_blocks,
                samples,
                scored,
            },
            recomputed,
            is_chunk,
        }
    }

    fn describe(&self) -> AdmittedSequence {
        AdmittedSequence {
            sequence: self.id,
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len(),
            sampling: self.request.sampling.clone(),
            prompt_top_logprobs: self.request.prompt_logprobs.map_or(0, |wanted| wanted.top),
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
        self.request.positions_max()
    }

    /// Whether the answer is complete as it stands.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        if self.wants_scores() {
            return None;
        }
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
            cached_tokens: self.cached.unwrap_or(0),
            completion_tokens: self.answer_len(),
            recomputed_tokens: self.recomputed,
            queued: self.queued.unwrap_or_default(),
        }
    }
}
