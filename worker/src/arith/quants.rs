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
    /// quants: of each row group; x: of each token; sums: of the whole sub-block (HALVES = 1), or of its first and last 16
    /// columns (2).
    fn dots<S: Simd, const HALVES: usize, const G: usize, const N: usize>(
        s: S,
        quants: [&[u8]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[[S::I; N]; G]; HALVES],
    );
}

/// The 64 bytes from `at` of each.
#[inline(always)]
fn load_each<S: Simd, const G: usize>(s: S, quants: [&[u8]; G], at: usize) -> [S::W; G] {
    let load = |quants: &[u8]| s.weights(quants[at..].first_chunk().expect("16 rows of four columns"));
    let mut loaded = [load(quants[0]); G];
    for g in 1..G {
        loaded[g] = load(quants[g]);
    }
    loaded
}

pub(super) struct Bytes;

impl Quants for Bytes {
    #[inline(always)]
    fn dots<S: Simd, const HALVES: usize, const G: usize, const N: usize>(
        s: S,
        quants: [&[u8]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[[S::I; N]; G]; HALVES],
    ) {
        for quad in 0..8 {
            if G == 1 {
                in_order();
            }
            let weights = load_each(s, quants, 64 * quad);
            let sums = &mut sums[quad / 4 * (HALVES - 1)];
            for n in 0..N {
                let x = &x[n].as_chunks::<4>().0[quad];
                for g in 0..G {
                    sums[g][n] = s.dot(sums[g][n], weights[g], x);
                }
            }
        }
    }
}

/// Weights of four bits and, in planes beside the nibbles, BITS more.
pub(super) struct Nibbles<const BITS: usize>;

impl<const BITS: usize> Quants for Nibbles<BITS> {
    #[inline(always)]
    fn dots<S: Simd, const HALVES: usize, const G: usize, const N: usize>(
        s: S,
        quants: [&[u8]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[[S::I; N]; G]; HALVES],
    ) {
        if BITS == 0 {
            return dots_of_nibbles(s, quants, x, sums);
        }
        let first_plane = load_each(s, quants, NIBBLES_BYTES);
        let last_plane = load_each(s, quants, NIBBLES_BYTES + BITS.saturating_sub(1) * PLANE_BYTES);
        for quad in 0..4 {
            let mut low = load_each(s, quants, 64 * quad);
            let mut high = low;
            for g in 0..G {
                (low[g], high[g]) = s.split_nibbles(low[g]);
                if BITS == 1 {
                    low[g] = s.merge_bits(low[g], first_plane[g], quad as i32 - 4, 0x10);
                    high[g] = s.merge_bits(high[g], first_plane[g], quad as i32, 0x10);
                }
                if BITS == 2 {
                    low[g] = s.merge_bits(low[g], first_plane[g], 2 * quad as i32 - 4, 0x30);
                    high[g] = s.merge_bits(high[g], last_plane[g], 2 * quad as i32 - 4, 0x30);
                }
            }
            for n in 0..N {
                let x = x[n].as_chunks::<4>().0;
                for g in 0..G {
                    sums[0][g][n] = s.dot_small(sums[0][g][n], low[g], &x[quad]);
                    let last = &mut sums[HALVES - 1][g][n];
                    *last = s.dot_small(*last, high[g], &x[quad + 4]);
                }
            }
        }
    }
}

/// Without high bits: the hottest of all loops.
#[inline(always)]
fn dots_of_nibbles<S: Simd, const HALVES: usize, const G: usize, const N: usize>(
    s: S,
    quants: [&[u8]; G],
    x: &[[i8; SUB_BLOCK]; N],
    sums: &mut [[[S::I; N]; G]; HALVES],
) {
    for quad in 0..4 {
        if G == 1 {
            in_order();
        }
        let mut low = load_each(s, quants, 64 * quad);
        let mut high = low;
        for g in 0..G {
            (low[g], high[g]) = s.split_nibbles(low[g]);
        }
        for n in 0..N {
            let x = x[n].as_chunks::<4>().0;
            for g in 0..G {
                sums[0][g][n] = s.dot_small(sums[0][g][n], low[g], &x[quad]);
                sums[HALVES - 1][g][n] = s.dot_small(sums[HALVES - 1][g][n], high[g], &x[quad + 4]);
            }
        }
    }
}
