//! What the usual frequencies of rotary positions are divided by, pair by pair, in models stretched to a longer context.

use std::f64::consts::TAU;

/// Llama 3's interpolation: high frequencies stay, low ones are divided by `factor`, between them it is blended.
///
/// Source: `_compute_llama3_parameters` of transformers (modeling_rope_utils.py).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Context, in tokens, before stretching.
    pub original_context_len: f64,
}

impl Llama3Scaling {
    /// One for each pair.
    pub fn divisors(&self, theta: f64, rope_dim: u32) -> Vec<f32> {
        let frequency = |pair: u32| libm::pow(theta, -f64::from(2 * pair) / f64::from(rope_dim));
        (0..rope_dim / 2)
            .map(|pair| self.divisor(TAU / frequency(pair)) as f32)
            .collect()
    }

    /// wavelength: positions of a whole turn.
    fn divisor(&self, wavelength: f64) -> f64 {
        let turns = self.original_context_len / wavelength;
        if turns > self.high_freq_factor {
            1.0
        } else if turns < self.low_freq_factor {
            self.factor
        } else {
            let blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            1.0 / ((1.0 - blend) / self.factor + blend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_pairs_stay_slow_ones_are_divided_and_the_middle_is_between() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_len: 8192.0,
        };
        let divisors = scaling.divisors(500_000.0, 128);
        assert_eq!((divisors.len(), divisors[0], divisors[63]), (64, 1.0, 8.0));
        assert!(divisors.is_sorted());
        let between = divisors.iter().filter(|divisor| **divisor > 1.0 && **divisor < 8.0);
        assert_eq!(between.count(), 6);
    }
}
