//! The float types that weights and cells are made of.

use super::{LANES, simd::Simd};

/// A float in memory, little endian.
pub(super) trait Element {
    const BYTES: usize;

    /// 16 elements from byte `at`.
    fn load<S: Simd>(s: S, bytes: &[u8], at: usize) -> S::F;

    /// 32 elements from byte `at`.
    fn load_pair<S: Simd>(s: S, bytes: &[u8], at: usize) -> [S::F; 2];

    /// Rounds to 16 elements from byte `at`, and returns whether all are finite.
    fn store<S: Simd>(s: S, x: S::F, bytes: &mut [u8], at: usize) -> bool;
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

    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, bytes: &mut [u8], at: usize) -> bool {
        let mut lanes = [0.0; LANES];
        s.store(x, &mut lanes);
        for (lane, bytes) in lanes.iter().zip(bytes[at..][..4 * LANES].as_chunks_mut().0) {
            *bytes = lane.to_le_bytes();
        }
        s.all_finite(x)
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

    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, bytes: &mut [u8], at: usize) -> bool {
        let bytes = bytes[at..].first_chunk_mut::<{ 2 * LANES }>().expect("16 elements");
        s.store_f16(x, bytes);
        s.all_finite(s.load_f16(bytes))
    }
}
