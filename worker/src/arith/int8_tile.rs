//! Tiles of quantized weights with int8 activations: exact integer dots per sub-block, scaled and added in order.

use kvasir_model::{SubBlock, WeightType};

use super::{
    Int8Rows,
    element::{Element, F16},
    matmul::{TileFormat, TileOfUnit},
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
    fn tile<S: Simd, const N: usize>(
        s: S,
        group: &[u8],
        unit: TileOfUnit,
        x: &Int8Rows,
        tokens: usize,
        first_token: usize,
    ) -> [S::F; N] {
        let bytes = const { sub_block_bytes(Q::WEIGHT_TYPE) };
        let mut sums = [s.splat(0.0); N];
        for pair in 0..unit.sub_blocks / 2 {
            let start = 2 * pair * bytes;
            let record = &group[start..][..2 * bytes];
            unit.ahead.fetch(s, record, start);
            let at = (unit.first_sub_block + 2 * pair) * tokens + first_token;
            add_sub_block::<S, Q, N, 2>(s, record, 0, x, at, &mut sums);
            add_sub_block::<S, Q, N, 2>(s, record, 1, x, at + tokens, &mut sums);
        }
        if !unit.sub_blocks.is_multiple_of(2) {
            let record = &group[(unit.sub_blocks - 1) * bytes..][..bytes];
            let at = (unit.first_sub_block + unit.sub_blocks - 1) * tokens + first_token;
            add_sub_block::<S, Q, N, 1>(s, record, 0, x, at, &mut sums);
        }
        sums
    }
}

/// Adds the contribution of sub-block `index` of a record of `IN_RECORD` sub-blocks; `at` is its place in x.
#[inline(always)]
fn add_sub_block<S: Simd, Q: QuantFormat, const N: usize, const IN_RECORD: usize>(
    s: S,
    record: &[u8],
    index: usize,
    x: &Int8Rows,
    at: usize,
    sums: &mut [S::F; N],
) {
    let bytes = const { quants_bytes(Q::WEIGHT_TYPE) };
    let zero_point = const { SubBlock::zero_point(Q::WEIGHT_TYPE) };
    let mins_at = IN_RECORD * SCALES_BYTES;
    let quants_at = if Q::HAS_MIN { 2 * mins_at } else { mins_at };
    let quants = &record[quants_at + index * bytes..][..bytes];
    let mut dots = [[s.splat_i32(0); N]];
    add_dots::<S, Q::Quants, 1, N>(s, zero_point, quants, x, at, &mut dots);
    add_scaled(s, F16::load(s, record, index * SCALES_BYTES), &dots[0], x, at, sums);
    if Q::HAS_MIN {
        let mins = F16::load(s, record, mins_at + index * SCALES_BYTES);
        add_mins(s, mins, x, at, sums);
    }
}

/// Puts the exact dots of a sub-block, whole or by halves, into `dots`, which are zeros; `at` is its place in x.
#[inline(always)]
pub(super) fn add_dots<S: Simd, Q: Quants, const HALVES: usize, const N: usize>(
    s: S,
    zero_point: i32,
    quants: &[u8],
    x: &Int8Rows,
    at: usize,
    dots: &mut [[S::I; N]; HALVES],
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
                dots[half][n] = s.splat_i32(starts[half]);
            }
        }
    }
    let x = x.quants[at..].first_chunk::<N>().expect("quants per token");
    Q::dots::<S, HALVES, N>(s, quants, x, dots);
}

/// `sums += scale * scale of x * dot`
#[inline(always)]
pub(super) fn add_scaled<S: Simd, const N: usize>(
    s: S,
    scales: S::F,
    dots: &[S::I; N],
    x: &Int8Rows,
    at: usize,
    sums: &mut [S::F; N],
) {
    let x_scales = x.scales[at..].first_chunk::<N>().expect("a scale per token");
    for n in 0..N {
        sums[n] = s.fma(s.mul(scales, s.splat(x_scales[n])), s.i32_to_f32(dots[n]), sums[n]);
    }
}

/// `sums += min * sum of x`
#[inline(always)]
pub(super) fn add_mins<S: Simd, const N: usize>(s: S, mins: S::F, x: &Int8Rows, at: usize, sums: &mut [S::F; N]) {
    let scaled_sums = x.scaled_sums[at..].first_chunk::<N>().expect("a scaled sum per token");
    for n in 0..N {
        sums[n] = s.fma(mins, s.splat(scaled_sums[n]), sums[n]);
    }
}
