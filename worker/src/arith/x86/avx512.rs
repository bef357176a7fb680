//! Sixteen lanes as one register of AVX-512 (F, BW, DQ, VL, VNNI).

use std::arch::x86_64::*;

use crate::arith::{
    LANES,
    reference::PARTIAL_BOUND,
    simd::{Kernel, Simd},
};

/// Proof that this machine has the instructions: only `detect` makes one.
#[derive(Clone, Copy, Debug)]
pub(in crate::arith) struct Avx512(());

impl Avx512 {
    pub(in crate::arith) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has_all.then_some(Self(()))
    }

    /// Runs a kernel compiled for these instructions.
    pub(in crate::arith) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: Kernel>(avx512: Avx512, kernel: K) -> K::Output {
            kernel.run(avx512)
        }
        // SAFETY: `self` exists, so the machine has the AVX-512 parts, and with them AVX2, FMA and F16C.
        unsafe { compiled(self, kernel) }
    }
}

/// Calls intrinsics that touch no memory but their operands.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` is the proof that the machine has the instructions; references are read or written whole.
        unsafe { $($body)* }
    };
}

impl Avx512 {
    /// Adds lanes below 2^63 in size, each rounded to the nearest integer, ties to even.
    #[inline(always)]
    fn add_rounded(self, x: __m512, sums: &mut [i64; LANES]) {
        intrinsics!({
            let low = _mm512_cvtps_epi64(_mm512_castps512_ps256(x));
            let high = _mm512_cvtps_epi64(_mm512_extractf32x8_ps::<1>(x));
            let [sums_low, sums_high] = sums.as_chunks_mut::<8>().0 else {
                unreachable!("16 lanes are two registers")
            };
            for (rounded, sums) in [(low, sums_low), (high, sums_high)] {
                let sum = _mm512_add_epi64(_mm512_loadu_si512(sums.as_ptr().cast()), rounded);
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
            }
        })
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type W = __m512i;

    const TILE_TOKENS: usize = 8;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        intrinsics!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(out.as_mut_ptr(), x))
    }

    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 4 * LANES]) -> __m512 {
        intrinsics!(_mm512_loadu_ps(x.as_ptr().cast()))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_f16_pair(self, x: &[u8; 4 * LANES]) -> [__m512; 2] {
        intrinsics!({
            let both = _mm512_loadu_si512(x.as_ptr().cast());
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(both)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(both)),
            ]
        })
    }

    #[inline(always)]
    fn store_f16(self, x: __m512, out: &mut [u8; 2 * LANES]) {
        intrinsics!(_mm256_storeu_si256(
            out.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        ))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> __m512 {
        intrinsics!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> __m512 {
        intrinsics!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
            x.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        super::prefetch(address)
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        intrinsics!(_mm512_abs_ps(a))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        intrinsics!({
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn select_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        intrinsics!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x))
    }

    #[inline(always)]
    fn all_finite(self, a: __m512) -> bool {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(a), _mm512_set1_ps(f32::MAX)) == u16::MAX)
    }

    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        intrinsics!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    fn rotate_pairs(self, x: __m512, cos_sin: __m512) -> __m512 {
        intrinsics!({
            let sin_cos = _mm512_permute_ps::<0b10_11_00_01>(cos_sin);
            _mm512_fmaddsub_ps(
                _mm512_moveldup_ps(x),
                cos_sin,
                _mm512_mul_ps(_mm512_movehdup_ps(x), sin_cos),
            )
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        intrinsics!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn i32_to_f32(self, x: __m512i) -> __m512 {
        intrinsics!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn to_i8(self, x: __m512, out: &mut [i8; LANES]) -> i32 {
        intrinsics!({
            let quants = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(out.as_mut_ptr().cast(), quants);
            let fours = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), quants);
            let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b01_00_11_10>(fours));
            _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)))
        })
    }

    #[inline(always)]
    fn weights(self, x: &[u8; 64]) -> __m512i {
        intrinsics!(_mm512_loadu_si512(x.as_ptr().cast()))
    }

    #[inline(always)]
    fn split_nibbles(self, x: __m512i) -> (__m512i, __m512i) {
        intrinsics!({
            let low = _mm512_set1_epi8(15);
            (
                _mm512_and_si512(x, low),
                _mm512_and_si512(_mm512_srli_epi16::<4>(x), low),
            )
        })
    }

    #[inline(always)]
    fn merge_bits(self, low: __m512i, bits: __m512i, shift: i32, mask: u8) -> __m512i {
        intrinsics!({
            let count = _mm_cvtsi32_si128(shift.abs());
            let shifted = if shift < 0 {
                _mm512_sll_epi16(bits, count)
            } else {
                _mm512_srl_epi16(bits, count)
            };
            _mm512_or_si512(low, _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8)))
        })
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, weights: __m512i, x: &[i8; 4]) -> __m512i {
        intrinsics!(_mm512_dpbusd_epi32(
            sum,
            weights,
            _mm512_set1_epi32(bytemuck::cast::<[i8; 4], i32>(*x))
        ))
    }

    #[inline(always)]
    fn dot_small(self, sum: __m512i, weights: __m512i, x: &[i8; 4]) -> __m512i {
        self.dot(sum, weights, x)
    }

    #[inline(always)]
    fn add_fixed(self, x: __m512, sums: &mut [i64; LANES]) -> bool {
        intrinsics!({
            let bound = _mm512_set1_ps(PARTIAL_BOUND);
            let in_bounds = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), bound);
            // Scaling by a power of two is exact, also up from denormals; `add_rounded` rounds to nearest even.
            self.add_rounded(
                _mm512_maskz_mul_ps(in_bounds, x, _mm512_set1_ps((1 << 30) as f32)),
                sums,
            );
            in_bounds == u16::MAX
        })
    }

    #[inline(always)]
    fn add_fixed_in_bounds<const N: usize>(self, x: &[__m512; N], sums: &mut [[i64; LANES]; N]) -> bool {
        intrinsics!({
            // Sizes compare as their bits do, and what is not finite is above all bounds.
            let size = |x| _mm512_castps_si512(_mm512_abs_ps(x));
            let mut largest = _mm512_setzero_si512();
            for n in 0..N {
                largest = _mm512_max_epu32(largest, size(x[n]));
            }
            if _mm512_cmpge_epu32_mask(largest, size(_mm512_set1_ps(PARTIAL_BOUND))) != 0 {
                return false;
            }
            for n in 0..N {
                self.add_rounded(_mm512_mul_ps(x[n], _mm512_set1_ps((1 << 30) as f32)), &mut sums[n]);
            }
            true
        })
    }

    #[inline(always)]
    fn fixed_to_f32(self, sums: &[i64; LANES]) -> __m512 {
        intrinsics!({
            let unit = _mm512_set1_pd(1.0 / (1u64 << 30) as f64);
            let [low, high] = sums.as_chunks::<8>().0 else {
                unreachable!("16 lanes are two registers")
            };
            let low = _mm512_mul_pd(_mm512_cvtepi64_pd(_mm512_loadu_si512(low.as_ptr().cast())), unit);
            let high = _mm512_mul_pd(_mm512_cvtepi64_pd(_mm512_loadu_si512(high.as_ptr().cast())), unit);
            let (low, high) = (_mm512_cvtpd_ps(low), _mm512_cvtpd_ps(high));
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
        })
    }
}
