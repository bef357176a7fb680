//! The exponential function of this arithmetic, over any lanes. `reference::exp` defines it.

use super::simd::Simd;

pub(super) const EXP_MAX: f32 = 88.0;
pub(super) const EXP_MIN: f32 = -87.0;
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has 15 bits, so its product with an exponent is exact.
pub(super) const LN2_HI: f32 = 0.693_145_75;
pub(super) const LN2_LO: f32 = 1.428_606_8e-6;
/// exp(r) for |r| <= ln(2) / 2, highest power first: minimax of the relative error (3e-9 before rounding) with 1 + r kept.
pub(super) const EXP_POLYNOMIAL: [f32; 7] = [
    0.001_381_454,
    0.008_368_745,
    0.041_668_39,
    0.166_665_21,
    0.499_999_94,
    1.0,
    1.0,
];

#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HI), x);
    let r = s.fma(n, s.splat(-LN2_LO), r);
    let mut p = s.splat(EXP_POLYNOMIAL[0]);
    for coefficient in &EXP_POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(*coefficient));
    }
    let y = s.mul(p, s.pow2(n));
    let y = s.select_gt(x, s.splat(EXP_MAX), s.splat(f32::INFINITY), y);
    s.select_gt(s.splat(EXP_MIN), x, s.splat(0.0), y)
}
