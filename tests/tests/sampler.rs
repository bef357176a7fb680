//! The sampler and the scorer against plain second opinions: random logits, random knobs, any number of ranks.

#![allow(clippy::unwrap_used)]

use kvasir_kv::{PromptLogprob, SampledToken, Sampling, SequenceId, TokenId};
use kvasir_tests::whole_logits::collectives;
use kvasir_worker::{
    arith::UnitSummary,
    collective::Collective,
    sampler::{LogitsShare, Picked, SampleRow, Sampler, UnitRows},
    scorer::{ScoreShare, score},
};
use proptest::prelude::*;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

/// Rows of a vocab unit; the last unit may be shorter.
const UNIT: usize = 8;

/// What a rank has of one row.
struct Share {
    logits: Vec<f32>,
    summaries: Vec<UnitSummary>,
    units: Vec<UnitRows>,
}

impl Share {
    fn as_ref(&self) -> LogitsShare<'_> {
        LogitsShare {
            logits: &self.logits,
            summaries: &self.summaries,
            units: &self.units,
        }
    }
}

/// Whole units, dealt out as evenly as can be; some ranks may have none.
fn deal(logits: &[f32], ranks: usize) -> Vec<Share> {
    let units: Vec<&[f32]> = logits.chunks(UNIT).collect();
    let share = |rank: usize| {
        let mine = units.len() * rank / ranks..units.len() * (rank + 1) / ranks;
        let units = &units[mine.clone()];
        Share {
            logits: units.concat(),
            summaries: units.iter().map(|unit| summarize(unit)).collect(),
            units: mine
                .zip(units)
                .map(|(index, unit)| UnitRows {
                    first: (index * UNIT) as u32,
                    rows: unit.len() as u32,
                })
                .collect(),
        }
    };
    (0..ranks).map(share).collect()
}

fn summarize(unit: &[f32]) -> UnitSummary {
    let max = unit.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    UnitSummary {
        max,
        argmax: unit.iter().position(|logit| *logit == max).unwrap_or(0),
        sum_exp: unit.iter().map(|logit| (logit - max).exp()).sum(),
        finite: unit.iter().all(|logit| logit.is_finite()),
    }
}

/// What every rank comes to.
fn on_all_ranks<T: Send>(shares: &[Share], body: impl Fn(&Share, &mut dyn Collective) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = shares
            .iter()
            .zip(collectives(shares.len()))
            .map(|(share, connect)| scope.spawn(move || body(share, connect().as_mut())))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A row with the history that penalties go by.
#[derive(Clone, Debug)]
struct Row {
    logits: Vec<f32>,
    sampling: Sampling,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Row {
    fn count(tokens: &[u32], token: u32) -> u32 {
        tokens.iter().filter(|other| **other == token).count() as u32
    }

    /// By token, as the books keep it.
    fn seen(&self) -> Vec<(TokenId, u32)> {
        let is_seen = |token: &u32| self.prompt.contains(token) || self.answer.contains(token);
        let tokens = (0..self.logits.len() as u32).filter(is_seen);
        tokens
            .map(|token| (TokenId(token), Self::count(&self.answer, token)))
            .collect()
    }

    fn sample(&self, ranks: usize) -> Vec<SampledToken> {
        let (shares, seen) = (deal(&self.logits, ranks), self.seen());
        let row = SampleRow {
            sequence: SequenceId(1),
            sampling: &self.sampling,
            seen: &seen,
            index: self.answer.len() as u32,
            allowed: None,
            poisoned: false,
        };
        let picks = on_all_ranks(&shares, |share, collective| {
            let mut sampler = Sampler::default();
            sampler
                .sample(std::slice::from_ref(&row), |_| share.as_ref(), collective)
                .unwrap()
        });
        let token = |mut picked: Vec<Picked>| match picked.remove(0) {
            Picked::Token(token) => token,
            Picked::Poisoned => panic!("all logits are finite"),
        };
        picks.into_iter().map(token).collect()
    }

    /// The definition, token by token.
    fn changed(&self, token: u32) -> f64 {
        let sampling = &self.sampling;
        let mut logit = f64::from(self.logits[token as usize]);
        for (biased, bias) in &sampling.logit_bias {
            if biased.0 == token {
                logit += f64::from(*bias);
            }
        }
        if self.prompt.contains(&token) || self.answer.contains(&token) {
            let repetition = f64::from(sampling.repetition_penalty);
            logit = if logit > 0.0 {
                logit / repetition
            } else {
                logit * repetition
            };
        }
        let count = Self::count(&self.answer, token);
        if count > 0 {
            logit -= f64::from(sampling.frequency_penalty) * f64::from(count);
            logit -= f64::from(sampling.presence_penalty);
        }
        logit
    }

    fn expected(&self) -> u32 {
        let sampling = &self.sampling;
        let mut left: Vec<(u32, f64)> = (0..self.logits.len() as u32)
            .map(|token| (token, self.changed(token)))
            .collect();
        let mut likeliest = left.clone();
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let best = likeliest[0];
        if sampling.temperature == 0.0 || sampling.top_k == 1 {
            return best.0;
        }
        let weight = |logit: f64| libm::exp((logit - best.1) / f64::from(sampling.temperature));
        let is_likely = |candidate: &(u32, f64)| weight(candidate.1) >= f64::from(sampling.min_p);
        if sampling.top_k > 0 || sampling.top_p < 1.0 {
            left = likeliest;
        }
        left.retain(is_likely);
        if sampling.top_k > 0 {
            left.truncate(sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            let total: f64 = left.iter().map(|candidate| weight(candidate.1)).sum();
            let mut sum = 0.0;
            let mut kept = 0;
            for candidate in &left {
                if kept > 0 && sum >= f64::from(sampling.top_p) * total {
                    break;
                }
                sum += weight(candidate.1);
                kept += 1;
            }
            left.truncate(kept);
        }
        let total: f64 = left.iter().map(|candidate| weight(candidate.1)).sum();
        let mut rest = self.uniform() * total;
        for (token, logit) in &left {
            rest -= weight(*logit);
            if rest < 0.0 {
                return *token;
            }
        }
        left[left.len() - 1].0
    }

    fn uniform(&self) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(self.sampling.seed);
        random.set_stream(u64::from(self.sampling.choice));
        for _ in 0..self.answer.len() {
            random.next_u64();
        }
        (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn log_softmax(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token] - max) - sum.ln()
}

/// Best first, ties by lower token.
fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    tokens.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    tokens
}

/// Some of them the same, so that ties happen.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        4 => -9.0f32..9.0,
        1 => prop::sample::select(vec![0.0f32, 1.0, 7.5, -2.0]),
    ];
    prop::collection::vec(logit, 1..60)
}

