//! The sampler: every rank picks the same token from all ranks' shares of the logits.
//!
//! A greedy row exchanges one summary per vocab unit and the likeliest few tokens; a random row exchanges its logits.
//! Sums merge in unit order in f64, ties go to the lowest token id, and random numbers are a function of
//! (seed, choice, index in the answer): the number of ranks changes nothing.

use std::cmp::Ordering;

use kvasir_kv::{SampledToken, Sampling, TOP_LOGPROBS_MAX, TokenId};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::{
    arith::UnitSummary,
    collective::{Collective, CollectiveError},
};

/// One local vocab unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitRows {
    /// First token of the unit.
    pub first: u32,
    pub rows: u32,
}

/// One row to sample: whose it is and how.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    pub sequence: kvasir_kv::SequenceId,
    pub sampling: &'a Sampling,
    /// Index in the answer of the token to pick.
    pub index: u32,
    /// Already known to be out of range; takes part in the exchange and gets no token.
    pub poisoned: bool,
}

/// A row's share on one rank.
#[derive(Clone, Copy, Debug)]
pub struct LogitsShare<'a> {
    /// Of the local units, in order.
    pub logits: &'a [f32],
    pub summaries: &'a [UnitSummary],
    pub units: &'a [UnitRows],
}

/// What came of a row.
#[derive(Clone, PartialEq, Debug)]
pub enum Picked {
    Token(SampledToken),
    /// A logit is not finite.
    Poisoned,
}

/// Buffers of the exchange, reused from step to step.
#[derive(Debug, Default)]
pub struct Sampler {
    mine: Vec<u8>,
    gathered: Vec<Vec<u8>>,
    candidates: Vec<(f32, u32)>,
    logits: Vec<f32>,
}

impl Sampler {
    /// Picks a token for each row. `share(i)` is the local share of row `i`.
    pub fn sample<'a>(
        &mut self,
        rows: &[SampleRow<'_>],
        share: impl Fn(usize) -> LogitsShare<'a>,
        collective: &mut dyn Collective,
    ) -> Result<Vec<Picked>, CollectiveError> {
        self.mine.clear();
        for (i, row) in rows.iter().enumerate() {
            self.write_share(row, share(i));
        }
        collective.all_gather(&self.mine, &mut self.gathered)?;
        let mut readers: Vec<Reader<'_>> = self.gathered.iter().map(|bytes| Reader(bytes)).collect();
        let mut picked = Vec::with_capacity(rows.len());
        for row in rows {
            self.candidates.clear();
            self.logits.clear();
            let mut merged = Merged::default();
            for (rank, reader) in readers.iter_mut().enumerate() {
                read_share(reader, row, &mut merged, &mut self.candidates, &mut self.logits)
                    .ok_or_else(|| out_of_step(rank))?;
            }
            picked.push(pick(row, &merged, &mut self.candidates, &self.logits));
        }
        Ok(picked)
    }

    fn write_share(&mut self, row: &SampleRow<'_>, share: LogitsShare<'_>) {
        put(&mut self.mine, share.summaries.len() as u32);
        for (summary, unit) in share.summaries.iter().zip(share.units) {
            let finite = summary.finite && !row.poisoned;
            put(&mut self.mine, u32::from(finite));
            put(&mut self.mine, summary.max.to_bits());
            put(&mut self.mine, unit.first + summary.argmax as u32);
            put(&mut self.mine, summary.sum_exp.to_bits());
        }
        if row.sampling.is_greedy() {
            likeliest(share, row.sampling.top_logprobs as usize, &mut self.candidates);
            put(&mut self.mine, self.candidates.len() as u32);
            for &(logit, token) in &self.candidates {
                put(&mut self.mine, logit.to_bits());
                put(&mut self.mine, token);
            }
        } else {
            put(&mut self.mine, share.logits.len() as u32);
            self.mine
                .extend(share.logits.iter().flat_map(|logit| logit.to_le_bytes()));
        }
    }
}

/// All units' summaries, merged in unit order.
#[derive(Clone, Copy, Debug)]
struct Merged {
    finite: bool,
    max: f32,
    argmax: u32,
    sum_exp: f64,
}

