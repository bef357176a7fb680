//! The perplexity of the tokens scored so far, and how sure it is.

use crate::answer::TokenLogprob;

#[derive(Debug, Default)]
pub struct Estimate {
    tokens: u32,
    /// Of negative logprobs, and of their squares.
    sum: f64,
    sum_of_squares: f64,
    hasher: blake3::Hasher,
}

impl Estimate {
    pub fn add(&mut self, scored: &[TokenLogprob]) {
        for score in scored {
            let surprise = -f64::from(score.logprob);
            self.tokens += 1;
            self.sum += surprise;
            self.sum_of_squares += surprise * surprise;
            self.hasher.update(&score.id.to_le_bytes());
            self.hasher.update(&score.logprob.to_bits().to_le_bytes());
        }
    }

    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Not a number without tokens.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Of the perplexity; 0 with fewer than two tokens.
    pub fn standard_error(&self) -> f64 {
        let variance = self.sum_of_squares / f64::from(self.tokens) - self.mean() * self.mean();
        match self.tokens {
            0 | 1 => 0.0,
            tokens => (variance.max(0.0) / f64::from(tokens - 1)).sqrt() * self.perplexity(),
        }
    }

    /// Over the tokens and the bits of their logprobs.
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_owned()
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(logprobs: &[f32]) -> Vec<TokenLogprob> {
        let score = |&logprob| TokenLogprob {
            id: 1,
            logprob,
            top: Vec::new(),
        };
        logprobs.iter().map(score).collect()
    }

    #[test]
    fn a_model_that_guesses_among_four_has_a_perplexity_of_four() {
        let mut estimate = Estimate::default();
        estimate.add(&scores(&[0.25f32.ln(); 3]));
        assert!((estimate.perplexity() - 4.0).abs() < 1e-6);
        assert!(estimate.standard_error() < 1e-3);
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean_times_the_perplexity() {
        let mut estimate = Estimate::default();
        estimate.add(&scores(&[-1.0]));
        assert_eq!(estimate.standard_error(), 0.0);
        estimate.add(&scores(&[-3.0]));
        // Mean 2, variance 1, two tokens.
        assert!((estimate.perplexity() - 2f64.exp()).abs() < 1e-12);
        assert!((estimate.standard_error() - 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn every_bit_counts_in_the_digest() {
        let digest = |logprob| {
            let mut estimate = Estimate::default();
            estimate.add(&scores(&[logprob]));
            estimate.digest()
        };
        assert_eq!(digest(-1.0), digest(-1.0));
        assert_ne!(digest(-1.0), digest(f32::from_bits((-1.0f32).to_bits() + 1)));
    }
}
