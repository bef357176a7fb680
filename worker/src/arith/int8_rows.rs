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

/// Sub-blocks that are quantized together: what one waits for, others fill.
const BATCH: usize = LANES;

impl<P: PanelSource> Kernel for Quantize<'_, '_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let len = self.out.sub_blocks.len() * self.poison.len();
        let mut batch = Batch {
            columns: [[[0.0; LANES]; 2]; BATCH],
            largest: [0.0; BATCH],
        };
        for first in (0..len).step_by(BATCH) {
            let count = BATCH.min(len - first);
            self.take(s, first, count, &mut batch);
            self.give(s, first, count, &batch);
        }
    }
}

/// Some sub-blocks on their way.
struct Batch {
    columns: [[[f32; LANES]; 2]; BATCH],
    /// The largest size in each; those before count if there are fewer.
    largest: [f32; BATCH],
}

impl<P: PanelSource> Quantize<'_, '_, P> {
    /// The columns of sub-blocks from `first` on, as they lie in `out`.
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, count: usize, batch: &mut Batch) {
        let tokens = self.poison.len();
        let (mut sub_block, mut token) = (self.out.sub_blocks.start + first / tokens, first % tokens);
        for (columns, largest) in batch.columns[..count].iter_mut().zip(&mut batch.largest) {
            let low = self.source.load(s, 2 * sub_block, token);
            let high = self.source.load(s, 2 * sub_block + 1, token);
            if s.all_finite(low) & s.all_finite(high) {
                s.store(low, &mut columns[0]);
                s.store(high, &mut columns[1]);
                *largest = s.max_lane(s.max(s.abs(low), s.abs(high)));
            } else {
                *columns = [[0.0; LANES]; 2];
                *largest = 0.0;
                self.poison[token] = true;
            }
            token += 1;
            if token == tokens {
                (sub_block, token) = (sub_block + 1, 0);
            }
        }
    }

    /// A sub-block whose columns are all tiny becomes zeros. Elsewhere `|x * inverse|` exceeds 127 by less than one rounding, so
    /// that the result needs no clamp.
    #[inline(always)]
    fn give<S: Simd>(&mut self, s: S, first: usize, count: usize, batch: &Batch) {
        let (largest, min, zero) = (s.load(&batch.largest), s.splat(QUANTIZE_AMAX_MIN), s.splat(0.0));
        let (mut scales, mut inverses) = ([0.0; BATCH], [0.0; BATCH]);
        let or_zero = |x| s.select_gt(min, largest, zero, x);
        s.store(or_zero(s.div(largest, s.splat(127.0))), &mut scales);
        s.store(or_zero(s.div(s.splat(127.0), largest)), &mut inverses);
        let out = &mut *self.out;
        let which = first..first + count;
        out.scales[which.clone()].copy_from_slice(&scales[..count]);
        let quants = out.quants[which.clone()].iter_mut().zip(&batch.columns);
        let sums = out.sums[which.clone()]
            .iter_mut()
            .zip(&mut out.first_sums[which.clone()]);
        for ((quants, columns), ((sum, first_sum), inverse)) in quants.zip(sums.zip(inverses)) {
            let [low, high] = quants.as_chunks_mut::<LANES>().0 else {
                unreachable!("32 columns are two vectors")
            };
            let inverse = s.splat(inverse);
            *first_sum = s.to_i8(s.mul(s.load(&columns[0]), inverse), low);
            *sum = *first_sum + s.to_i8(s.mul(s.load(&columns[1]), inverse), high);
        }
        for ((scaled, scale), sum) in out.scaled_sums[which.clone()]
            .iter_mut()
            .zip(scales)
            .zip(&out.sums[which])
        {
            *scaled = scale * *sum as f32;
        }
    }
}
