//! Tiles of quantized weights with int8 activations: exact integer dots per sub-block, scaled and added in order.

use kvasir_model::{SubBlock, WeightType};

use super::{
    Int8Rows,
    element::{Element, F16},
    matmul::{TileFormat, TileOfUnit, slices},
    packed_format::{SCALES_BYTES, quants_bytes, sub_block_bytes},
    quants::{Bytes, Nibbles, Quants},
    simd::Simd,
};

/// Int8 tiles of weights in format Q.
pub(super) struct Int8Tile<Q>(std::marker::PhantomData<Q>);

/// The parts of a 32-column format that differ.
pub(super) trait QuantFormat {
    const WEIGHT_TYPE: WeightType;
    const HAS_MIN: bool;
    type Quants: Quants;
}

macro_rules! format {
    ($name:ident, $has_min:literal, $quants:ty) => {
        pub(super) struct $name;

        impl QuantFormat for $name {
            const WEIGHT_TYPE: WeightType = WeightType::$name;
            const HAS_MIN: bool = $has_min;
            type Quants = $quants;
        }
    };
}

format!(Q8_0, false, Bytes);
format!(Q4_0, false, Nibbles<0>);
format!(Q4_1, true, Nibbles<0>);
format!(Q5_0, false, Nibbles<1>);
format!(Q5_1, true, Nibbles<1>);

impl<Q: QuantFormat> TileFormat for Int8Tile<Q> {
    type Activations<'a> = &'a Int8Rows;

    #[inline(always)]
    fn tile<S: Simd, const G: usize, const N: usize>(
        s: S,
        groups: [&[u8]; G],
        unit: TileOfUnit,
        x: &Int8Rows,
        tokens: usize,
        first_token: usize,
    ) -> [[S::F; N]; G] {
        let TileOfUnit {
            sub_blocks,
            first_sub_block,
            ..
        } = unit;
        let bytes = const { sub_block_bytes(Q::WEIGHT_TYPE) };
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
    let bytes = const { quants_bytes(Q::WEIGHT_TYPE) };
    let zero_point = const { SubBlock::zero_point(Q::WEIGHT_TYPE) };
    let mins_at = IN_RECORD * SCALES_BYTES;
    let quants_at = if Q::HAS_MIN { 2 * mins_at } else { mins_at };
    let quants = slices(records, quants_at + index * bytes, bytes);
    let mut dots = [[[s.splat_i32(0); N]; G]];
    add_dots::<S, Q::Quants, 1, G, N>(s, zero_point, quants, x, at, &mut dots);
    add_scaled(s, load_each(s, records, index * SCALES_BYTES), &dots[0], x, at, sums);
    if Q::HAS_MIN {
        let mins = load_each(s, records, mins_at + index * SCALES_BYTES);
        add_mins(s, mins, x, at, sums);
    }
}

/// Puts the exact dots of a sub-block, whole or by halves, into `dots`, which are zeros; `at` is its place in x.
#[inline(always)]
pub(super) fn add_dots<S: Simd, Q: Quants, const HALVES: usize, const G: usize, const N: usize>(
    s: S,
    zero_point: i32,
    quants: [&[u8]; G],
    x: &Int8Rows,
    at: usize,
    dots: &mut [[[S::I; N]; G]; HALVES],
) {
    if zero_point != 0 {
        let x_sums = x.sums[at..].first_chunk::<N>().expect("a sum per token");
        let x_first = x.first_sums[at..].first_chunk::<N>().expect("a sum per token");
        for n in 0..N {
            let (whole, first) = (-zero_point * x_sums[n], -zero_point * x_first[n]);
            let starts = if HALVES == 1 {
                [whole, 0]
            } else {
                [first, whole - first]
            };
            for half in 0..HALVES {
                let start = s.splat_i32(starts[half]);
                for g in 0..G {
                    dots[half][g][n] = start;
                }
            }
        }
    }
    let x = x.quants[at..].first_chunk::<N>().expect("quants per token");
    Q::dots::<S, HALVES, G, N>(s, quants, x, dots);
}

/// `sums += scale * scale of x * dot`
#[inline(always)]
pub(super) fn add_scaled<S: Simd, const G: usize, const N: usize>(
    s: S,
    scales: [S::F; G],
    dots: &[[S::I; N]; G],
    x: &Int8Rows,
    at: usize,
    sums: &mut [[S::F; N]; G],
) {
    let x_scales = x.scales[at..].first_chunk::<N>().expect("a scale per token");
    for n in 0..N {
        let x_scale = s.splat(x_scales[n]);
        for g in 0..G {
            sums[g][n] = s.fma(s.mul(scales[g], x_scale), s.i32_to_f32(dots[g][n]), sums[g][n]);
        }
    }
}

/// `sums += min * sum of x`
#[inline(always)]
pub(super) fn add_mins<S: Simd, const G: usize, const N: usize>(
    s: S,
    mins: [S::F; G],
    x: &Int8Rows,
    at: usize,
    sums: &mut [[S::F; N]; G],
) {
    let scaled_sums = x.scaled_sums[at..].first_chunk::<N>().expect("a scaled sum per token");
    for n in 0..N {
        let scaled_sum = s.splat(scaled_sums[n]);
        for g in 0..G {
            sums[g][n] = s.fma(mins[g], scaled_sum, sums[g][n]);
        }
    }
}

/// The 16 scales or mins at byte `at` of each record.
#[inline(always)]
pub(super) fn load_each<S: Simd, const G: usize>(s: S, records: [&[u8]; G], at: usize) -> [S::F; G] {
    let mut loaded = [F16::load(s, records[0], at); G];
    for g in 1..G {
        loaded[g] = F16::load(s, records[g], at);
    }
    loaded
}
