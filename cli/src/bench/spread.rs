//! One number measured several times: the median, the range, and the samples that they come from.

use serde::Serialize;

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// A sample, never between two: the lower one in the middle.
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// In the order in which they were taken.
    pub samples: Vec<f64>,
}

impl Spread {
    /// `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let samples: Vec<f64> = samples.iter().copied().map(thousandths).collect();
        let mut sorted = samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: sorted[sorted.len().checked_sub(1)? / 2],
            min: *sorted.first()?,
            max: *sorted.last()?,
            samples,
        })
    }
}

/// More digits would be noise.
pub fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_sample_and_the_samples_keep_their_order() {
        let spread = Spread::of(&[3.0, 1.0004, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(spread.samples, [3.0, 1.0, 2.0]);
        let median = |samples: &[f64]| Spread::of(samples).unwrap().median;
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[4.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 2.0, 8.0, 6.0]), 4.0);
    }

    #[test]
    fn no_samples_have_no_spread() {
        assert_eq!(Spread::of(&[]), None);
    }
}
