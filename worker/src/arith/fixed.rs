//! Row-parallel sums: partials of units as integers, so that their grouping over threads and ranks cannot matter.

use super::{
    Kernels, LANES,
    panels::{vectors, vectors_mut},
    reference,
    simd::{Kernel, Simd},
};

pub(super) use reference::{from_fixed, to_fixed};

impl Kernels {
    /// The rounding of reduced sums to f32. Both slices: reduce panels, `[rows / 16][tokens][16]`.
    pub fn finish_reduce(&self, sums: &[i64], out: &mut [f32]) {
        assert_eq!(sums.len(), out.len());
        self.run(FinishReduce { sums, out });
    }

    /// Adds values, rounded at 2^-30, to reduce panels of the same shape: an embedding row from its owner.
    ///
    /// Returns false if a value is not finite or at least 2^20 in size; it added 0, and its token is poisoned.
    #[must_use]
    pub fn accumulate_fixed(&self, values: &[f32], sums: &mut [i64]) -> bool {
        assert_eq!(values.len(), sums.len());
        self.run(AccumulateFixed { values, sums })
    }
}

struct FinishReduce<'a> {
    sums: &'a [i64],
    out: &'a mut [f32],
}

impl Kernel for FinishReduce<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sums = self.sums.as_chunks::<LANES>().0;
        for (sums, out) in sums.iter().zip(vectors_mut(self.out)) {
            s.store(s.fixed_to_f32(sums), out);
        }
    }
}

struct AccumulateFixed<'a> {
    values: &'a [f32],
    sums: &'a mut [i64],
}

impl Kernel for AccumulateFixed<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let mut all_in_bounds = true;
        for (values, sums) in vectors(self.values).iter().zip(self.sums.as_chunks_mut::<LANES>().0) {
            all_in_bounds &= s.add_fixed(s.load(values), sums);
        }
        all_in_bounds
    }
}
