//! What `kvasir bench speed` tries: the requests behind each row of its table, and whether the model can hold them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde::Serialize;

/// Prompt of a stream among several.
const SHORT_PROMPT_TOKENS: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialKind {
    /// How long a prompt takes until its first token.
    Prefill,
    /// How fast tokens come after the first.
    Decode,
}

impl TrialKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Requests that are sent together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trial {
    pub kind: TrialKind,
    pub prompt_tokens: u32,
    pub answer_tokens: u32,
    /// Tokens of context that decoding begins after, as the row names it.
    pub depth: u32,
    pub streams: u32,
}

/// The sizes that the command line names.
#[derive(Clone, Debug)]
pub struct Sizes {
    pub prefill: u32,
    pub decode: u32,
    pub depths: Vec<u32>,
    pub streams: Vec<u32>,
}

impl Sizes {
    /// In the order of the table; nothing twice. Errors if one of them is longer than the context.
    pub fn trials(&self, context_len: u32) -> Result<Vec<Trial>> {
        let prefill = Trial::prefill(self.prefill);
        prefill.check("--prefill", self.prefill, context_len)?;
        let mut trials = vec![prefill];
        for depth in without_repetition(&self.depths) {
            let trial = Trial::decode_at(depth, self.decode);
            let (option, value) = if depth > 0 {
                ("--depths", depth)
            } else {
                ("--decode", self.decode)
            };
            trial.check(option, value, context_len)?;
            trials.push(trial);
        }
        for streams in without_repetition(&self.streams) {
            if streams == 1 && self.depths.contains(&0) {
                continue;
            }
            let trial = Trial::decode_together(streams, self.decode);
            trial.check("--decode", self.decode, context_len)?;
            trials.push(trial);
        }
        Ok(trials)
    }
}

impl Trial {
    fn prefill(tokens: u32) -> Self {
        Self {
            kind: TrialKind::Prefill,
            prompt_tokens: tokens,
            answer_tokens: 1,
            depth: 0,
            streams: 1,
        }
    }

    /// Deeper ones take longer, and half as many tokens tell as much.
    fn decode_at(depth: u32, decode: u32) -> Self {
        Self {
            kind: TrialKind::Decode,
            prompt_tokens: depth.max(1),
            answer_tokens: if depth > 0 { decode / 2 } else { decode },
            depth,
            streams: 1,
        }
    }

    pub fn decode_together(streams: u32, decode: u32) -> Self {
        Self {
            kind: TrialKind::Decode,
            prompt_tokens: SHORT_PROMPT_TOKENS,
            answer_tokens: decode,
            depth: 0,
            streams,
        }
    }

    /// The tokens that the row is about.
    pub fn tokens(&self) -> u32 {
        match self.kind {
            TrialKind::Prefill => self.prompt_tokens,
            TrialKind::Decode => self.answer_tokens,
        }
    }

    fn check(&self, option: &str, value: u32, context_len: u32) -> Result<()> {
        let needed = u64::from(self.prompt_tokens) + u64::from(self.answer_tokens);
        let others = needed - u64::from(value);
        ensure!(
            needed <= u64::from(context_len),
            "{option} {value}: {} prompt tokens and {} answer tokens exceed the model's context of {context_len}; at most \
             {} would fit",
            self.prompt_tokens,
            self.answer_tokens,
            u64::from(context_len).saturating_sub(others)
        );
        Ok(())
    }
}

/// In the order in which they came first.
pub fn without_repetition(values: &[u32]) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    values.iter().copied().filter(|value| seen.insert(*value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(depths: &[u32], streams: &[u32]) -> Sizes {
        Sizes {
            prefill: 512,
            decode: 128,
            depths: depths.to_vec(),
            streams: streams.to_vec(),
        }
    }

    fn rows(sizes: &Sizes) -> Vec<(u32, u32, u32, u32)> {
        let trials = sizes.trials(8192).unwrap();
        trials
            .iter()
            .map(|trial| (trial.prompt_tokens, trial.answer_tokens, trial.depth, trial.streams))
            .collect()
    }

    #[test]
    fn each_depth_and_number_of_streams_is_a_row_once() {
        assert_eq!(
            rows(&sizes(&[0, 4096, 4096], &[1, 8, 8])),
            [(512, 1, 0, 1), (1, 128, 0, 1), (4096, 64, 4096, 1), (16, 128, 0, 8)]
        );
        assert_eq!(
            rows(&sizes(&[64], &[1])),
            [(512, 1, 0, 1), (64, 64, 64, 1), (16, 128, 0, 1)]
        );
    }

    #[test]
    fn what_exceeds_the_context_is_refused_with_the_numbers() {
        let refused = |sizes: Sizes, context_len| sizes.trials(context_len).unwrap_err().to_string();
        assert_eq!(
            refused(sizes(&[0, 8150], &[1]), 8192),
            "--depths 8150: 8150 prompt tokens and 64 answer tokens exceed the model's context of 8192; at most 8128 \
             would fit"
        );
        let prefill = refused(sizes(&[0], &[1]), 512);
        assert!(prefill.starts_with("--prefill 512: ") && prefill.ends_with("at most 511 would fit"));
        let decode = Sizes {
            prefill: 4,
            ..sizes(&[0], &[1, 8])
        };
        assert!(refused(decode.clone(), 128).ends_with("at most 127 would fit"));
        assert!(refused(decode, 143).ends_with("at most 127 would fit"));
        assert!(sizes(&[8128], &[1]).trials(8192).is_ok());
    }
}
