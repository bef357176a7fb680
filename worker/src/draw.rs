//! One token from a row's whole logits, by the knobs of a request: the same on every rank.
//!
//! In vLLM's order: logit bias, repetition penalty over prompt and answer, frequency and presence penalties over the
//! answer, what a constraint allows, then either the likeliest token, or temperature, min_p, top_k, top_p and a draw. All in f64, from the f32
//! logits that every rank has alike; random numbers are a function of (seed, choice, index in the answer).

use kvasir_kv::{Sampling, TokenId};
use kvasir_model::TokenMask;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::shares::keep_likeliest;

/// A logit, as the knobs have changed it, and its token.
pub(crate) type Candidate = (f64, u32);

/// Picks answer token `index`.
///
/// logits: `[vocab_size]`. `allowed` has at least one token. `seen` names each token of prompt and answer, with how often it is in the answer.
pub(crate) fn pick(
    sampling: &Sampling,
    seen: &[(TokenId, u32)],
    index: u32,
    allowed: Option<&TokenMask>,
    logits: &[f32],
    candidates: &mut Vec<Candidate>,
) -> u32 {
    candidates.clear();
    candidates.extend(logits.iter().map(|logit| f64::from(*logit)).zip(0..));
    add_biases(sampling, candidates);
    penalize(sampling, seen, candidates);
    if let Some(allowed) = allowed {
        candidates.retain(|&(_, token)| allowed.allows(TokenId(token)));
    }
    if sampling.is_greedy() {
        return likeliest(candidates);
    }
    draw(sampling, index, candidates)
}

/// candidates: in token order, as for `penalize`.
fn add_biases(sampling: &Sampling, candidates: &mut [Candidate]) {
    for (token, bias) in &sampling.logit_bias {
        if let Some((logit, _)) = candidates.get_mut(token.0 as usize) {
            *logit += f64::from(*bias);
        }
    }
}

fn penalize(sampling: &Sampling, seen: &[(TokenId, u32)], candidates: &mut [Candidate]) {
    if !sampling.is_penalized() {
        return;
    }
    let repetition = f64::from(sampling.repetition_penalty);
    for (token, count) in seen {
        let Some((logit, _)) = candidates.get_mut(token.0 as usize) else {
            continue;
        };
        *logit = if *logit > 0.0 {
            *logit / repetition
        } else {
            *logit * repetition
        };
        *logit -= f64::from(sampling.frequency_penalty) * f64::from(*count);
        if *count > 0 {
            *logit -= f64::from(sampling.presence_penalty);
        }
    }
}

/// Ties go to the lowest token; zeros of both signs are equal.
fn likeliest(candidates: &[Candidate]) -> u32 {
    let first = (f64::NEG_INFINITY, 0);
    let best = |best: Candidate, next: &Candidate| if next.0 > best.0 { *next } else { best };
    candidates.iter().fold(first, best).1
}

/// candidates: in token order. What a knob drops is gone for the next.
fn draw(sampling: &Sampling, index: u32, candidates: &mut Vec<Candidate>) -> u32 {
    let max = candidates
        .iter()
        .map(|(logit, _)| *logit)
        .fold(f64::NEG_INFINITY, f64::max);
    let weight = |logit: f64| libm::exp((logit - max) / f64::from(sampling.temperature));
    if sampling.min_p > 0.0 {
        // The likeliest weighs 1.
        candidates.retain(|(logit, _)| weight(*logit) >= f64::from(sampling.min_p));
    }
    if sampling.top_k > 0 {
        keep_likeliest(candidates, sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        keep_likeliest(candidates, usize::MAX);
        let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit)).sum();
        let (mut sum, mut kept) = (0.0, 0);
        while kept < candidates.len() && (kept == 0 || sum < f64::from(sampling.top_p) * total) {
            sum += weight(candidates[kept].0);
            kept += 1;
        }
        candidates.truncate(kept);
    }
    let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit)).sum();
    let mut left = uniform(sampling, index) * total;
    for &(logit, token) in candidates.iter() {
        left -= weight(logit);
        if left < 0.0 {
            return token;
        }
    }
    // Rounding may leave a rest: the last token takes it.
    candidates.last().map_or(0, |&(_, token)| token)
}

