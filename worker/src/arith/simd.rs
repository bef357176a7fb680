//! Sixteen lanes, as the kernels see an instruction set.
//!
//! Each operation rounds once, to nearest even, and gives the same bits on every implementation (NaN payloads aside).
//! A value of an implementing type proves that its instructions may be used, so the methods are safe.
//! `max(a, b)` is `if a > b { a } else { b }`: with NaN among the inputs it returns the second.

use super::LANES;

pub(super) trait Simd: Copy {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 u8: four columns of each of 16 rows, `[row][column]`.
    type W: Copy;

    /// Tokens of the largest matmul tile whose sums stay in registers: 1, 2, 4, 6 or 8.
    const TILE_TOKENS: usize;

    /// Runs a kernel as a function of its own, where the registers are all its own: within a larger one, sums that would just
    /// fit give way to constants of the rest.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    /// 16 f32, little endian.
    fn load_f32_bytes(self, x: &[u8; 4 * LANES]) -> Self::F;
    /// 16 f16, little endian.
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F;
    /// 32 f16, little endian. One load: a line of memory is asked for once, in the order of the stream.
    fn load_f16_pair(self, x: &[u8; 4 * LANES]) -> [Self::F; 2];
    fn store_f16(self, x: Self::F, out: &mut [u8; 2 * LANES]);
    /// 16 bf16, little endian.
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F;
    /// 16 i8.
    fn load_i8(self, x: &[u8; LANES]) -> Self::F;
    /// Hints that memory will be read soon, into the second cache; any address will do.
    fn prefetch(self, address: *const u8);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for integral n in -126..=127; any value outside.
    fn pow2(self, n: Self::F) -> Self::F;
    /// Where `a > b` x, else y.
    fn select_gt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    fn all_finite(self, a: Self::F) -> bool;
    /// Rotates the pairs (2i, 2i+1) of x by the interleaved (cos, sin) pairs of `cos_sin`.
    fn rotate_pairs(self, x: Self::F, cos_sin: Self::F) -> Self::F;

    fn splat_i32(self, x: i32) -> Self::I;
    fn i32_to_f32(self, x: Self::I) -> Self::F;
    /// Rounds integral-valued or fractional lanes within +-127 to i8 (ties to even), and their sum.
    fn to_i8(self, x: Self::F, out: &mut [i8; LANES]) -> i32;

    fn weights(self, x: &[u8; 64]) -> Self::W;
    /// The low and the high nibbles of 64 bytes.
    fn split_nibbles(self, x: Self::W) -> (Self::W, Self::W);
    /// `low | (bits >> shift) & mask` byte by byte, for shifts that move no bit of the mask across a byte's border; a
    /// negative shift goes to the left.
    fn merge_bits(self, low: Self::W, bits: Self::W, shift: i32, mask: u8) -> Self::W;
    /// Adds to each row the exact dot of its four unsigned columns with `x`.
    fn dot(self, sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I;
    /// As `dot`, for weights of at most 127.
    fn dot_small(self, sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I;

    /// Adds `round(x * 2^30)` to the sums; lanes that are not finite or at least 2^20 in size add 0 and make it return false.
    fn add_fixed(self, x: Self::F, sums: &mut [i64; LANES]) -> bool;
    /// As `add_fixed` for each of N tokens, where one look tells that all is below 2^20 in size. Otherwise, or where a look at
    /// each costs no more, it adds nothing and returns false.
    #[inline(always)]
    fn add_fixed_in_bounds<const N: usize>(self, _x: &[Self::F; N], _sums: &mut [[i64; LANES]; N]) -> bool {
        false
    }
    /// `((sum as f64) * 2^-30) as f32`
    fn fixed_to_f32(self, sums: &[i64; LANES]) -> Self::F;

    /// The fixed tree: lane l takes lane l + 8, then + 4, + 2, + 1.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        super::panels::sum_tree(lanes)
    }

    /// The largest lane; any of the lanes if one is NaN.
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] {
                    lanes[i]
                } else {
                    lanes[i + half]
                };
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Keeps the compiler from moving loads from one side to the other. Where it unrolls a loop over a record of weights, it
/// would read the record backwards, and the hardware fetches ahead in the order of the reads.
#[inline(always)]
pub(super) fn in_order() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

/// Work that can run on any instruction set. `run` and all it calls must be `#[inline(always)]`: that is how the code comes
/// to be compiled for the instructions of `S`.
pub(super) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}
