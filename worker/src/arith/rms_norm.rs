//! Root mean square normalization.

use std::ops::Range;

use super::{
    Kernels,
    panel_source::Normed,
    panels::vectors,
    simd::{Kernel, Simd},
};

impl Kernels {
    /// `out = x / rms(x) * weight` for each token.
    ///
    /// x, out: panels of `weight.len()` columns; weight: `[cols]`, a multiple of 16.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, tokens: usize, out: &mut [f32]) {
        assert_eq!(out.len(), x.len());
        let mut scales = vec![0.0; tokens];
        self.rms_scales(x, weight.len(), eps, tokens, 0..tokens, &mut scales);
        self.store_panels(Normed::new(x, &scales, weight), 0, out);
    }

    /// What some rows are to be scaled with before they are weighted: `1 / sqrt(mean(x^2) + eps)`.
    ///
    /// x: panels of `cols` columns, a multiple of 16; out: of the rows of `which`
    pub fn rms_scales(&self, x: &[f32], cols: usize, eps: f32, tokens: usize, which: Range<usize>, out: &mut [f32]) {
        assert_eq!(x.len(), cols * tokens);
        assert_eq!(out.len(), which.len());
        let first = which.start;
        self.run(RmsScales {
            x,
            cols,
            eps,
            tokens,
            first,
            out,
        });
    }
}

struct RmsScales<'a> {
    x: &'a [f32],
    cols: usize,
    eps: f32,
    tokens: usize,
    /// Of the rows of `out`.
    first: usize,
    out: &'a mut [f32],
}

/// Tokens that are looked at together: a panel is then read in whole cache lines that do not evict each other.
const TILE: usize = 8;

impl Kernel for RmsScales<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tiled = self.out.len() / TILE * TILE;
        for first in (0..tiled).step_by(TILE) {
            self.tile::<S, TILE>(s, first);
        }
        for token in tiled..self.out.len() {
            self.tile::<S, 1>(s, token);
        }
    }
}

impl RmsScales<'_> {
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, first: usize) {
        let mut squares = [s.splat(0.0); N];
        for panel in vectors(self.x).chunks_exact(self.tokens) {
            let x = &panel[self.first + first..][..N];
            for i in 0..N {
                let x = s.load(&x[i]);
                squares[i] = s.fma(x, x, squares[i]);
            }
        }
        for i in 0..N {
            let mean = s.sum(squares[i]) / self.cols as f32;
            self.out[first + i] = 1.0 / (mean + self.eps).sqrt();
        }
    }
}
