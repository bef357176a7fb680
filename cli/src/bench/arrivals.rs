//! When requests of an open loop arrive: a Poisson process, without regard to how many are still running.

use std::time::Duration;

use super::dice::Dice;

/// Times since the start, rising. Endless: the caller takes as many as it wants.
#[derive(Debug)]
pub struct Arrivals {
    dice: Dice,
    per_s: f64,
    at: Duration,
}

impl Arrivals {
    /// `per_s` is at least 0.001, or the gaps overflow.
    pub fn new(dice: Dice, per_s: f64) -> Self {
        Self {
            dice,
            per_s,
            at: Duration::ZERO,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let gap_s = -(1.0 - self.dice.fraction()).ln() / self.per_s;
        self.at += Duration::from_secs_f64(gap_s);
        Some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let arrivals: Vec<f64> = Arrivals::new(Dice::new(1, 0), 20.0)
            .take(10_000)
            .map(|at| at.as_secs_f64())
            .collect();
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential distribution's deviation is its mean.
        assert!((mean * 20.0 - 1.0).abs() < 0.05, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }
}
