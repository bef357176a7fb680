//! From exact sums to floats, and which rank rounds what.

use std::ops::Range;

use crate::arith::{Kernels, LANES};

/// The grid on which unit partials were rounded.
const GRID: f64 = 1.0 / (1_u64 << 30) as f64;

/// Slices begin at multiples of this, so that two ranks never share a cache line of floats.
const SLICE_ALIGNMENT: usize = 16;

/// The float that an exact sum stands for: one rounding, whoever does it.
#[inline]
pub(super) fn round_sum(sum: i64) -> f32 {
    (sum as f64 * GRID) as f32
}

/// Rounds exact sums to floats: `((sum as f64) * 2^-30) as f32`.
///
/// # Panics
/// If the lengths differ.
pub fn round_sums(sums: &[i64], out: &mut [f32]) {
    assert_eq!(sums.len(), out.len(), "one float for each sum");
    let whole = sums.len() / LANES * LANES;
    Kernels::best().finish_reduce(&sums[..whole], &mut out[..whole]);
    for (target, &sum) in out[whole..].iter_mut().zip(&sums[whole..]) {
        *target = round_sum(sum);
    }
}

/// The part of `0..len` that `rank` sums and rounds for all. The slices of all ranks cover every element once; the
/// last ones may be empty.
pub(super) fn slice_of(rank: usize, world_size: usize, len: usize) -> Range<usize> {
    let slice_len = len.div_ceil(world_size).next_multiple_of(SLICE_ALIGNMENT);
    (rank * slice_len).min(len)..((rank + 1) * slice_len).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_follows_the_plain_definition() {
        for sum in [0, 1, -1, 1 << 30, (1 << 53) + 1, i64::MAX, i64::MIN] {
            assert_eq!(
                round_sum(sum).to_bits(),
                (((sum as f64) * 2f64.powi(-30)) as f32).to_bits()
            );
        }
        for len in [0, 1, 16, 35] {
            let sums: Vec<i64> = (0..len).map(|i| (i * i - 300) << 24).collect();
            let mut out = vec![0.0; sums.len()];
            round_sums(&sums, &mut out);
            assert_eq!(out, sums.into_iter().map(round_sum).collect::<Vec<_>>());
        }
    }

    #[test]
    fn slices_cover_every_element_once() {
        for world_size in 1..=7 {
            for len in [0, 1, 15, 16, 17, 576, 577, 99_999] {
                let covered: Vec<usize> = (0..world_size)
                    .flat_map(|rank| slice_of(rank, world_size, len))
                    .collect();
                assert_eq!(covered, (0..len).collect::<Vec<_>>());
            }
        }
    }
}
