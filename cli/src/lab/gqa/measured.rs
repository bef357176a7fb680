//! What the ranks tell of a point, put together.

use serde::Serialize;

/// One rank's word, of each timed token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RankTold {
    pub step_ns: Vec<u64>,
    pub attend_ns: Vec<u64>,
    /// With K and V of one block for all positions: the same arithmetic, out of caches. Empty where a backend does not tell.
    pub cached_attend_ns: Vec<u64>,
    /// Bytes of the cells of all blocks that are held; `None` where a backend keeps no cells.
    pub held_bytes: Option<u64>,
}

/// Of all ranks, over all rounds: a time is that of the rank that took longest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Measured {
    pub step_ns: Vec<u64>,
    pub attend_ns: Vec<u64>,
    pub cached_attend_ns: Vec<u64>,
    /// Over all ranks.
    pub held_bytes: Option<u64>,
}

impl Measured {
    pub fn add(&mut self, told: &[RankTold]) {
        self.step_ns.extend(slowest(told.iter().map(|told| &told.step_ns)));
        self.attend_ns.extend(slowest(told.iter().map(|told| &told.attend_ns)));
        self.cached_attend_ns
            .extend(slowest(told.iter().map(|told| &told.cached_attend_ns)));
        self.held_bytes = told.iter().map(|told| told.held_bytes).sum();
    }
}

fn slowest<'a>(of_ranks: impl Iterator<Item = &'a Vec<u64>>) -> Vec<u64> {
    let longer =
        |one: Vec<u64>, other: Vec<u64>| one.into_iter().zip(other).map(|(one, other)| one.max(other)).collect();
    of_ranks.cloned().reduce(longer).unwrap_or_default()
}

/// Microseconds; a percentile is a sample.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Times {
    pub p10_us: f64,
    pub median_us: f64,
    pub p90_us: f64,
}

impl Times {
    /// `None` without samples, or where all are 0: nobody has told.
    pub fn of(samples_ns: &[u64]) -> Option<Self> {
        let mut sorted = samples_ns.to_vec();
        sorted.sort_unstable();
        sorted.last().filter(|longest| **longest > 0)?;
        let us = |percent: usize| sorted[(sorted.len() - 1) * percent / 100] as f64 / 1e3;
        Some(Self {
            p10_us: us(10),
            median_us: us(50),
            p90_us: us(90),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_slowest_ranks_and_bytes_are_all_ranks_together() {
        let told = |step_ns: &[u64], held_bytes| RankTold {
            step_ns: step_ns.to_vec(),
            held_bytes,
            ..RankTold::default()
        };
        let mut measured = Measured::default();
        measured.add(&[told(&[5, 2], Some(100)), told(&[1, 7], Some(50))]);
        measured.add(&[told(&[3], Some(100)), told(&[4], Some(50))]);
        assert_eq!(
            (measured.step_ns.as_slice(), measured.held_bytes),
            (&[5, 7, 4][..], Some(150))
        );
        measured.add(&[told(&[], Some(1)), told(&[], None)]);
        assert_eq!(measured.held_bytes, None, "part of the bytes would be a wrong number");
    }

    #[test]
    fn what_nobody_told_has_no_times() {
        assert_eq!(Times::of(&[]), None);
        assert_eq!(Times::of(&[0, 0]), None);
        let times = Times::of(&[3000, 1000, 2000]).unwrap();
        assert_eq!((times.p10_us, times.median_us, times.p90_us), (1.0, 2.0, 2.0));
    }
}
