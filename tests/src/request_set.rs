//! Sets of requests whose solo answers are checked in. What they ask is fixed; when they ask it is not their matter.
//!
//! Prompts share beginnings, answers are greedy and random by turns, and some end at a stop token.

use kvasir_kv::{PromptLogprobs, Request, RequestId, Sampling, TenantId, TokenId};

use crate::{parity, sim::dice::Dice};

const TENANTS: [&str; 4] = ["", "ada", "bob", "eve"];
const SEED: u64 = 1138;
/// At an end of blocks of 16 and 32.
const ECHO_AT: usize = 32;

#[derive(Clone, Copy, Debug)]
pub struct RequestSet {
    /// In the digest file.
    pub name: &'static str,
    /// One that `parity::open_model` knows.
    pub model: &'static str,
    pub num_requests: usize,
    /// Of the beginnings that requests share, by turns; the first is no shorter than the second.
    pub prefix_lens: [usize; 4],
    pub suffix_len_max: usize,
    /// Shortest and longest answer, unless a stop token comes first.
    pub answer_lens: [u32; 2],
    /// Of four names and several priorities, instead of one.
    pub tenants: bool,
    /// With penalties, biases and the like; some prompts are scored.
    pub knobs: bool,
}

/// For schedules on small models of various heads and weights.
pub const TINY: [RequestSet; 5] = [
    tiny("F32-9/3x32"),
    tiny("F16-6/2x128"),
    tiny("Q8_0-14/2x32"),
    tiny("Q4_1-8/8x32"),
    tiny("Q4_1-8/1x32"),
];

pub const REAL: RequestSet = RequestSet {
    name: "smollm2-135m",
    model: "smollm2-135m",
    num_requests: 16,
    prefix_lens: [80, 80, 48, 0],
    suffix_len_max: 24,
    answer_lens: [12, 60],
    tenants: false,
    knobs: false,
};

/// What is asked with every knob, and prompts that are scored.
pub const KNOBS: RequestSet = RequestSet {
    name: "knobs",
    knobs: true,
    ..tiny("Q8_0-14/2x32")
};

pub const THOUSAND: RequestSet = RequestSet {
    name: "a thousand",
    model: "Q4_1-9/3x32",
    num_requests: 1000,
    prefix_lens: [90, 64, 48, 0],
    suffix_len_max: 30,
    answer_lens: [4, 24],
    tenants: true,
    knobs: false,
};

const fn tiny(model: &'static str) -> RequestSet {
    RequestSet {
        name: model,
        model,
        num_requests: 32,
        prefix_lens: [128, 128, 70, 0],
        suffix_len_max: 40,
        answer_lens: [4, 48],
        tenants: false,
        knobs: false,
    }
}

impl RequestSet {
    pub fn requests(&self, vocab_size: u32) -> Vec<Request> {
        let mut dice = Dice::new(SEED);
        let mut prefixes = self.prefix_lens.map(|len| tokens(&mut dice, len, vocab_size));
        // The second says after other words what the first says at once: the same blocks with another history.
        let [first, second, ..] = &mut prefixes;
        let echo_len = second.len() - ECHO_AT;
        second[ECHO_AT..].copy_from_slice(&first[..echo_len]);
        let request = |index| self.request(index, &prefixes[index % prefixes.len()], &mut dice, vocab_size);
        (0..self.num_requests).map(request).collect()
    }

    fn request(&self, index: usize, prefix: &[TokenId], dice: &mut Dice, vocab_size: u32) -> Request {
        // Some ask what others have asked, and their prompt ends where a block ends.
        let is_bare = !prefix.is_empty() && dice.chance(20);
        let suffix_len = if is_bare {
            0
        } else {
            dice.between(1, self.suffix_len_max as u64) as usize
        };
        let suffix = tokens(dice, suffix_len, vocab_size);
        let [shortest, longest] = self.answer_lens;
        let max_tokens = dice.between_u32(shortest, longest);
        let priority = dice.between(0, 4) as i32 - 2;
        Request {
            id: RequestId(format!("{} {index}", self.name)),
            prompt: [prefix, &suffix].concat(),
            generated: Vec::new(),
            sampling: self.sampling(index, vocab_size),
            max_tokens,
            prompt_logprobs: self.prompt_logprobs(index),
            stop_tokens: stop_tokens(index, vocab_size),
            tenant: self.tenant(index),
            priority: if self.tenants { priority } else { 0 },
        }
    }

    fn sampling(&self, index: usize, vocab_size: u32) -> Sampling {
        match self.knobs {
            true => Sampling {
                seed: index as u64,
                ..parity::knob_sampling(index, vocab_size)
            },
            false => sampling(index),
        }
    }

    /// One in three of those with knobs: the others find what these have computed.
    fn prompt_logprobs(&self, index: usize) -> Option<PromptLogprobs> {
        let top = index as u32 % 4;
        (self.knobs && index.is_multiple_of(3)).then_some(PromptLogprobs { top, received: 0 })
    }

    /// Those of one tenant begin alike, but for a few.
    fn tenant(&self, index: usize) -> TenantId {
        let stranger = usize::from(index.is_multiple_of(9));
        let tenant = if self.tenants { index + stranger } else { 0 };
        TenantId(TENANTS[tenant % TENANTS.len()].to_owned())
    }
}

fn tokens(dice: &mut Dice, len: usize, vocab_size: u32) -> Vec<TokenId> {
    (0..len).map(|_| TokenId(dice.between_u32(3, vocab_size - 1))).collect()
}

/// By turns, so that each beginning is continued in every way.
fn sampling(index: usize) -> Sampling {
    match index / 4 % 3 {
        0 => Sampling {
            top_logprobs: index as u32 % 3,
            ..Sampling::default()
        },
        1 => Sampling {
            temperature: 0.9,
            seed: index as u64,
            ..Sampling::default()
        },
        _ => Sampling {
            temperature: 1.2,
            top_k: 50,
            top_p: 0.95,
            seed: 11,
            choice: index as u32,
            top_logprobs: 1,
            ..Sampling::default()
        },
    }
}

/// For one in three, so many that one of them soon comes up.
fn stop_tokens(index: usize, vocab_size: u32) -> Vec<TokenId> {
    let any = (0..vocab_size).map(TokenId);
    if index % 3 == 1 {
        any.filter(|token| token.0 % 12 == 5).collect()
    } else {
        Vec::new()
    }
}
