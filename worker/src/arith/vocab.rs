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
    /// Summarizes the logits of a unit of `rows` vocabulary rows for each token.
    ///
    /// logits: panels of one unit, `[ceil(rows / 16)][tokens][16]`; rows beyond `rows` are padding and not looked at.
    /// out: of each token
    pub fn vocab_unit_summaries(&self, logits: &[f32], rows: usize, out: &mut [UnitSummary]) {
        assert_eq!(logits.len(), rows.next_multiple_of(LANES) * out.len());
        assert!(rows > 0);
        self.run(Summaries {
            logits: vectors(logits),
            rows,
            out,
        });
    }
}

struct Summaries<'a> {
    logits: &'a [[f32; LANES]],
    rows: usize,
    out: &'a mut [UnitSummary],
}

impl Kernel for Summaries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut token = 0;
        while token + TOKENS <= self.out.len() {
            self.some::<S, TOKENS>(s, token);
            token += TOKENS;
        }
        while token < self.out.len() {
            self.some::<S, 1>(s, token);
            token += 1;
        }
    }
}

/// Tokens that are summarized together: their logits of a panel lie side by side, and a token's panels far apart.
const TOKENS: usize = 8;

impl Summaries<'_> {
    /// 16 logits; those of padding rows are `padding`.
    #[inline(always)]
    fn panel<S: Simd>(&self, s: S, panel: usize, token: usize, padding: f32) -> S::F {
        let logits = &self.logits[panel * self.out.len() + token];
        if (panel + 1) * LANES <= self.rows {
            return s.load(logits);
        }
        let mut lanes = *logits;
        lanes[self.rows - panel * LANES..].fill(padding);
        s.load(&lanes)
    }

    /// The summaries of N tokens.
    #[inline(always)]
    fn some<S: Simd, const N: usize>(&mut self, s: S, first: usize) {
        let panels = self.rows.div_ceil(LANES);
        // Of each lane, the largest logit and the first panel that has it; panels are counted exactly up to 2^24.
        let mut max = [s.splat(f32::NEG_INFINITY); N];
        let mut place = [s.splat(0.0); N];
        let mut finite = [true; N];
        for panel in 0..panels {
            let number = s.splat(panel as f32);
            for n in 0..N {
                // The lowest number is finite, and no logit is smaller.
                let logits = self.panel(s, panel, first + n, f32::MIN);
                place[n] = s.select_gt(logits, max[n], number, place[n]);
                max[n] = s.max(logits, max[n]);
                finite[n] &= s.all_finite(logits);
            }
        }
        for n in 0..N {
            let (argmax, max) = first_max(s, max[n], place[n]);
            let summary = &mut self.out[first + n];
            // Where nothing is finite, a padding row may be the largest.
            (summary.argmax, summary.max, summary.finite) = (argmax.min(self.rows - 1), max, finite[n]);
        }
        let mut sums = [s.splat(0.0); N];
        for panel in 0..panels {
            for n in 0..N {
                // Padding adds nothing.
                let logits = self.panel(s, panel, first + n, f32::NEG_INFINITY);
                let less = s.sub(logits, s.splat(self.out[first + n].max));
                sums[n] = s.add(sums[n], exp(s, less));
            }
        }
        for n in 0..N {
            self.out[first + n].sum_exp = s.sum(sums[n]);
        }
    }
}

/// The lowest index of the largest of the lanes' logits, and its value: zeros of both signs are equal, and the value must not
/// depend on the lanes' order.
#[inline(always)]
fn first_max<S: Simd>(s: S, max: S::F, place: S::F) -> (usize, f32) {
    let (mut values, mut panels) = ([0.0; LANES], [0.0; LANES]);
    s.store(max, &mut values);
    s.store(place, &mut panels);
    let mut best = (panels[0] as usize * LANES, values[0]);
    for lane in 1..LANES {
        let index = panels[lane] as usize * LANES + lane;
        if values[lane] > best.1 || (values[lane] == best.1 && index < best.0) {
            best = (index, values[lane]);
        }
    }
    best
}
