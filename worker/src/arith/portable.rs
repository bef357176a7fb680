//! Sixteen lanes without any instruction set in particular.

use half::{bf16, f16};

use super::{
    LANES, fixed, reference,
    simd::{Kernel, Simd},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for i in 0..LANES {
        lanes[i] = f(i);
    }
    lanes
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W = [u8; 64];

    const TILE_TOKENS: usize = 1;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 4 * LANES]) -> Self::F {
        map(|i| f32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F {
        map(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_f16_pair(self, x: &[u8; 4 * LANES]) -> [Self::F; 2] {
        let [low, high] = x.as_chunks().0 else {
            unreachable!("32 elements are two vectors")
        };
        [self.load_f16(low), self.load_f16(high)]
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F, out: &mut [u8; 2 * LANES]) {
        for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = f16::from_f32(*x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F {
        map(|i| bf16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> Self::F {
        map(|i| f32::from(x[i] as i8))
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        map(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        map(|i| a[i].abs())
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        map(|i| a[i].round_ties_even())
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        map(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn select_gt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        map(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn all_finite(self, a: Self::F) -> bool {
        a.iter().all(|a| a.is_finite())
    }

    #[inline(always)]
    fn rotate_pairs(self, x: Self::F, cos_sin: Self::F) -> Self::F {
        let mut out = x;
        for i in (0..LANES).step_by(2) {
            (out[i], out[i + 1]) = reference::rotate_pair((x[i], x[i + 1]), cos_sin[i], cos_sin[i + 1]);
        }
        out
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    fn i32_to_f32(self, x: Self::I) -> Self::F {
        map(|i| x[i] as f32)
    }

    #[inline(always)]
    fn to_i8(self, x: Self::F, out: &mut [i8; LANES]) -> i32 {
        for i in 0..LANES {
            out[i] = x[i].round_ties_even() as i8;
        }
        out.iter().map(|q| i32::from(*q)).sum()
    }

    #[inline(always)]
    fn weights(self, x: &[u8; 64]) -> Self::W {
        *x
    }

    #[inline(always)]
    fn split_nibbles(self, x: Self::W) -> (Self::W, Self::W) {
        let (mut low, mut high) = (x, x);
        for i in 0..x.len() {
            low[i] &= 15;
            high[i] >>= 4;
        }
        (low, high)
    }

    #[inline(always)]
    fn merge_bits(self, mut low: Self::W, bits: Self::W, shift: i32, mask: u8) -> Self::W {
        for (low, bits) in low.iter_mut().zip(bits) {
            *low |= if shift < 0 { bits << -shift } else { bits >> shift } & mask;
        }
        low
    }

    #[inline(always)]
    fn dot(self, mut sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I {
        for (sum, row) in sum.iter_mut().zip(weights.as_chunks::<4>().0) {
            for k in 0..4 {
                *sum += i32::from(row[k]) * i32::from(x[k]);
            }
        }
        sum
    }

    #[inline(always)]
    fn dot_small(self, sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I {
        self.dot(sum, weights, x)
    }

    #[inline(always)]
    fn add_fixed(self, x: Self::F, sums: &mut [i64; LANES]) -> bool {
        let mut all_in_bounds = true;
        for (x, sum) in x.iter().zip(sums) {
            match fixed::to_fixed(*x) {
                Some(fixed) => *sum = sum.wrapping_add(fixed),
                None => all_in_bounds = false,
            }
        }
        all_in_bounds
    }

    #[inline(always)]
    fn fixed_to_f32(self, sums: &[i64; LANES]) -> Self::F {
        sums.map(fixed::from_fixed)
    }
}
