//! Tiles of quantized weights with int8 activations: exact integer dots per sub-block, scaled and added in order.

use kvasir_model::WeightType;

use super::{
    Int8Rows, SUB_BLOCK,
    element::{Element, F16},
    matmul::{TileFormat, slices},
    packed_format::{Q8_0_ZERO_POINT, SCALES_BYTES, sub_block_bytes},
    simd::Simd,
};

/// Int8 tiles of weights in format Q.
pub(super) struct Int8Tile<Q>(std::marker::PhantomData<Q>);

/// The parts of a quantized format that differ.
pub(super) trait QuantFormat {
    const WEIGHT_TYPE: WeightType;
    /// What was added to make the quants unsigned.
    const ZERO_POINT: i32;
    const HAS_MIN: bool;

    /// Adds the exact dots of one sub-block. quants: of each row group; x: of each token.
    fn dots<S: Simd, const G: usize, const N: usize>(
        s: S,
        quants: [&[[u8; 64]]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; G],
    );
}

pub(super) struct Q8_0;

impl QuantFormat for Q8_0 {
    const WEIGHT_TYPE: WeightType = WeightType::Q8_0;
    const ZERO_POINT: i32 = Q8_0_ZERO_POINT;
    const HAS_MIN: bool = false;

    #[inline(always)]
    fn dots<S: Simd, const G: usize, const N: usize>(
        s: S,
        quants: [&[[u8; 64]]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; G],
    ) {
        for quad in 0..8 {
            let mut weights = [s.weights(&quants[0][quad]); G];
            for g in 1..G {
                weights[g] = s.weights(&quants[g][quad]);
            }
            for n in 0..N {
                let x = &x[n].as_chunks::<4>().0[quad];
                for g in 0..G {
                    sums[g][n] = s.dot(sums[g][n], weights[g], x);
                }
            }
        }
    }
}

pub(super) struct Q4_1;

impl QuantFormat for Q4_1 {
    const WEIGHT_TYPE: WeightType = WeightType::Q4_1;
    const ZERO_POINT: i32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn dots<S: Simd, const G: usize, const N: usize>(
        s: S,
        quants: [&[[u8; 64]]; G],
        x: &[[i8; SUB_BLOCK]; N],
        sums: &mut [[S::I; N]; G],
    ) {
        for quad in 0..4 {
            let mut weights = [s.nibbles(&quants[0][quad]); G];
            for g in 1..G {
                weights[g] = s.nibbles(&quants[g][quad]);
            }
            for n in 0..N {
                let x = x[n].as_chunks::<4>().0;
                for g in 0..G {
                    sums[g][n] = s.dot_nibbles(sums[g][n], weights[g].0, &x[quad]);
                    sums[g][n] = s.dot_nibbles(sums[g][n], weights[g].1, &x[quad + 4]);
                }
            }
        }
    }
}

impl<Q: QuantFormat> TileFormat for Int8Tile<Q> {
    type Activations<'a> = &'a Int8Rows;

    #[inline(always)]
    fn tile<S: Simd, const G: usize, const N: usize>(
        s: S,
        groups: [&[u8]; G],
        sub_blocks: usize,
        x: &Int8Rows,
        first_sub_block: usize,
        tokens: usize,
        first_token: usize,
    ) -> [[S::F; N]; G] {
        let bytes = sub_block_bytes(Q::WEIGHT_TYPE);
        let mut sums = [[s.splat(0.0); N]; G];
        for pair in 0..sub_blocks / 2 {
            let records = slices(groups, 2 * pair * bytes, 2 * bytes);
            let at = (first_sub_block + 2 * pair) * tokens + first_token;
            add_sub_block::<S, Q, G, N, 2>(s, records, 0, x, at, &mut sums);
            add_sub_block::<S, Q, G, N, 2>(s, records, 1, x, at + tokens, &mut sums);
        }
        if !sub_blocks.is_multiple_of(2) {
            let records = slices(groups, (sub_blocks - 1) * bytes, bytes);
            let at = (first_sub_block + sub_blocks - 1) * tokens + first_token;
            add_sub_block::<S, Q, G, N, 1>(s, records, 0, x, at, &mut sums);
        }
        sums
    }
}

/// Adds the contribution of sub-block `index` of records of `IN_RECORD` sub-blocks; `at` is its place in x.
#[inline(always)]
fn add_sub_block<S: Simd, Q: QuantFormat, const G: usize, const N: usize, const IN_RECORD: usize>(
    s: S,
    records: [&[u8]; G],
    index: usize,
    x: &Int8Rows,
    at: usize,
    sums: &mut [[S::F; N]; G],
) {
    let quants_bytes = sub_block_bytes(Q::WEIGHT_TYPE) - SCALES_BYTES * if Q::HAS_MIN { 2 } else { 1 };
    let mins_at = IN_RECORD * SCALES_BYTES;
    let quants_at = if Q::HAS_MIN { 2 * mins_at } else { mins_at };
    let quants = records.map(|record| {
        record[quants_at + index * quants_bytes..][..quants_bytes]
            .as_chunks::<64>()
            .0
    });

    let mut dots = [[s.splat_i32(0); N]; G];
    if Q::ZERO_POINT != 0 {
        let x_sums = x.sums[at..].first_chunk::<N>().expect("a sum per token");
        for n in 0..N {
            let start = s.splat_i32(-Q::ZERO_POINT * x_sums[n]);
            for g in 0..G {
                dots[g][n] = start;
            }
        }
    }
    Q::dots(
        s,
        quants,
        x.quants[at..].first_chunk::<N>().expect("quants per token"),
        &mut dots,
    );

    let scales = load_each(s, records, index * SCALES_BYTES);
    let x_scales = x.scales[at..].first_chunk::<N>().expect("a scale per token");
    for n in 0..N {
        let x_scale = s.splat(x_scales[n]);
        for g in 0..G {
            sums[g][n] = s.fma(s.mul(scales[g], x_scale), s.i32_to_f32(dots[g][n]), sums[g][n]);
        }
    }
    if Q::HAS_MIN {
        let mins = load_each(s, records, mins_at + index * SCALES_BYTES);
        let scaled_sums = x.scaled_sums[at..].first_chunk::<N>().expect("a scaled sum per token");
        for n in 0..N {
            let scaled_sum = s.splat(scaled_sums[n]);
            for g in 0..G {
                sums[g][n] = s.fma(mins[g], scaled_sum, sums[g][n]);
            }
        }
    }
}

/// The 16 scales or mins at byte `at` of each record.
#[inline(always)]
fn load_each<S: Simd, const G: usize>(s: S, records: [&[u8]; G], at: usize) -> [S::F; G] {
    let mut loaded = [F16::load(s, records[0], at); G];
    for g in 1..G {
        loaded[g] = F16::load(s, records[g], at);
    }
    loaded
}
