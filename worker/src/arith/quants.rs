//! The integer weights of a sub-block, and their exact dots with int8 activations.
//!
//! `packed_format` says how each kind lies in memory. All are unsigned: what is subtracted from them, a zero point, sits in
//! the start value of the sums.

use super::{
    SUB_BLOCK,
    packed_format::{NIBBLES_BYTES, PLANE_BYTES},
    simd::{Simd, in_order},
};

/// Unsigned weights of 16 rows and 32 columns.
pub(super) trait Quants {
    /// Adds the exact dots of one sub-block.
    ///
    /// x: of each token; sums: of the whole sub-block (HALVES = 1), or of its first and last 16 columns (2).
    fn dots<S: Simd, const HALVES: usize, const N: usize>(
        s: S,
        quants: &[u8],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; HALVES],
    );
}

/// The 64 bytes from `at`; for one token in the order of the calls, which is that of memory.
#[inline(always)]
fn load<S: Simd, const N: usize>(s: S, quants: &[u8], at: usize) -> S::W {
    if N == 1 {
        in_order();
    }
    s.weights(quants[at..].first_chunk().expect("16 rows of four columns"))
}

pub(super) struct Bytes;

impl Quants for Bytes {
    #[inline(always)]
    fn dots<S: Simd, const HALVES: usize, const N: usize>(
        s: S,
        quants: &[u8],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; HALVES],
    ) {
        for quad in 0..8 {
            let weights = load::<S, N>(s, quants, 64 * quad);
            let sums = &mut sums[quad / 4 * (HALVES - 1)];
            for n in 0..N {
                sums[n] = s.dot(sums[n], weights, &x[n].as_chunks::<4>().0[quad]);
            }
        }
    }
}

/// Weights of four bits and, in planes beside the nibbles, BITS more.
pub(super) struct Nibbles<const BITS: usize>;

impl<const BITS: usize> Quants for Nibbles<BITS> {
    #[inline(always)]
    fn dots<S: Simd, const HALVES: usize, const N: usize>(
        s: S,
        quants: &[u8],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; HALVES],
    ) {
        if BITS == 0 {
            return dots_of_nibbles(s, quants, x, sums);
        }
        let mut nibbles = [load::<S, N>(s, quants, 0); 4];
        for quad in 1..4 {
            nibbles[quad] = load::<S, N>(s, quants, 64 * quad);
        }
        let first_plane = load::<S, N>(s, quants, NIBBLES_BYTES);
        let last_plane = load::<S, N>(s, quants, NIBBLES_BYTES + BITS.saturating_sub(1) * PLANE_BYTES);
        for quad in 0..4 {
            let (mut low, mut high) = s.split_nibbles(nibbles[quad]);
            if BITS == 1 {
                low = s.merge_bits(low, first_plane, quad as i32 - 4, 0x10);
                high = s.merge_bits(high, first_plane, quad as i32, 0x10);
            }
            if BITS == 2 {
                low = s.merge_bits(low, first_plane, 2 * quad as i32 - 4, 0x30);
                high = s.merge_bits(high, last_plane, 2 * quad as i32 - 4, 0x30);
            }
            add_quads(s, quad, low, high, x, sums);
        }
    }
}

/// Without high bits: the hottest of all loops.
#[inline(always)]
fn dots_of_nibbles<S: Simd, const HALVES: usize, const N: usize>(
    s: S,
    quants: &[u8],
    x: &[[i8; SUB_BLOCK]; N],
    sums: &mut [[S::I; N]; HALVES],
) {
    for quad in 0..4 {
        let (low, high) = s.split_nibbles(load::<S, N>(s, quants, 64 * quad));
        add_quads(s, quad, low, high, x, sums);
    }
}

/// The dots of four columns and of the four that are 16 further on.
#[inline(always)]
fn add_quads<S: Simd, const HALVES: usize, const N: usize>(
    s: S,
    quad: usize,
    low: S::W,
    high: S::W,
    x: &[[i8; SUB_BLOCK]; N],
    sums: &mut [[S::I; N]; HALVES],
) {
    for n in 0..N {
        let x = x[n].as_chunks::<4>().0;
        sums[0][n] = s.dot_small(sums[0][n], low, &x[quad]);
        let last = &mut sums[HALVES - 1][n];
        *last = s.dot_small(*last, high, &x[quad + 4]);
    }
}