impl Default for Merged {
    fn default() -> Self {
        Self {
            finite: true,
            max: f32::NEG_INFINITY,
            argmax: 0,
            sum_exp: 0.0,
        }
    }
}

impl Merged {
    /// `sum` stays relative to the largest logit so far.
    fn add(&mut self, finite: bool, max: f32, argmax: u32, sum_exp: f32) {
        self.finite &= finite;
        let sum_exp = f64::from(sum_exp);
        if max > self.max {
            let shrink = libm::exp(f64::from(self.max) - f64::from(max));
            (self.max, self.argmax, self.sum_exp) = (max, argmax, self.sum_exp * shrink + sum_exp);
        } else {
            self.sum_exp += sum_exp * libm::exp(f64::from(max) - f64::from(self.max));
        }
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - libm::log(self.sum_exp)) as f32
    }
}

/// Reads one rank's share of a row, units in order. None if the bytes are not such a share.
fn read_share(
    reader: &mut Reader<'_>,
    row: &SampleRow<'_>,
    merged: &mut Merged,
    candidates: &mut Vec<(f32, u32)>,
    logits: &mut Vec<f32>,
) -> Option<()> {
    for _ in 0..reader.u32()? {
        let finite = reader.u32()? == 1;
        let max = f32::from_bits(reader.u32()?);
        let argmax = reader.u32()?;
        merged.add(finite, max, argmax, f32::from_bits(reader.u32()?));
    }
    let count = reader.u32()?;
    for _ in 0..count {
        let logit = f32::from_bits(reader.u32()?);
        if row.sampling.is_greedy() {
            candidates.push((logit, reader.u32()?));
        } else {
            logits.push(logit);
        }
    }
    Some(())
}

fn pick(row: &SampleRow<'_>, merged: &Merged, candidates: &mut Vec<(f32, u32)>, logits: &[f32]) -> Picked {
    if !merged.finite {
        return Picked::Poisoned;
    }
    let sampling = row.sampling;
    let top = sampling.top_logprobs.min(TOP_LOGPROBS_MAX) as usize;
    let (token, logit) = if sampling.is_greedy() {
        (merged.argmax, merged.max)
    } else {
        candidates.extend(logits.iter().enumerate().map(|(token, &logit)| (logit, token as u32)));
        let token = draw(sampling, row.index, merged.max, candidates);
        candidates.clear();
        if top > 0 {
            candidates.extend(logits.iter().enumerate().map(|(token, &logit)| (logit, token as u32)));
        }
        (token, logits[token as usize])
    };
    keep_likeliest(candidates, top);
    Picked::Token(SampledToken {
        sequence: row.sequence,
        token: TokenId(token),
        logprob: merged.logprob(logit),
        top_logprobs: candidates
            .iter()
            .map(|&(logit, token)| (TokenId(token), merged.logprob(logit)))
            .collect(),
    })
}

/// Draws from `candidates` (token order): temperature, then top-k, then top-p.
fn draw(sampling: &Sampling, index: u32, max: f32, candidates: &mut Vec<(f32, u32)>) -> u32 {
    let weight = |logit: f32| libm::exp((f64::from(logit) - f64::from(max)) / f64::from(sampling.temperature));
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

/// The `count` likeliest, best first, ties by lower id.
fn keep_likeliest(candidates: &mut Vec<(f32, u32)>, count: usize) {
    let order = |a: &(f32, u32), b: &(f32, u32)| -> Ordering { b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)) };
    if count == 0 {
        return candidates.clear();
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, order);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(order);
}

/// The local candidates for the likeliest tokens.
fn likeliest(share: LogitsShare<'_>, count: usize, candidates: &mut Vec<(f32, u32)>) {
    candidates.clear();
    if count == 0 {
        return;
    }
    let tokens = share.units.iter().flat_map(|unit| unit.first..unit.first + unit.rows);
    candidates.extend(share.logits.iter().copied().zip(tokens));
    keep_likeliest(candidates, count.min(TOP_LOGPROBS_MAX as usize));
}

fn put(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn out_of_step(rank: usize) -> CollectiveError {
    let (expected, found) = ("a share of the logits".to_owned(), "too few bytes".to_owned());
    CollectiveError::OutOfStep { rank, expected, found }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }
}
