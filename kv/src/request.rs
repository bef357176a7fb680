//! What a client asked, immutable; validated once at the edge, never again.

use std::sync::Arc;

use crate::{RequestId, TenantId, TokenId};

/// How the next token is chosen. All values are resolved: a resumed request uses the same ones.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampling {
    /// 0 means greedy. Finite, 0 up to 100.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; above 0, up to 1.
    pub top_p: f32,
    /// Keep the tokens at least so likely as this part of the likeliest; 0 keeps all, up to 1.
    pub min_p: f32,
    /// Divides the positive logits of tokens that are in prompt or answer, multiplies the negative ones; 1 changes nothing.
    /// Finite, above 0.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that are in the answer; -2 to 2.
    pub presence_penalty: f32,
    /// Taken from a token's logit as often as it is in the answer; -2 to 2.
    pub frequency_penalty: f32,
    /// Added to these tokens' logits, before the penalties; -100 to 100. By token, each once, at most
    /// [`LOGIT_BIASES_MAX`].
    pub logit_bias: Vec<(TokenId, f32)>,
    pub seed: u64,
    /// Which of several answers to one prompt this is; part of the random key.
    pub choice: u32,
    /// Report this many likeliest tokens at each position, besides the chosen one; at most [`TOP_LOGPROBS_MAX`].
    pub top_logprobs: u32,
    /// What the text of the answer must be.
    pub constraint: Option<Constraint>,
}

/// What an answer must be, as text: whoever picks tokens compiles it, and finds where it stands from the answer's tokens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Constraint {
    /// JSON that this schema describes.
    JsonSchema(Arc<str>),
    /// Text that this expression matches from end to end.
    Regex(Arc<str>),
    /// Text of this grammar.
    Lark(Arc<str>),
}

impl Constraint {
    pub fn source(&self) -> &str {
        match self {
            Self::JsonSchema(source) | Self::Regex(source) | Self::Lark(source) => source,
        }
    }
}

pub const TOP_LOGPROBS_MAX: u32 = 20;
pub const LOGIT_BIASES_MAX: usize = 1024;

impl Sampling {
    /// True if the likeliest token is taken, whatever the random numbers.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// True if what is in prompt and answer changes the logits.
    pub fn is_penalized(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// True if a pick takes every logit: the units' summaries alone do not tell it.
    pub fn picks_from_logits(&self) -> bool {
        !self.is_greedy() || self.is_penalized() || !self.logit_bias.is_empty() || self.constraint.is_some()
    }

    /// True if a rank's own logits are looked at, be it only for the likeliest few.
    pub fn needs_logits(&self) -> bool {
        self.picks_from_logits() || self.top_logprobs > 0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
            top_logprobs: 0,
            constraint: None,
        }
    }
}

/// That the logprobs of the prompt's tokens are wanted, each given those before it, from the second token on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PromptLogprobs {
    /// Report this many likeliest tokens at each position, besides the prompt's own; at most [`TOP_LOGPROBS_MAX`].
    pub top: u32,
    /// Positions whose logprobs the client already has (a resumed stream); less than the prompt's length.
    pub received: u32,
}

/// A validated request.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    pub id: RequestId,
    /// Not empty.
    pub prompt: Vec<TokenId>,
    /// Tokens of the answer that the client already has (a resumed stream). They are not streamed again.
    pub generated: Vec<TokenId>,
    pub sampling: Sampling,
    /// Tokens of the answer in all, `generated` included; at least 1, or 0 where only the prompt's logprobs are wanted.
    pub max_tokens: u32,
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens that end the answer; empty when the end is ignored.
    pub stop_tokens: Vec<TokenId>,
    pub tenant: TenantId,
    /// Lower is served first, as in vLLM; 0 is usual.
    pub priority: i32,
}

impl Request {
    /// Most tokens that the sequence can ever hold.
    pub fn total_len_max(&self) -> u32 {
        self.prompt.len() as u32 + self.max_tokens
    }

    /// The same request for the answer that comes so many choices after its own. The first reports the prompt's logprobs
    /// for all.
    pub fn nth_choice(&self, nth: u32) -> Self {
        let mut request = self.clone();
        request.sampling.choice += nth;
        request.prompt_logprobs.take_if(|_| nth > 0);
        request
    }

    /// Most positions that are ever computed: nobody samples after the last token.
    pub fn positions_max(&self) -> u32 {
        self.total_len_max() - 1
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
    /// The client went away or asked for it.
    Cancelled,
    /// A sum left the range of the exact reduce: this sequence alone ends.
    Numerical,
    /// Its deadline passed.
    Deadline,
}

impl FinishReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Numerical => "numerical",
            Self::Deadline => "deadline",
        }
    }
}
