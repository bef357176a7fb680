//! What a client asked, immutable; validated once at the edge, never again.

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
    pub seed: u64,
    /// Which of several answers to one prompt this is; part of the random key.
    pub choice: u32,
    /// Report this many likeliest tokens at each position, besides the chosen one; at most [`TOP_LOGPROBS_MAX`].
    pub top_logprobs: u32,
}

pub const TOP_LOGPROBS_MAX: u32 = 20;

impl Sampling {
    /// True if the likeliest token is taken, whatever the random numbers.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            choice: 0,
            top_logprobs: 0,
        }
    }
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
    /// Tokens of the answer in all, `generated` included; at least 1.
    pub max_tokens: u32,
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
