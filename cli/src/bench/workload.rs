//! What a benchmark asks: random prompts, each a pure function of the seed and the request's index.
//!
//! No answer ends before its last token, and all are greedy: the work does not depend on what the model says.

use std::time::Duration;

use kvasir_proto::v1::{self, generate_request::Prompt};

use super::{dice::Dice, token_range::TokenRange};

/// The ids below are special tokens in most vocabularies.
const FIRST_PLAIN_ID: u32 = 3;
/// Streams of chance for what no request has alone.
const PREFIX_STREAM: u32 = u32::MAX;
const ARRIVALS_STREAM: u32 = u32::MAX - 1;

#[derive(Clone, Debug)]
pub struct Workload {
    pub seed: u64,
    /// Workloads of the same seed and different places have nothing in common.
    pub place: u32,
    pub prompt_tokens: TokenRange,
    /// So many first tokens are the same in all prompts.
    pub prefix_tokens: u32,
    pub max_tokens: TokenRange,
    /// Above `FIRST_PLAIN_ID`.
    pub vocab_size: u32,
    pub tenant: String,
    pub priority: i32,
    pub timeout: Option<Duration>,
}

impl Workload {
    pub const VOCAB_SIZE_MIN: u32 = FIRST_PLAIN_ID + 1;
    /// Indices from here on are no requests.
    pub const REQUESTS_MAX: u32 = ARRIVALS_STREAM;

    pub fn request(&self, index: u32) -> v1::GenerateRequest {
        let mut dice = self.dice(index);
        let prompt_len = self.prompt_tokens.draw(&mut dice);
        let max_tokens = self.max_tokens.draw(&mut dice);
        v1::GenerateRequest {
            prompt: Some(Prompt::TokenIds(v1::TokenIds {
                ids: self.prompt(prompt_len, dice),
            })),
            sampling: Some(v1::SamplingParams {
                temperature: Some(0.0),
                ..Default::default()
            }),
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            timeout_ms: self.timeout.map(|timeout| timeout.as_millis() as u64),
            tenant: self.tenant.clone(),
            priority: self.priority,
            ..Default::default()
        }
    }

    /// For the times between requests.
    pub fn arrivals_dice(&self) -> Dice {
        self.dice(ARRIVALS_STREAM)
    }

    /// A prompt shorter than the prefix is the beginning of it.
    fn prompt(&self, len: u32, mut dice: Dice) -> Vec<u32> {
        let prefix_len = self.prefix_tokens.min(len);
        let mut prefix_dice = self.dice(PREFIX_STREAM);
        let prefix = (0..prefix_len).map(|_| self.token(&mut prefix_dice));
        let own = (prefix_len..len).map(|_| self.token(&mut dice));
        prefix.chain(own).collect()
    }

    fn token(&self, dice: &mut Dice) -> u32 {
        dice.between(FIRST_PLAIN_ID, self.vocab_size - 1)
    }

    fn dice(&self, stream: u32) -> Dice {
        Dice::new(self.seed, u64::from(self.place) << 32 | u64::from(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(seed: u64, place: u32) -> Workload {
        Workload {
            seed,
            place,
            prompt_tokens: "10..20".parse().unwrap(),
            prefix_tokens: 6,
            max_tokens: "1..4".parse().unwrap(),
            vocab_size: 49_000,
            tenant: String::new(),
            priority: 0,
            timeout: None,
        }
    }

    fn ids(workload: &Workload, index: u32) -> Vec<u32> {
        match workload.request(index).prompt {
            Some(Prompt::TokenIds(ids)) => ids.ids,
            _ => panic!("prompts are token ids"),
        }
    }

    #[test]
    fn the_seed_the_place_and_the_index_make_the_request() {
        let one = workload(1, 0);
        assert_eq!(one.request(5), workload(1, 0).request(5));
        assert_ne!(ids(&one, 5), ids(&workload(2, 0), 5));
        assert_ne!(ids(&one, 5), ids(&workload(1, 1), 5));
        assert_ne!(ids(&one, 5), ids(&one, 6));
    }

    #[test]
    fn prompts_share_the_prefix_and_no_more() {
        let workload = workload(1, 0);
        let (first, second) = (ids(&workload, 0), ids(&workload, 1));
        assert_eq!(first[..6], second[..6]);
        assert_ne!(first[6..10], second[6..10]);
    }

    #[test]
    fn tokens_and_lengths_stay_within_their_bounds() {
        let workload = Workload {
            vocab_size: Workload::VOCAB_SIZE_MIN + 1,
            ..workload(1, 0)
        };
        for index in 0..50 {
            let ids = ids(&workload, index);
            assert!((10..=20).contains(&ids.len()));
            assert!(ids.iter().all(|id| [3, 4].contains(id)));
            assert!((1..=4).contains(&workload.request(index).max_tokens.unwrap()));
        }
    }
}
