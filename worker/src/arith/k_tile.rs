//! Tiles of 256-column quantized weights with int8 activations.
//!
//! A sub-block's scale is its record's d times its own factor, which is exact in f32; from there on it is the chain of
//! every quantized type. Units may begin and end anywhere in a stored block.

use std::marker::PhantomData;

use kvasir_model::{SubBlock, WeightType};

use super::{
    Int8Rows, LANES,
    element::{Element, F16},
    int8_tile::{add_dots, add_mins, add_scaled},
    matmul::{TileFormat, TileOfUnit},
    packed_format::{HEADER_BYTES, SCALES_BYTES, quants_bytes, record_bytes, records},
    quants::{Nibbles, Quants},
    simd::Simd,
};

/// Int8 tiles of weights in format K.
pub(super) struct KTile<K>(PhantomData<K>);

/// The parts of a 256-column format that differ.
pub(super) trait KFormat {
    const WEIGHT_TYPE: WeightType;
    type Quants: Quants;
}

macro_rules! format {
    ($name:ident, $quants:ty) => {
        pub(super) struct $name;

        impl KFormat for $name {
            const WEIGHT_TYPE: WeightType = WeightType::$name;
            type Quants = $quants;
        }
    };
}

format!(Q4K, Nibbles<0>);
format!(Q5K, Nibbles<1>);
format!(Q6K, Nibbles<2>);

impl<K: KFormat> TileFormat for KTile<K> {
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
        let mut sums = [s.splat(0.0); N];
        let (mut start, mut at) = (0, unit.first_sub_block * tokens + first_token);
        for len in records(K::WEIGHT_TYPE, unit.phase, unit.sub_blocks) {
            let bytes = record_bytes(K::WEIGHT_TYPE, len);
            let record = Record {
                bytes: &group[start..][..bytes],
                len,
            };
            unit.ahead.fetch(s, record.bytes, start);
            let (d, dmin) = record.header(s);
            for index in 0..len {
                if matches!(K::WEIGHT_TYPE, WeightType::Q6K) {
                    record.add_halves::<S, K, N>(s, d, index, x, at, &mut sums);
                } else {
                    record.add_sub_block::<S, K, N>(s, (d, dmin), index, x, at, &mut sums);
                }
                at += tokens;
            }
            start += bytes;
        }
        sums
    }
}

struct Record<'a> {
    bytes: &'a [u8],
    /// Sub-blocks.
    len: usize,
}

impl Record<'_> {
    #[inline(always)]
    fn header<S: Simd>(&self, s: S) -> (S::F, S::F) {
        (F16::load(s, self.bytes, 0), F16::load(s, self.bytes, SCALES_BYTES))
    }

    /// d times the 16 factors of number `number`.
    #[inline(always)]
    fn scales<S: Simd>(&self, s: S, d: S::F, number: usize) -> S::F {
        let factors = self.bytes[HEADER_BYTES + number * LANES..].first_chunk();
        s.mul(d, s.load_i8(factors.expect("a factor per row")))
    }

    #[inline(always)]
    fn quants<K: KFormat>(&self, index: usize) -> &[u8] {
        let bytes = const { quants_bytes(K::WEIGHT_TYPE) };
        &self.bytes[HEADER_BYTES + 2 * self.len * LANES + index * bytes..][..bytes]
    }

    /// A scale and a minimum for 32 columns; `at` is the place in x.
    #[inline(always)]
    fn add_sub_block<S: Simd, K: KFormat, const N: usize>(
        &self,
        s: S,
        (d, dmin): (S::F, S::F),
        index: usize,
        x: &Int8Rows,
        at: usize,
        sums: &mut [S::F; N],
    ) {
        let mut dots = [[s.splat_i32(0); N]];
        add_dots::<S, K::Quants, 1, N>(s, 0, self.quants::<K>(index), x, at, &mut dots);
        add_scaled(s, self.scales(s, d, index), &dots[0], x, at, sums);
        add_mins(s, self.scales(s, dmin, self.len + index), x, at, sums);
    }

    /// A scale for each 16 columns; `at` is the place in x.
    #[inline(always)]
    fn add_halves<S: Simd, K: KFormat, const N: usize>(
        &self,
        s: S,
        d: S::F,
        index: usize,
        x: &Int8Rows,
        at: usize,
        sums: &mut [S::F; N],
    ) {
        let zero_point = const { SubBlock::zero_point(K::WEIGHT_TYPE) };
        let mut dots = [[s.splat_i32(0); N]; 2];
        add_dots::<S, K::Quants, 2, N>(s, zero_point, self.quants::<K>(index), x, at, &mut dots);
        for half in 0..2 {
            add_scaled(s, self.scales(s, d, 2 * index + half), &dots[half], x, at, sums);
        }
    }
}
