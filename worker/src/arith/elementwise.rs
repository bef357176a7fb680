//! Operations on each element alone: additions to the residual, biases, and the gate of the FFN.

use super::{
    Kernels, LANES,
    exp::exp,
    panels::{vectors, vectors_mut},
    simd::{Kernel, Simd},
};

impl Kernels {
    /// `x += y`, over panels of the same shape.
    pub fn add_assign(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        self.run(AddAssign { x, y });
    }

    /// `x += bias` for each token; an empty bias adds nothing. x: panels of `bias.len()` columns, padded to whole panels.
    pub fn add_bias(&self, x: &mut [f32], bias: &[f32], tokens: usize) {
        if bias.is_empty() {
            return;
        }
        assert_eq!(x.len(), bias.len().next_multiple_of(LANES) * tokens);
        self.run(AddBias { x, bias, tokens });
    }

    /// `x += round(sums)`, over panels of the same shape: exact sums to the residual.
    pub fn add_sums(&self, x: &mut [f32], sums: &[i64]) {
        assert_eq!(x.len(), sums.len());
        self.run(AddSums { x, sums });
    }
}

/// `(gate / (1 + exp(-gate))) * up`
#[inline(always)]
pub(super) fn silu_mul<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    // A difference from +0 would turn -0 into +0, which exp takes for the same; NaN stays NaN.
    let minus_gate = s.sub(s.splat(0.0), gate);
    let sigmoid_denominator = s.add(s.splat(1.0), exp(s, minus_gate));
    s.mul(s.div(gate, sigmoid_denominator), up)
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in vectors_mut(self.x).iter_mut().zip(vectors(self.y)) {
            s.store(s.add(s.load(x), s.load(y)), x);
        }
    }
}

struct AddBias<'a> {
    x: &'a mut [f32],
    bias: &'a [f32],
    tokens: usize,
}

impl Kernel for AddBias<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let panels = vectors_mut(self.x).chunks_exact_mut(self.tokens);
        for (panel, bias) in panels.zip(self.bias.chunks(LANES)) {
            let mut lanes = [0.0; LANES];
            lanes[..bias.len()].copy_from_slice(bias);
            let bias = s.load(&lanes);
            for x in panel {
                s.store(s.add(s.load(x), bias), x);
            }
        }
    }
}

struct AddSums<'a> {
    x: &'a mut [f32],
    sums: &'a [i64],
}

impl Kernel for AddSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sums = self.sums.as_chunks::<LANES>().0;
        for (x, sums) in vectors_mut(self.x).iter_mut().zip(sums) {
            s.store(s.add(s.load(x), s.fixed_to_f32(sums)), x);
        }
    }
}
