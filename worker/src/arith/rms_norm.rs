//! Root mean square normalization.

use super::{
    Kernels,
    panels::{vectors, vectors_mut},
    simd::{Kernel, Simd},
};

impl Kernels {
    /// `out = x / rms(x) * weight` for each token.
    ///
    /// x, out: panels of `weight.len()` columns; weight: `[cols]`, a multiple of 16.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, tokens: usize, out: &mut [f32]) {
        assert_eq!(x.len(), weight.len() * tokens);
        assert_eq!(out.len(), x.len());
        self.run(RmsNorm {
            x,
            weight,
            eps,
            tokens,
            out,
        });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    tokens: usize,
    out: &'a mut [f32],
}

/// Tokens that are normalized together: a panel is then read in whole cache lines that do not evict each other.
const TILE: usize = 8;

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tiled = self.tokens / TILE * TILE;
        for first in (0..tiled).step_by(TILE) {
            self.tile::<S, TILE>(s, first);
        }
        for token in tiled..self.tokens {
            self.tile::<S, 1>(s, token);
        }
    }
}

impl RmsNorm<'_> {
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, first: usize) {
        let x = vectors(self.x);
        let weights = vectors(self.weight);
        let mut squares = [s.splat(0.0); N];
        for panel in 0..weights.len() {
            let x = &x[panel * self.tokens + first..][..N];
            for i in 0..N {
                let x = s.load(&x[i]);
                squares[i] = s.fma(x, x, squares[i]);
            }
        }
        let mut r = [s.splat(0.0); N];
        for i in 0..N {
            let mean = s.sum(squares[i]) / self.weight.len() as f32;
            r[i] = s.splat(1.0 / (mean + self.eps).sqrt());
        }
        let out = vectors_mut(self.out);
        for (panel, weight) in weights.iter().enumerate() {
            let at = panel * self.tokens + first;
            let (x, out) = (&x[at..][..N], &mut out[at..][..N]);
            let weight = s.load(weight);
            for i in 0..N {
                s.store(s.mul(s.mul(s.load(&x[i]), r[i]), weight), &mut out[i]);
            }
        }
    }
}
