//! What ranks tell each other of their shares of a row's logits: bytes to write and read, units' summaries merged in unit
//! order, the likeliest few.
//!
//! Sums merge in f64 and ties go to the lowest token id, so that the number of ranks changes nothing.

use std::cmp::Ordering;

use crate::collective::CollectiveError;

/// All units' summaries, merged in unit order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    pub finite: bool,
    pub max: f32,
    /// Token of the largest logit.
    pub argmax: u32,
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
    /// `sum_exp` stays relative to the largest logit so far.
    pub fn add(&mut self, finite: bool, max: f32, argmax: u32, sum_exp: f32) {
        self.finite &= finite;
        let sum_exp = f64::from(sum_exp);
        if max > self.max {
            let shrink = libm::exp(f64::from(self.max) - f64::from(max));
            (self.max, self.argmax, self.sum_exp) = (max, argmax, self.sum_exp * shrink + sum_exp);
        } else {
            self.sum_exp += sum_exp * libm::exp(f64::from(max) - f64::from(self.max));
        }
    }

    /// Natural logarithm of the probability of a token with this logit.
    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - libm::log(self.sum_exp)) as f32
    }
}

/// A logit with its token; f64 where it was changed.
pub(crate) trait Candidate: Copy {
    /// Best first, ties by lower id.
    fn order(&self, other: &Self) -> Ordering;
}

impl Candidate for (f32, u32) {
    fn order(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1))
    }
}

impl Candidate for (f64, u32) {
    fn order(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1))
    }
}

/// The `count` likeliest, best first.
pub(crate) fn keep_likeliest<C: Candidate>(candidates: &mut Vec<C>, count: usize) {
    if count == 0 {
        return candidates.clear();
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, C::order);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(C::order);
}

pub(crate) fn put(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_candidates(bytes: &mut Vec<u8>, candidates: &[(f32, u32)]) {
    put(bytes, candidates.len() as u32);
    for &(logit, token) in candidates {
        put(bytes, logit.to_bits());
        put(bytes, token);
    }
}

/// Reads what a rank has put. None where there are no more bytes.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    pub fn f32(&mut self) -> Option<f32> {
        self.u32().map(f32::from_bits)
    }

    pub fn candidates(&mut self, candidates: &mut Vec<(f32, u32)>) -> Option<()> {
        for _ in 0..self.u32()? {
            candidates.push((self.f32()?, self.u32()?));
        }
        Some(())
    }
}

/// A rank's bytes are not a share of the logits.
pub(crate) fn out_of_step(rank: usize) -> CollectiveError {
    let (expected, found) = ("a share of the logits".to_owned(), "too few bytes".to_owned());
    CollectiveError::OutOfStep { rank, expected, found }
}
