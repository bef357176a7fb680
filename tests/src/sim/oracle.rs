//! What the right answer is: a hash over the history, computed from the prompt alone.
//!
//! Ranks compute the same hash, but out of cells. Tokens are drawn from a small vocabulary so that stop tokens happen.

use kvasir_kv::{Request, TokenId};

pub(super) const VOCAB: u64 = 61;

/// What the cell of a position holds, given the cell of the position before.
pub(super) fn cell(before: u64, position: u32, token: TokenId) -> u64 {
    mix(mix(before, u64::from(position)), u64::from(token.0))
}

/// Folds one more cell into what attention has read.
pub(super) fn read(digest: u64, cell: u64) -> u64 {
    mix(digest, cell)
}

/// The token that follows from what attention has read.
pub(super) fn sample(digest: u64, seed: u64, answer_index: u32) -> TokenId {
    TokenId((mix(mix(digest, seed), u64::from(answer_index)) % VOCAB) as u32)
}

/// The logprob of a token of the prompt, given what attention has read before it.
pub(super) fn score(digest: u64, token: TokenId) -> f32 {
    -((mix(digest, u64::from(token.0)) % 1_000_000) as f32)
}

/// The logprobs of a prompt's tokens from position 1 on.
pub(super) fn prompt_scores(prompt: &[TokenId]) -> Vec<f32> {
    let mut history = History::default();
    let pairs = prompt.windows(2);
    let score_next = |pair: &[TokenId]| {
        history.push(pair[0]);
        score(history.digest, pair[1])
    };
    pairs.map(score_next).collect()
}

/// The whole answer to a request: up to a stop token or `max_tokens`.
pub(super) fn answer(request: &Request) -> Vec<TokenId> {
    let mut history = History::default();
    for token in &request.prompt {
        history.push(*token);
    }
    let mut answer = Vec::new();
    while answer.len() < request.max_tokens as usize {
        let token = sample(history.digest, request.sampling.seed, answer.len() as u32);
        answer.push(token);
        if request.stop_tokens.contains(&token) {
            break;
        }
        history.push(token);
    }
    answer
}

#[derive(Default)]
struct History {
    len: u32,
    last: u64,
    digest: u64,
}

impl History {
    fn push(&mut self, token: TokenId) {
        self.last = cell(self.last, self.len, token);
        self.digest = read(self.digest, self.last);
        self.len += 1;
    }
}

fn mix(state: u64, value: u64) -> u64 {
    let mut z = state.rotate_left(23) ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
