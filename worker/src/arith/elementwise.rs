//! Operations on each element alone: the residual addition and the gate of the FFN.

use super::{
    Kernels,
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

    /// `out = (gate / (1 + exp(-gate))) * up`, over panels of the same shape.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len());
        assert_eq!(gate.len(), out.len());
        self.run(SiluMul { gate, up, out });
    }
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

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gates, ups, outs) = (vectors(self.gate), vectors(self.up), vectors_mut(self.out));
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            let gate = s.load(gate);
            // A difference from +0 would turn -0 into +0, which exp takes for the same; NaN stays NaN.
            let minus_gate = s.sub(s.splat(0.0), gate);
            let sigmoid_denominator = s.add(s.splat(1.0), exp(s, minus_gate));
            s.store(s.mul(s.div(gate, sigmoid_denominator), s.load(up)), out);
        }
    }
}