fn any_sampling(vocab: u32) -> impl Strategy<Value = Sampling> {
    let knob = |off: f32, range: std::ops::Range<f32>| prop_oneof![1 => Just(off), 1 => range];
    let filters = (
        prop_oneof![Just(0.0f32), 0.1f32..3.0],
        prop_oneof![Just(0u32), Just(1), 2u32..20],
        knob(1.0, 0.05..1.0),
        knob(0.0, 0.001..1.0),
    );
    let penalties = (knob(1.0, 0.2..3.0), knob(0.0, -2.0..2.0), knob(0.0, -2.0..2.0));
    let biases = prop::collection::btree_map(0..vocab, -100.0f32..100.0, 0..4);
    (filters, penalties, biases, any::<u64>(), 0u32..4, 0u32..6).prop_map(
        |((temperature, top_k, top_p, min_p), penalties, biases, seed, choice, top_logprobs)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            logit_bias: biases.into_iter().map(|(token, bias)| (TokenId(token), bias)).collect(),
            seed,
            choice,
            constraint: None,
            top_logprobs,
        },
    )
}

fn any_row() -> impl Strategy<Value = Row> {
    any_logits().prop_flat_map(|logits| {
        let vocab = logits.len() as u32;
        let history = || prop::collection::vec(0..vocab, 0..12);
        (Just(logits), any_sampling(vocab), history(), history()).prop_map(|(logits, sampling, prompt, answer)| Row {
            logits,
            sampling,
            prompt,
            answer,
        })
    })
}

fn bits(token: &SampledToken) -> (u32, u32, Vec<(u32, u32)>) {
    let top = token.top_logprobs.iter();
    let top = top.map(|(token, logprob)| (token.0, logprob.to_bits())).collect();
    (token.token.0, token.logprob.to_bits(), top)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_rank_picks_what_the_definition_picks(row in any_row()) {
        let expected = row.expected();
        let alone = row.sample(1).remove(0);
        prop_assert_eq!(alone.token.0, expected);
        // Logprobs are those of the model, whatever was done to its logits.
        let logprob = log_softmax(&row.logits, expected as usize);
        prop_assert!((f64::from(alone.logprob) - logprob).abs() < 1e-4, "{} {logprob}", alone.logprob);
        let top: Vec<u32> = alone.top_logprobs.iter().map(|(token, _)| token.0).collect();
        let wanted = (row.sampling.top_logprobs as usize).min(row.logits.len());
        prop_assert_eq!(&top[..], &ranked(&row.logits)[..wanted]);
        for ranks in 2..=5 {
            for token in row.sample(ranks) {
                prop_assert_eq!(bits(&token), bits(&alone), "{} ranks", ranks);
            }
        }
    }

    #[test]
    fn every_rank_scores_as_the_definition_does(
        rows in prop::collection::vec((prop::collection::vec(-9.0f32..9.0, 37), 0u32..37), 1..300),
        top in 0u32..7,
        broken in prop::option::of(0usize..300),
    ) {
        let mut rows = rows;
        let broken = broken.filter(|broken| *broken < rows.len());
        if let Some(broken) = broken {
            rows[broken].0[20] = f32::NAN;
        }
        let alone = score_rows(&rows, top, 1).remove(0);
        for (index, ((logits, target), scored)) in rows.iter().zip(&alone).enumerate() {
            let Some(scored) = scored else {
                prop_assert_eq!(Some(index), broken);
                continue;
            };
            prop_assert_ne!(Some(index), broken);
            let logprob = log_softmax(logits, *target as usize);
            prop_assert!((f64::from(scored.logprob) - logprob).abs() < 1e-4);
            let found: Vec<u32> = scored.top_logprobs.iter().map(|(token, _)| token.0).collect();
            prop_assert_eq!(&found[..], &ranked(logits)[..top as usize]);
        }
        for ranks in 2..=5 {
            for scores in score_rows(&rows, top, ranks) {
                prop_assert!(scores == alone, "{} ranks", ranks);
            }
        }
    }
}

fn score_rows(rows: &[(Vec<f32>, u32)], top: u32, ranks: usize) -> Vec<Vec<Option<PromptLogprob>>> {
    let shares: Vec<Vec<Share>> = rows.iter().map(|(logits, _)| deal(logits, ranks)).collect();
    let of_rank = |rank: usize| {
        let targets = rows.iter().map(|(_, target)| TokenId(*target));
        shares
            .iter()
            .zip(targets)
            .map(|(shares, target)| ScoreShare::new(shares[rank].as_ref(), target, top))
            .collect::<Vec<_>>()
    };
    let of_ranks: Vec<_> = (0..ranks).map(of_rank).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = of_ranks
            .iter()
            .zip(collectives(ranks))
            .map(|(rows, connect)| scope.spawn(move || score(rows, connect().as_mut()).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