/// A number in [0, 1) that depends on (seed, choice, index) alone.
fn uniform(sampling: &Sampling, index: u32) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
    random.set_stream(u64::from(sampling.choice));
    random.set_word_pos(2 * u128::from(index));
    (random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greedy(sampling: Sampling, seen: &[(u32, u32)], logits: &[f32]) -> u32 {
        let seen: Vec<_> = seen.iter().map(|(token, count)| (TokenId(*token), *count)).collect();
        pick(&sampling, &seen, 0, None, logits, &mut Vec::new())
    }

    /// Tokens that any of many draws picks.
    fn drawn(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
        let draws = (0..400).map(|index| pick(sampling, &[], index, None, logits, &mut Vec::new()));
        let mut drawn: Vec<u32> = draws.collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    fn random() -> Sampling {
        Sampling {
            temperature: 1.0,
            ..Sampling::default()
        }
    }

    #[test]
    fn a_repetition_makes_a_token_less_likely_whatever_its_sign() {
        let penalized = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        // 3 becomes 1.5; -1 becomes -2. Tokens of the prompt count as those of the answer do.
        assert_eq!(greedy(penalized.clone(), &[(0, 0)], &[3.0, 2.0]), 1);
        assert_eq!(greedy(penalized.clone(), &[(0, 0)], &[3.0, 1.0]), 0);
        assert_eq!(greedy(penalized, &[(0, 1)], &[-1.0, -1.5]), 1);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_alone() {
        let presence = Sampling {
            presence_penalty: 1.0,
            ..Sampling::default()
        };
        let frequency = Sampling {
            frequency_penalty: 0.5,
            ..Sampling::default()
        };
        assert_eq!(greedy(presence.clone(), &[(0, 0)], &[1.0, 0.5]), 0, "in the prompt");
        assert_eq!(greedy(presence.clone(), &[(0, 1)], &[1.0, 0.5]), 1);
        assert_eq!(greedy(presence, &[(0, 9)], &[1.0, -0.5]), 0, "once, however often");
        assert_eq!(greedy(frequency.clone(), &[(0, 1)], &[1.0, 0.25]), 0);
        assert_eq!(greedy(frequency, &[(0, 2)], &[1.0, 0.25]), 1);
    }

    #[test]
    fn biases_come_before_penalties() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            logit_bias: vec![(TokenId(0), 3.0), (TokenId(900), 50.0)],
            ..Sampling::default()
        };
        // (1 + 3) / 2 = 2, not 1 / 2 + 3 = 3.5.
        assert_eq!(greedy(sampling, &[(0, 0)], &[1.0, 2.5]), 1);
    }

    #[test]
    fn ties_go_to_the_lowest_token_and_zeros_are_equal() {
        let biased = Sampling {
            logit_bias: vec![(TokenId(2), 1.0)],
            ..Sampling::default()
        };
        assert_eq!(greedy(biased.clone(), &[], &[-1.0, 2.0, 1.0]), 1);
        assert_eq!(greedy(biased, &[], &[-0.0, 0.0, -9.0]), 0);
    }

    #[test]
    fn min_p_keeps_what_is_likely_beside_the_likeliest_after_the_temperature() {
        let logits = [0.0, 1.0, 2.0, 1.0];
        let min_p = |min_p, temperature| Sampling {
            min_p,
            temperature,
            ..random()
        };
        // exp(-1) is 0.37, exp(-2) is 0.14.
        assert_eq!(drawn(&min_p(0.1, 1.0), &logits), [0, 1, 2, 3]);
        assert_eq!(drawn(&min_p(0.3, 1.0), &logits), [1, 2, 3]);
        assert_eq!(drawn(&min_p(0.4, 1.0), &logits), [2]);
        assert_eq!(drawn(&min_p(0.4, 2.0), &logits), [1, 2, 3]);
        assert_eq!(drawn(&min_p(1.0, 1.0), &[2.0, 1.0, 2.0]), [0, 2]);
    }

    #[test]
    fn a_ban_is_a_bias_and_the_rest_is_drawn() {
        let banned = Sampling {
            logit_bias: vec![(TokenId(1), -100.0)],
            ..random()
        };
        assert_eq!(drawn(&banned, &[1.0, 3.0, 1.0]), [0, 2]);
    }
}
