//! The exponential: its accuracy, and the same bits in all lanes.

use super::inputs::{all_kernels, assert_same_bits};
use crate::arith::{
    LANES,
    exp::exp,
    reference,
    simd::{Kernel, Simd},
};

struct Exp([f32; LANES]);

impl Kernel for Exp {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> [f32; LANES] {
        s.store(exp(s, s.load(&self.0)), &mut self.0);
        self.0
    }
}

/// Bit patterns over the whole range, and around the edges.
fn arguments() -> Vec<f32> {
    let edges = [88.0f32, -87.0, 0.0, -0.0, 0.34657, -0.34657];
    let near = edges
        .iter()
        .flat_map(|edge| (0..40).map(|i| f32::from_bits(edge.to_bits().wrapping_add(i).wrapping_sub(20))));
    let special = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN];
    let swept = (0..=u32::MAX).step_by(2003).map(f32::from_bits);
    let mut all: Vec<f32> = near.chain(special).chain(swept).collect();
    all.resize(all.len().next_multiple_of(LANES), 1.0);
    all
}

#[test]
fn exp_gives_the_definitions_bits_in_every_lane() {
    let arguments = arguments();
    for kernels in all_kernels() {
        for x in arguments.as_chunks::<LANES>().0 {
            assert_same_bits(
                &kernels.run(Exp(*x)),
                &x.map(reference::exp),
                &format!("{} {x:?}", kernels.isa()),
            );
        }
    }
}

#[test]
fn exp_is_within_two_ulp_of_exact() {
    for x in arguments().into_iter().filter(|x| (-87.0..=88.0).contains(x)) {
        let exact = libm::exp(f64::from(x));
        let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
        let error = (f64::from(reference::exp(x)) - exact).abs() / ulp;
        assert!(error < 2.0, "exp({x:e}) is off by {error} ulp");
    }
}

#[test]
fn exp_saturates_and_keeps_nan() {
    assert_eq!(reference::exp(88.00001), f32::INFINITY);
    assert_eq!(reference::exp(-87.00001), 0.0);
    assert_eq!(reference::exp(0.0), 1.0);
    assert_eq!(reference::exp(-0.0), 1.0);
    assert!(reference::exp(f32::NAN).is_nan());
}
