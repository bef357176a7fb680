//! What a vocab unit's logits come to: enough to merge greedy choice and log-probabilities over units.

use super::{
    Kernels, LANES,
    exp::exp,
    panels::vectors,
    simd::{Kernel, Simd},
};

/// Merged over units, in unit order, by whoever samples. The default says nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct UnitSummary {
    pub max: f32,
    /// Index in the unit of the largest logit, ties to the lowest; any valid index if `finite` is false.
    pub argmax: usize,
    /// The sum of exp(logit - max).
    pub sum_exp: f32,
    /// Whether all logits are finite. If not, the token is poisoned and the other values say nothing.
    pub finite: bool,
}

impl Kernels {
    /// Summarizes one token's logits of a unit of `rows` vocabulary rows.
    ///
    /// logits: panels of one unit, `[ceil(rows / 16)][tokens][16]`; rows beyond `rows` are padding and not looked at.
    pub fn vocab_unit_summary(&self, logits: &[f32], tokens: usize, token: usize, rows: usize) -> UnitSummary {
        assert_eq!(logits.len(), rows.next_multiple_of(LANES) * tokens);
        assert!(rows > 0 && token < tokens);
        self.run(Summary {
            logits,
            tokens,
            token,
            rows,
        })
    }
}

struct Summary<'a> {
    logits: &'a [f32],
    tokens: usize,
    token: usize,
    rows: usize,
}

impl Summary<'_> {
    /// 16 logits; those of padding rows are -infinity, which neither wins the maximum nor adds to the sum.
    #[inline(always)]
    fn panel(&self, panel: usize) -> [f32; LANES] {
        let mut lanes = vectors(self.logits)[panel * self.tokens + self.token];
        if (panel + 1) * LANES > self.rows {
            lanes[self.rows - panel * LANES..].fill(f32::NEG_INFINITY);
        }
        lanes
    }

    #[inline(always)]
    fn is_finite<S: Simd>(&self, s: S) -> bool {
        let whole = self.rows / LANES;
        (0..whole).all(|panel| s.all_finite(s.load(&self.panel(panel))))
            && (whole * LANES..self.rows).all(|row| self.panel(whole)[row - whole * LANES].is_finite())
    }
}

impl Kernel for Summary<'_> {
    type Output = UnitSummary;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> UnitSummary {
        let panels = self.rows.div_ceil(LANES);
        let mut max = s.splat(f32::NEG_INFINITY);
        for panel in 0..panels {
            max = s.max(s.load(&self.panel(panel)), max);
        }
        let max = s.max_lane(max);
        let mut sums = s.splat(0.0);
        let mut argmax = None;
        for panel in 0..panels {
            let lanes = self.panel(panel);
            if argmax.is_none() {
                argmax = lanes
                    .iter()
                    .position(|logit| *logit == max)
                    .map(|lane| (panel * LANES + lane, lanes[lane]));
            }
            sums = s.add(sums, exp(s, s.sub(s.load(&lanes), s.splat(max))));
        }
        // Zeros of both signs are equal: the value is that of the index, so that it does not depend on the lanes' order.
        let (argmax, max) = argmax.unwrap_or((0, max));
        UnitSummary {
            max,
            argmax,
            sum_exp: s.sum(sums),
            finite: self.is_finite(s),
        }
    }
}
