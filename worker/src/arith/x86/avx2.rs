//! Sixteen lanes as two registers of AVX2, with FMA and F16C.

use std::arch::x86_64::*;

use crate::arith::{
    LANES, fixed,
    reference::PARTIAL_BOUND,
    simd::{Kernel, Simd},
};

/// Proof that this machine has the instructions: only `detect` makes one.
#[derive(Clone, Copy, Debug)]
pub(in crate::arith) struct Avx2(());

impl Avx2 {
    pub(in crate::arith) fn detect() -> Option<Self> {
        let has_all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    /// Runs a kernel compiled for these instructions.
    pub(in crate::arith) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(avx2: Avx2, kernel: K) -> K::Output {
            kernel.run(avx2)
        }
        // SAFETY: `self` exists, so the machine has AVX2, FMA and F16C.
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

/// Lanes 0..8 and 8..16.
type Pair<T> = [T; 2];

#[inline(always)]
fn halves<T, const N: usize>(x: &[T]) -> Pair<&[T; N]> {
    let [low, high] = x.as_chunks::<N>().0 else {
        unreachable!("16 lanes are two registers")
    };
    [low, high]
}

impl Simd for Avx2 {
    type F = Pair<__m256>;
    type I = Pair<__m256i>;
    /// Rows 0..8 and 8..16.
    type W = Pair<__m256i>;

    const TILE_TOKENS: usize = 2;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        intrinsics!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        let [low, high] = halves::<f32, 8>(x);
        intrinsics!([_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())])
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        let [low, high] = out.as_chunks_mut::<8>().0 else {
            unreachable!("16 lanes are two registers")
        };
        intrinsics!({
            _mm256_storeu_ps(low.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), x[1]);
        })
    }

    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 4 * LANES]) -> Self::F {
        let [low, high] = halves::<u8, 32>(x);
        intrinsics!([
            _mm256_loadu_ps(low.as_ptr().cast()),
            _mm256_loadu_ps(high.as_ptr().cast())
        ])
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F {
        let [low, high] = halves::<u8, 16>(x);
        intrinsics!([
            _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
        ])
    }

    #[inline(always)]
    fn load_f16_pair(self, x: &[u8; 4 * LANES]) -> [Self::F; 2] {
        let [low, high] = halves::<u8, 32>(x);
        [self.load_f16(low), self.load_f16(high)]
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F, out: &mut [u8; 2 * LANES]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<16>().0) {
            intrinsics!(_mm_storeu_si128(
                out.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)
            ))
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F {
        halves::<u8, 16>(x).map(|half| {
            intrinsics!({
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(half.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        })
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> Self::F {
        halves::<u8, 8>(x).map(|half| {
            intrinsics!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(
                half.as_ptr().cast()
            ))))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        super::prefetch(address)
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        intrinsics!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        intrinsics!({
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        })
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        intrinsics!([_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])])
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        intrinsics!({
            let mut power = n;
            for half in 0..2 {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n[half]), _mm256_set1_epi32(127));
                power[half] = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
            }
            power
        })
    }

    #[inline(always)]
    fn select_gt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        intrinsics!([
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])),
        ])
    }

    #[inline(always)]
    fn all_finite(self, a: Self::F) -> bool {
        let [low, high] = self.abs(a);
        intrinsics!({
            let max = _mm256_set1_ps(f32::MAX);
            let finite = _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_LE_OQ>(low, max),
                _mm256_cmp_ps::<_CMP_LE_OQ>(high, max),
            );
            _mm256_movemask_ps(finite) == 0xff
        })
    }

    #[inline(always)]
    fn rotate_pairs(self, x: Self::F, cos_sin: Self::F) -> Self::F {
        intrinsics!({
            let mut rotated = x;
            for half in 0..2 {
                let sin_cos = _mm256_permute_ps::<0b10_11_00_01>(cos_sin[half]);
                let second = _mm256_mul_ps(_mm256_movehdup_ps(x[half]), sin_cos);
                rotated[half] = _mm256_fmaddsub_ps(_mm256_moveldup_ps(x[half]), cos_sin[half], second);
            }
            rotated
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        intrinsics!([_mm256_set1_epi32(x); 2])
    }

    #[inline(always)]
    fn i32_to_f32(self, x: Self::I) -> Self::F {
        intrinsics!([_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])])
    }

    #[inline(always)]
    fn to_i8(self, x: Self::F, out: &mut [i8; LANES]) -> i32 {
        let mut quants = [0i32; LANES];
        for (x, quants) in x.into_iter().zip(quants.as_chunks_mut::<8>().0) {
            intrinsics!(_mm256_storeu_si256(quants.as_mut_ptr().cast(), _mm256_cvtps_epi32(x)))
        }
        *out = quants.map(|q| q as i8);
        quants.iter().sum()
    }

    #[inline(always)]
    fn weights(self, x: &[u8; 64]) -> Self::W {
        let [low, high] = halves::<u8, 32>(x);
        intrinsics!([
            _mm256_loadu_si256(low.as_ptr().cast()),
            _mm256_loadu_si256(high.as_ptr().cast())
        ])
    }

    #[inline(always)]
    fn split_nibbles(self, pairs: Self::W) -> (Self::W, Self::W) {
        let (mut low, mut high) = (pairs, pairs);
        intrinsics!({
            let mask = _mm256_set1_epi8(15);
            for half in 0..2 {
                low[half] = _mm256_and_si256(pairs[half], mask);
                high[half] = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs[half]), mask);
            }
        });
        (low, high)
    }

    #[inline(always)]
    fn merge_bits(self, mut low: Self::W, bits: Self::W, shift: i32, mask: u8) -> Self::W {
        intrinsics!({
            let (count, mask) = (_mm_cvtsi32_si128(shift.abs()), _mm256_set1_epi8(mask as i8));
            for half in 0..2 {
                let shifted = if shift < 0 {
                    _mm256_sll_epi16(bits[half], count)
                } else {
                    _mm256_srl_epi16(bits[half], count)
                };
                low[half] = _mm256_or_si256(low[half], _mm256_and_si256(shifted, mask));
            }
        });
        low
    }

    /// In 16-bit products: `maddubs` would saturate, since 2 * 255 * 127 exceeds i16.
    #[inline(always)]
    fn dot(self, mut sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I {
        intrinsics!({
            let x = _mm256_set1_epi32(bytemuck::cast::<[i8; 4], i32>(*x));
            let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let odd_x = _mm256_srai_epi16::<8>(x);
            for half in 0..2 {
                let even = _mm256_and_si256(weights[half], _mm256_set1_epi16(0xff));
                let odd = _mm256_srli_epi16::<8>(weights[half]);
                let dot = _mm256_add_epi32(_mm256_madd_epi16(even, even_x), _mm256_madd_epi16(odd, odd_x));
                sum[half] = _mm256_add_epi32(sum[half], dot);
            }
        });
        sum
    }

    /// `maddubs` cannot saturate here: 2 * 127 * 128 fits i16.
    #[inline(always)]
    fn dot_small(self, mut sum: Self::I, weights: Self::W, x: &[i8; 4]) -> Self::I {
        intrinsics!({
            let x = _mm256_set1_epi32(bytemuck::cast::<[i8; 4], i32>(*x));
            for half in 0..2 {
                let pairs = _mm256_maddubs_epi16(weights[half], x);
                sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        });
        sum
    }

    #[inline(always)]
    fn add_fixed(self, x: Self::F, sums: &mut [i64; LANES]) -> bool {
        let size = self.abs(x);
        let mut all_in_bounds = true;
        for half in 0..2 {
            intrinsics!({
                let in_bounds = _mm256_cmp_ps::<_CMP_LT_OQ>(size[half], _mm256_set1_ps(PARTIAL_BOUND));
                all_in_bounds &= _mm256_movemask_ps(in_bounds) == 0xff;
                let x = _mm256_and_ps(x[half], in_bounds);
                let quarters = [_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)];
                for quarter in 0..2 {
                    // Adding 1.5 * 2^52 rounds |x| < 2^51 to an integer, ties to even, and leaves it in the low bits.
                    let magic = _mm256_set1_pd(6_755_399_441_055_744.0);
                    let x = _mm256_cvtps_pd(quarters[quarter]);
                    let shifted = _mm256_fmadd_pd(x, _mm256_set1_pd((1 << 30) as f64), magic);
                    let fixed = _mm256_sub_epi64(_mm256_castpd_si256(shifted), _mm256_castpd_si256(magic));
                    let sums = &mut sums[8 * half + 4 * quarter..][..4];
                    let sum = _mm256_add_epi64(_mm256_loadu_si256(sums.as_ptr().cast()), fixed);
                    _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
                }
            })
        }
        all_in_bounds
    }

    /// Lane by lane: AVX2 has no conversion from i64.
    #[inline(always)]
    fn fixed_to_f32(self, sums: &[i64; LANES]) -> Self::F {
        self.load(&sums.map(fixed::from_fixed))
    }
}
