//! The samples of all rounds, and what they say: medians, ranges and ratios.

use std::collections::BTreeMap;
use std::fmt;

use super::case::Case;
use super::side::Side;

/// Tokens a second, one sample a round.
#[derive(Debug, Default)]
pub struct Samples {
    of: BTreeMap<(Case, Side), Vec<f64>>,
}

/// A middle and a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Samples {
    pub fn add(&mut self, case: Case, side: Side, tokens_per_s: f64) {
        self.of.entry((case, side)).or_default().push(tokens_per_s);
    }

    /// In the order of the rounds; empty for what this side was not measured in.
    pub fn of(&self, case: Case, side: Side) -> &[f64] {
        self.of.get(&(case, side)).map_or(&[], Vec::as_slice)
    }

    pub fn spread(&self, case: Case, side: Side) -> Option<Spread> {
        Spread::of(self.of(case, side))
    }

    /// The peer with the highest median.
    pub fn best_peer(&self, case: Case, sides: &[Side]) -> Option<Side> {
        let peers = sides.iter().copied().filter(|side| side.is_peer());
        let measured = peers.filter_map(|side| Some((side, self.spread(case, side)?.median)));
        measured.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(side, _)| side)
    }

    /// How many times as fast `side` is as `peer`: the quotient of the medians, and the range of the rounds' own.
    pub fn ratio(&self, case: Case, side: Side, peer: Side) -> Option<Spread> {
        let rounds = self.of(case, side).iter().zip(self.of(case, peer));
        let by_round: Vec<f64> = rounds.map(|(ours, theirs)| ours / theirs).collect();
        Some(Spread {
            median: self.spread(case, side)?.median / self.spread(case, peer)?.median,
            ..Spread::of(&by_round)?
        })
    }
}

impl Spread {
    /// `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted.get(half.checked_sub(1)?)? + sorted[half]) / 2.0,
            _ => sorted[half],
        };
        Some(Self {
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

/// `median (min-max)`, with as many digits as three places take; the alternate form has two decimals, as ratios want.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        match (f.alternate(), *median < 100.0) {
            (true, _) => write!(f, "{median:.2} ({min:.2}-{max:.2})"),
            (false, true) => write!(f, "{median:.1} ({min:.1}-{max:.1})"),
            (false, false) => write!(f, "{median:.0} ({min:.0}-{max:.0})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::DECODE;
    use super::*;

    const OURS: Side = Side::Kvasir { workers: 2, threads: 1 };
    const ONE: Side = Side::Peer { threads: 1 };
    const TWO: Side = Side::Peer { threads: 2 };
    const RPC: Side = Side::PeerRpc { servers: 2 };

    fn samples(of: &[(Side, &[f64])]) -> Samples {
        let mut samples = Samples::default();
        for (side, rates) in of {
            rates.iter().for_each(|&rate| samples.add(DECODE, *side, rate));
        }
        samples
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(Spread::of(&[]), None);
        let of = |samples: &[f64]| Spread::of(samples).unwrap();
        assert_eq!(of(&[3.0]).median, 3.0);
        assert_eq!(of(&[9.0, 1.0, 2.0]).median, 2.0);
        let even = of(&[4.0, 1.0, 2.0, 10.0]);
        assert_eq!((even.median, even.min, even.max), (3.0, 1.0, 10.0));
    }

    #[test]
    fn the_best_peer_is_best_in_the_median_and_rpc_is_none() {
        let samples = samples(&[
            (ONE, &[100.0, 101.0, 102.0]),
            (TWO, &[200.0, 90.0, 80.0]),
            (RPC, &[500.0]),
        ]);
        assert_eq!(samples.best_peer(DECODE, &[OURS, ONE, TWO, RPC]), Some(ONE));
        assert_eq!(samples.best_peer(DECODE, &[OURS, RPC]), None);
    }

    #[test]
    fn a_ratio_is_of_the_medians_and_its_range_of_the_rounds() {
        let samples = samples(&[(OURS, &[200.0, 300.0, 250.0]), (ONE, &[100.0, 100.0, 50.0])]);
        let ratio = samples.ratio(DECODE, OURS, ONE).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.5, 2.0, 5.0));
        assert_eq!(samples.ratio(DECODE, OURS, TWO), None);
    }

    #[test]
    fn digits_are_as_many_as_tell_something() {
        let spread = |median| Spread {
            median,
            min: 9.87,
            max: 123.45,
        };
        assert_eq!(spread(99.94).to_string(), "99.9 (9.9-123.5)");
        assert_eq!(spread(101.4).to_string(), "101 (10-123)");
        assert_eq!(format!("{:#}", spread(2.499)), "2.50 (9.87-123.45)");
    }
}
