//! Activations as int8, per 32 columns of a token.

use std::ops::Range;

use super::{
    Kernels, LANES, SUB_BLOCK,
    panel_source::PanelSource,
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

/// Some sub-blocks of all tokens, for one thread to fill: [`Kernels::quantize_part`].
#[derive(Debug)]
pub struct Int8Part<'a> {
    /// Which ones.
    pub sub_blocks: Range<usize>,
    quants: &'a mut [[i8; SUB_BLOCK]],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    first_sums: &'a mut [i32],
    scaled_sums: &'a mut [f32],
}

impl Int8Rows {
    pub fn new() -> Self {
        Self::default()
    }

    /// All of it, dealt evenly.
    pub fn parts(&mut self, members: usize) -> Vec<Int8Part<'_>> {
        let (tokens, sub_blocks) = (self.tokens, self.cols / SUB_BLOCK);
        let mut rest = self.whole();
        let mut parts = Vec::with_capacity(members);
        for member in 0..members {
            let end = sub_blocks * (member + 1) / members;
            let (part, after) = rest.split_at(end, tokens);
            parts.push(part);
            rest = after;
        }
        parts
    }

    fn whole(&mut self) -> Int8Part<'_> {
        let len = self.len();
        Int8Part {
            sub_blocks: 0..self.cols / SUB_BLOCK,
            quants: &mut self.quants[..len],
            scales: &mut self.scales[..len],
            sums: &mut self.sums[..len],
            first_sums: &mut self.first_sums[..len],
            scaled_sums: &mut self.scaled_sums[..len],
        }
    }

    /// Sub-blocks of all tokens; the vectors may be longer.
    fn len(&self) -> usize {
        self.cols / SUB_BLOCK * self.tokens
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `[cols / 32][tokens][32]`
    pub fn quants(&self) -> &[i8] {
        self.quants[..self.len()].as_flattened()
    }

    /// `[cols / 32][tokens]`
    pub fn scales(&self) -> &[f32] {
        &self.scales[..self.len()]
    }

    /// `[cols / 32][tokens]`
    pub fn sums(&self) -> &[i32] {
        &self.sums[..self.len()]
    }

    /// Sets the shape; the contents are whatever they were until `Kernels::quantize` fills them.
    pub fn resize(&mut self, cols: usize, tokens: usize) {
        assert!(
            cols.is_multiple_of(SUB_BLOCK),
            "{cols} columns are not whole sub-blocks"
        );
        (self.cols, self.tokens) = (cols, tokens);
        let len = self.len();
        if self.quants.len() < len {
            self.quants.resize(len, [0; SUB_BLOCK]);
            self.scales.resize(len, 0.0);
            self.sums.resize(len, 0);
            self.first_sums.resize(len, 0);
            self.scaled_sums.resize(len, 0.0);
        }
    }
}

impl<'a> Int8Part<'a> {
    /// Before sub-block `at`, and from it on.
    fn split_at(self, at: usize, tokens: usize) -> (Self, Self) {
        let Range { start, end } = self.sub_blocks;
        let len = (at - start) * tokens;
        let (quants, quants_after) = self.quants.split_at_mut(len);
        let (scales, scales_after) = self.scales.split_at_mut(len);
        let (sums, sums_after) = self.sums.split_at_mut(len);
        let (first_sums, first_sums_after) = self.first_sums.split_at_mut(len);
        let (scaled_sums, scaled_sums_after) = self.scaled_sums.split_at_mut(len);
        let before = Self {
            sub_blocks: start..at,
            quants,
            scales,
            sums,
            first_sums,
            scaled_sums,
        };
        let after = Self {
            sub_blocks: at..end,
            quants: quants_after,
            scales: scales_after,
            sums: sums_after,
            first_sums: first_sums_after,
            scaled_sums: scaled_sums_after,
        };
        (before, after)
    }
}

impl Kernels {
    /// Quantizes a source's panels into `out`, which takes their shape.
    ///
    /// source: an even number of panels. Sets `poison[token]` where a column is not finite; never clears one. Such a
    /// sub-block counts as zeros.
    pub fn quantize(&self, source: impl PanelSource, out: &mut Int8Rows, poison: &mut [bool]) {
        out.resize(source.num_panels() * LANES, source.tokens());
        self.quantize_part(source, &mut out.whole(), poison);
    }

    /// [`Kernels::quantize`] of some sub-blocks, into rows that have their shape already.
    ///
    /// source: of all sub-blocks
    pub fn quantize_part(&self, source: impl PanelSource, out: &mut Int8Part<'_>, poison: &mut [bool]) {
        assert_eq!(poison.len(), source.tokens());
        self.run(Quantize { source, out, poison });
    }
}

struct Quantize<'a, 'p, P> {
    source: P,
    out: &'a mut Int8Part<'p>,
    poison: &'a mut [bool],
}

impl<P: PanelSource> Kernel for Quantize<'_, '_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (source, out, tokens) = (self.source, self.out, self.poison.len());
        for (index, sub_block) in out.sub_blocks.clone().enumerate() {
            for token in 0..tokens {
                let low = source.load(s, 2 * sub_block, token);
                let high = source.load(s, 2 * sub_block + 1, token);
                let at = index * tokens + token;
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
