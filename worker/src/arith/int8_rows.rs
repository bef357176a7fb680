//! Activations as int8, per 32 columns of a token.

use super::{
    Kernels, LANES, SUB_BLOCK,
    panels::vectors,
    reference::QUANTIZE_AMAX_MIN,
    simd::{Kernel, Simd},
};

/// Quantized activations of a step. Reused from step to step; grows, never shrinks its memory.
#[derive(Debug, Default)]
pub struct Int8Rows {
    cols: usize,
    tokens: usize,
    /// `[cols / 32][tokens][32]`
    pub(super) quants: Vec<[i8; SUB_BLOCK]>,
    /// `[cols / 32][tokens]`
    pub(super) scales: Vec<f32>,
    /// `[cols / 32][tokens]`: the sum of the quants
    pub(super) sums: Vec<i32>,
    /// `[cols / 32][tokens]`: the sum of the first 16 quants
    pub(super) first_sums: Vec<i32>,
    /// `[cols / 32][tokens]`: `scale * (sum as f32)`, what a weight's minimum is multiplied with
    pub(super) scaled_sums: Vec<f32>,
}

impl Int8Rows {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `[cols / 32][tokens][32]`
    pub fn quants(&self) -> &[i8] {
        self.quants.as_flattened()
    }

    /// `[cols / 32][tokens]`
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// `[cols / 32][tokens]`
    pub fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Sets the shape; the contents are whatever they were until `Kernels::quantize` fills them.
    pub fn resize(&mut self, cols: usize, tokens: usize) {
        assert!(
            cols.is_multiple_of(SUB_BLOCK),
            "{cols} columns are not whole sub-blocks"
        );
        (self.cols, self.tokens) = (cols, tokens);
        let len = cols / SUB_BLOCK * tokens;
        self.quants.resize(len, [0; SUB_BLOCK]);
        self.scales.resize(len, 0.0);
        self.sums.resize(len, 0);
        self.first_sums.resize(len, 0);
        self.scaled_sums.resize(len, 0.0);
    }
}

impl Kernels {
    /// Quantizes panels of `cols` columns into `out`, which takes their shape.
    ///
    /// panels: `[cols / 16][tokens][16]`, cols a multiple of 32. Sets `poison[token]` where a column is not finite; never
    /// clears one. Such a sub-block counts as zeros.
    pub fn quantize(&self, panels: &[f32], cols: usize, tokens: usize, out: &mut Int8Rows, poison: &mut [bool]) {
        assert_eq!(panels.len(), cols * tokens);
        assert_eq!(poison.len(), tokens);
        out.resize(cols, tokens);
        self.run(Quantize { panels, out, poison });
    }
}

struct Quantize<'a> {
    panels: &'a [f32],
    out: &'a mut Int8Rows,
    poison: &'a mut [bool],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, out, tokens) = (vectors(self.panels), self.out, self.poison.len());
        for sub_block in 0..out.cols / SUB_BLOCK {
            let low = &x[2 * sub_block * tokens..][..tokens];
            let high = &x[(2 * sub_block + 1) * tokens..][..tokens];
            for token in 0..tokens {
                let (low, high) = (s.load(&low[token]), s.load(&high[token]));
                let at = sub_block * tokens + token;
                let finite = s.all_finite(low) & s.all_finite(high);
                self.poison[token] |= !finite;
                let amax = if finite {
                    s.max_lane(s.max(s.abs(low), s.abs(high)))
                } else {
                    0.0
                };
                let (scale, [first, last]) = quantize_sub_block(s, low, high, amax, &mut out.quants[at]);
                let sum = first + last;
                out.scales[at] = scale;
                out.sums[at] = sum;
                out.first_sums[at] = first;
                out.scaled_sums[at] = scale * sum as f32;
            }
        }
    }
}

/// Returns the scale and the sums of both halves.
#[inline(always)]
fn quantize_sub_block<S: Simd>(s: S, low: S::F, high: S::F, amax: f32, out: &mut [i8; SUB_BLOCK]) -> (f32, [i32; 2]) {
    if amax < QUANTIZE_AMAX_MIN {
        *out = [0; SUB_BLOCK];
        return (0.0, [0; 2]);
    }
    // |x * inverse| exceeds 127 by less than one rounding, so the result needs no clamp.
    let inverse = s.splat(127.0 / amax);
    let [out_low, out_high] = out.as_chunks_mut::<LANES>().0 else {
        unreachable!("32 columns are two vectors")
    };
    let sums = [
        s.to_i8(s.mul(low, inverse), out_low),
        s.to_i8(s.mul(high, inverse), out_high),
    ];
    (amax / 127.0, sums)
}
