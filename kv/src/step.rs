//! One step as data: what to do, and what came of it.
//!
//! A `StepPlan` is a delta to what the ranks hold. The first plan of an epoch is whole: it admits every sequence anew.
//! Plans name tokens by sequence, never by value, except at admission: the ranks fill in what they sampled themselves,
//! so that the next step is on the wire before the output of this one is back.

use std::ops::Range;

use crate::{AdoptedBlock, Epoch, Sampling, SequenceId, StepId, TaggedBlock, TokenId};

#[derive(Clone, PartialEq, Debug)]
pub struct StepPlan {
    pub epoch: Epoch,
    pub step: StepId,
    /// Sequences that the ranks do not hold yet.
    pub admitted: Vec<AdmittedSequence>,
    /// What to compute, one entry per sequence, in the order of the batch's rows.
    pub work: Vec<SequenceWork>,
    /// Sequences to forget before this step's work: finished, cancelled, preempted or gone to another group.
    pub retired: Vec<SequenceId>,
    /// Blocks of admitted sequences whose cells have come by a transfer.
    pub adopted: Vec<AdoptedBlock>,
}

impl StepPlan {
    pub fn num_tokens(&self) -> u32 {
        self.work.iter().map(|work| work.num_tokens).sum()
    }
}

/// All that a rank needs to know of a sequence, sent once.
#[derive(Clone, PartialEq, Debug)]
pub struct AdmittedSequence {
    pub sequence: SequenceId,
    /// Prompt and what has been generated so far.
    pub tokens: Vec<TokenId>,
    /// How many of `tokens` are the prompt: the sampler counts answer tokens from here.
    pub prompt_len: u32,
    pub sampling: Sampling,
    /// Likeliest tokens to report at each scored position of the prompt.
    pub prompt_top_logprobs: u32,
}

/// Compute tokens `[start, start + num_tokens)` of a sequence. When that reaches the sequence's last known token, its
/// last row is sampled and the result becomes the next token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SequenceWork {
    pub sequence: SequenceId,
    /// First position computed in this step; also the number of positions whose K and V are in the cells.
    pub start: u32,
    /// At least 1.
    pub num_tokens: u32,
    /// Blocks appended to the block table before this step.
    pub new_blocks: Vec<TaggedBlock>,
    /// True if the last row is sampled.
    pub samples: bool,
    /// Positions of the prompt whose tokens' logprobs the rows before them tell; each is above `start` and at most
    /// `start + num_tokens`. Empty where nobody asked.
    pub scored: Range<u32>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct StepOutput {
    pub epoch: Epoch,
    pub step: StepId,
    /// One per work entry that samples, in the plan's order.
    pub sampled: Vec<SampledToken>,
    /// One per work entry that scores, in the plan's order.
    pub scored: Vec<ScoredPrompt>,
    /// Sequences with a partial sum out of range; they end with an error.
    pub poisoned: Vec<SequenceId>,
    pub times: StepTimes,
}

#[derive(Clone, PartialEq, Debug)]
pub struct SampledToken {
    pub sequence: SequenceId,
    pub token: TokenId,
    /// Natural logarithm of the probability before temperature.
    pub logprob: f32,
    /// The likeliest tokens, best first, ties by lower id; as many as the sampling asks for.
    pub top_logprobs: Vec<(TokenId, f32)>,
}

/// Logprobs of some of a prompt's tokens, one after the other.
#[derive(Clone, PartialEq, Debug)]
pub struct ScoredPrompt {
    pub sequence: SequenceId,
    /// Position of the first.
    pub start: u32,
    pub logprobs: Vec<PromptLogprob>,
}

/// How likely a token of the prompt was, given those before it.
#[derive(Clone, PartialEq, Debug)]
pub struct PromptLogprob {
    pub logprob: f32,
    /// The likeliest tokens, best first, ties by lower id.
    pub top_logprobs: Vec<(TokenId, f32)>,
}

/// Where a step's time went on a rank, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StepTimes {
    pub compute_us: u32,
    pub reduce_us: u32,
    pub total_us: u32,
}
