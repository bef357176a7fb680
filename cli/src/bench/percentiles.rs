//! A set of durations in a few numbers, in milliseconds. A percentile is the nearest rank: a sample, never between two.

use std::time::Duration;

use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// `None` without samples.
    pub fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let max = *samples.last()?;
        let mean_s = samples.iter().map(Duration::as_secs_f64).sum::<f64>() / samples.len() as f64;
        Some(Self {
            mean: ms(Duration::from_secs_f64(mean_s)),
            p50: ms(nearest_rank(&samples, 50)),
            p90: ms(nearest_rank(&samples, 90)),
            p99: ms(nearest_rank(&samples, 99)),
            max: ms(max),
        })
    }
}

/// The smallest sample that at least `percent` of a hundred samples do not exceed. `sorted` is not empty.
pub fn nearest_rank(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// To the microsecond: more digits would be noise.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: impl IntoIterator<Item = u64>) -> Percentiles {
        Percentiles::of(samples.into_iter().map(Duration::from_millis).collect()).unwrap()
    }

    #[test]
    fn percentiles_are_samples_of_the_nearest_rank() {
        let expected = |mean, p50, p90, p99, max| Percentiles {
            mean,
            p50,
            p90,
            p99,
            max,
        };
        assert_eq!(of([7]), expected(7.0, 7.0, 7.0, 7.0, 7.0));
        assert_eq!(of([40, 10]), expected(25.0, 10.0, 40.0, 40.0, 40.0));
        assert_eq!(of((1..=5).rev()), expected(3.0, 3.0, 5.0, 5.0, 5.0));
        assert_eq!(of(1..=10), expected(5.5, 5.0, 9.0, 10.0, 10.0));
        assert_eq!(of(1..=100), expected(50.5, 50.0, 90.0, 99.0, 100.0));
        assert_eq!(of(1..=200), expected(100.5, 100.0, 180.0, 198.0, 200.0));
    }

    #[test]
    fn no_samples_have_no_percentiles() {
        assert_eq!(Percentiles::of(Vec::new()), None);
    }
}
