//! The float types of weights; `cell_element` has what cells are made of.

use super::{LANES, simd::Simd};

/// A float in memory, little endian.
pub(super) trait Element {
    const BYTES: usize;

    /// 16 elements from byte `at`.
    fn load<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F;

    /// 32 elements from byte `at`.
    fn load_pair<S: Simd>(s: S, bytes: &[u8], at: usize) -> [S::F; 2];
}

pub(super) struct F32;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F {
        s.load_f32_bytes(bytes[at..].first_chunk::<{ 4 * LANES }>().expect("16 elements"))
    }

    #[inline(always)]
    fn load_pair<S: Simd>(s: S, bytes: &[u8], at: usize) -> [S::F; 2] {
        [Self::load(s, bytes, at), Self::load(s, bytes, at + 4 * LANES)]
    }
}

pub(super) struct BF16;

impl Element for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F {
        s.load_bf16(bytes[at..].first_chunk::<{ 2 * LANES }>().expect("16 elements"))
    }

    #[inline(always)]
    fn load_pair<S: Simd>(s: S, bytes: &[u8], at: usize) -> [S::F; 2] {
        [Self::load(s, bytes, at), Self::load(s, bytes, at + 2 * LANES)]
    }
}

pub(super) struct F16;

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F {
        s.load_f16(bytes[at..].first_chunk::<{ 2 * LANES }>().expect("16 elements"))
    }

    #[inline(always)]
    fn load_pair<S: Simd>(s: S, bytes: &[u8], at: usize) -> [S::F; 2] {
        s.load_f16_pair(bytes[at..].first_chunk().expect("32 elements"))
    }
}
