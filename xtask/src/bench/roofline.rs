//! The bound of decoding: each token reads all weights, and memory is read no faster than it is.

use serde_json::{Value, json};

use super::case::DECODE;
use super::samples::{Samples, Spread};
use super::side::Side;

/// What was measured beside the rounds.
#[derive(Debug)]
pub struct Roofline {
    /// That read memory at once.
    pub threads: usize,
    /// One sample a round.
    pub gb_per_s: Vec<f64>,
    /// Weights that one token reads. A peer keeps them in a layout of its own, of nearly as many bytes.
    pub bytes_per_token: u64,
}

impl Roofline {
    /// Of what memory gives, what a side's decoding takes: of the medians.
    fn share(&self, samples: &Samples, side: Side) -> Option<f64> {
        let read = Spread::of(&self.gb_per_s)?.median;
        let rate = samples.spread(DECODE, side)?.median;
        Some(rate * self.bytes_per_token as f64 / 1e9 / read)
    }

    pub fn line(&self, samples: &Samples, sides: &[Side]) -> Option<String> {
        let Self {
            threads,
            gb_per_s,
            bytes_per_token,
        } = self;
        let shares: Vec<String> = sides
            .iter()
            .filter_map(|&side| Some(format!("{side} {:.0} %", self.share(samples, side)? * 100.0)))
            .collect();
        Some(format!(
            "memory: {threads} threads read {} GB/s; {DECODE} reads {:.0} MB of weights a token, of what memory gives: {}",
            Spread::of(gb_per_s)?,
            *bytes_per_token as f64 / 1e6,
            shares.join(", ")
        ))
    }

    pub fn json(&self) -> Value {
        json!({"threads": self.threads, "gb_per_s": self.gb_per_s, "bytes_per_token": self.bytes_per_token})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_medians() {
        let ours = Side::Kvasir { workers: 2, threads: 1 };
        let theirs = Side::Peer { threads: 2 };
        let mut samples = Samples::default();
        [200.0, 300.0, 250.0]
            .into_iter()
            .for_each(|rate| samples.add(DECODE, ours, rate));
        let roofline = Roofline {
            threads: 2,
            gb_per_s: vec![50.0, 40.0, 60.0],
            bytes_per_token: 100_000_000,
        };
        let line = roofline.line(&samples, &[ours, theirs]).unwrap();
        let expected = "memory: 2 threads read 50.0 (40.0-60.0) GB/s; decode 128 reads 100 MB of weights a token, of what \
                        memory gives: Kvasir 2x1 50 %";
        assert_eq!(line, expected);
        let nothing = Roofline {
            gb_per_s: Vec::new(),
            ..roofline
        };
        assert_eq!(nothing.line(&samples, &[ours]), None);
    }
}
