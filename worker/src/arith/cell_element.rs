//! What KV cells are made of: how a vector of K or V is read and a token's row is written.
//!
//! Of a layer of a cell, K is `[head_dim][block_size]` and V `[block_size][head_dim]`. A plane of q8_0 holds i8 quants in
//! that order and then f16 scales, one for 32 dimensions of a position: K `[head_dim / 32][block_size]`,
//! V `[block_size][head_dim / 32]`. A value is scale * quant, which is exact in f32.

use half::f16;
use kvasir_kv::Q8_0_LEN;

use super::{
    LANES,
    element::{Element, F16, F32},
    panels::vectors,
    simd::Simd,
};

/// The shape of a plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaneShape {
    pub head_dim: usize,
    pub block_size: usize,
}

pub(super) trait CellElement {
    /// Bytes of an element, without its share of a scale.
    const BYTES: usize;

    /// K of dimension `d` for 16 V positions from `position`.
    fn keys<S: Simd, const V: usize>(s: S, plane: &[u8], shape: PlaneShape, d: usize, position: usize) -> [S::F; V];

    /// V of a position, V vectors of dimensions from `vector`.
    fn values<S: Simd, const V: usize>(
        s: S,
        plane: &[u8],
        shape: PlaneShape,
        position: usize,
        vector: usize,
    ) -> [S::F; V];

    /// Rounds and writes K of one position. Returns whether all that was written is finite.
    fn write_key<S: Simd>(s: S, k: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool;

    /// As `write_key`, for V.
    fn write_value<S: Simd>(s: S, v: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool;
}

/// A float that cells are made of.
pub(super) trait FloatElement: Element {
    /// Rounds to 16 elements from byte `at`, and returns whether all are finite.
    fn store<S: Simd>(s: S, x: S::F, bytes: &mut [u8], at: usize) -> bool;
}

impl FloatElement for F32 {
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

impl FloatElement for F16 {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, bytes: &mut [u8], at: usize) -> bool {
        let bytes = bytes[at..].first_chunk_mut::<{ 2 * LANES }>().expect("16 elements");
        s.store_f16(x, bytes);
        s.all_finite(s.load_f16(bytes))
    }
}

impl<E: FloatElement> CellElement for E {
    const BYTES: usize = E::BYTES;

    #[inline(always)]
    fn keys<S: Simd, const V: usize>(s: S, plane: &[u8], shape: PlaneShape, d: usize, position: usize) -> [S::F; V] {
        load_row::<S, E, V>(s, plane, d * shape.block_size + position)
    }

    #[inline(always)]
    fn values<S: Simd, const V: usize>(
        s: S,
        plane: &[u8],
        shape: PlaneShape,
        position: usize,
        vector: usize,
    ) -> [S::F; V] {
        load_row::<S, E, V>(s, plane, position * shape.head_dim + vector * LANES)
    }

    #[inline(always)]
    fn write_key<S: Simd>(s: S, k: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool {
        let mut finite = true;
        let mut encoded = [0; 4 * LANES];
        for (panel, k) in vectors(k).iter().enumerate() {
            finite &= E::store(s, s.load(k), &mut encoded, 0);
            for (lane, k) in encoded.chunks_exact(<E as Element>::BYTES).take(LANES).enumerate() {
                let at = (panel * LANES + lane) * shape.block_size + position;
                plane[at * k.len()..][..k.len()].copy_from_slice(k);
            }
        }
        finite
    }

    #[inline(always)]
    fn write_value<S: Simd>(s: S, v: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool {
        let mut finite = true;
        for (panel, v) in vectors(v).iter().enumerate() {
            let at = position * shape.head_dim + panel * LANES;
            finite &= E::store(s, s.load(v), plane, at * <E as Element>::BYTES);
        }
        finite
    }
}

/// V vectors from element `at`.
#[inline(always)]
fn load_row<S: Simd, E: Element, const V: usize>(s: S, plane: &[u8], at: usize) -> [S::F; V] {
    let row = &plane[at * E::BYTES..][..V * LANES * E::BYTES];
    let mut loaded = [s.splat(0.0); V];
    for v in 0..V {
        loaded[v] = E::load(s, row, v * LANES * E::BYTES);
    }
    loaded
}

/// i8 with an f16 scale for 32 dimensions of a position.
pub(super) struct Q8_0;

impl CellElement for Q8_0 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn keys<S: Simd, const V: usize>(s: S, plane: &[u8], shape: PlaneShape, d: usize, position: usize) -> [S::F; V] {
        let (quants, scales) = plane.split_at(shape.head_dim * shape.block_size);
        let quants = &quants[d * shape.block_size + position..][..V * LANES];
        let scales = &scales[2 * (d / Q8_0_LEN * shape.block_size + position)..][..V * 2 * LANES];
        let mut loaded = [s.splat(0.0); V];
        for v in 0..V {
            let quants = s.load_i8(quants[v * LANES..].first_chunk().expect("16 positions"));
            loaded[v] = s.mul(quants, F16::load(s, scales, v * 2 * LANES));
        }
        loaded
    }

    #[inline(always)]
    fn values<S: Simd, const V: usize>(
        s: S,
        plane: &[u8],
        shape: PlaneShape,
        position: usize,
        vector: usize,
    ) -> [S::F; V] {
        let (quants, scales) = plane.split_at(shape.head_dim * shape.block_size);
        let quants = &quants[position * shape.head_dim + vector * LANES..][..V * LANES];
        let scales = &scales.as_chunks::<2>().0[position * (shape.head_dim / Q8_0_LEN)..];
        let mut loaded = [s.splat(0.0); V];
        for v in 0..V {
            let quants = s.load_i8(quants[v * LANES..].first_chunk().expect("16 dimensions"));
            let scale = f16::from_le_bytes(scales[(vector + v) * LANES / Q8_0_LEN]).to_f32();
            loaded[v] = s.mul(quants, s.splat(scale));
        }
        loaded
    }

    #[inline(always)]
    fn write_key<S: Simd>(s: S, k: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool {
        let (quants, scales) = plane.split_at_mut(shape.head_dim * shape.block_size);
        each_block(s, k, |index, scale, of_block| {
            scales[2 * (index * shape.block_size + position)..][..2].copy_from_slice(&scale);
            for (d, quant) in (index * Q8_0_LEN..).zip(of_block) {
                quants[d * shape.block_size + position] = quant as u8;
            }
        })
    }

    #[inline(always)]
    fn write_value<S: Simd>(s: S, v: &[f32], plane: &mut [u8], shape: PlaneShape, position: usize) -> bool {
        let (quants, scales) = plane.split_at_mut(shape.head_dim * shape.block_size);
        each_block(s, v, |index, scale, of_block| {
            scales[2 * (position * (shape.head_dim / Q8_0_LEN) + index)..][..2].copy_from_slice(&scale);
            let quants = &mut quants[position * shape.head_dim + index * Q8_0_LEN..][..Q8_0_LEN];
            quants.copy_from_slice(&of_block.map(|quant| quant as u8));
        })
    }
}

/// Gives each block of a row, quantized, to `write`: its number, scale and quants. Returns whether all scales are finite.
#[inline(always)]
fn each_block<S: Simd>(s: S, row: &[f32], mut write: impl FnMut(usize, [u8; 2], [i8; Q8_0_LEN])) -> bool {
    let mut finite = true;
    for (index, block) in row.as_chunks().0.iter().enumerate() {
        let (scale, quants) = quantize(s, block);
        finite &= scale.is_finite();
        write(index, scale.to_le_bytes(), quants);
    }
    finite
}

/// 32 values as a scale and quants; the scale is NaN where one of them is not finite. `reference::round_row_to_cell`
/// defines it.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32; Q8_0_LEN]) -> (f16, [i8; Q8_0_LEN]) {
    let [low, high] = x.as_chunks::<LANES>().0 else {
        unreachable!("32 values are two vectors")
    };
    let (low, high) = (s.load(low), s.load(high));
    if !(s.all_finite(low) & s.all_finite(high)) {
        return (f16::NAN, [0; Q8_0_LEN]);
    }
    let amax = s.max_lane(s.max(s.abs(low), s.abs(high)));
    let scale = f16::from_f32(amax / 127.0);
    let mut quants = [0; Q8_0_LEN];
    if scale.to_f32() == 0.0 || !scale.is_finite() {
        return (scale, quants);
    }
    let inverse = s.splat(127.0 / amax);
    let [out_low, out_high] = quants.as_chunks_mut::<LANES>().0 else {
        unreachable!("32 values are two vectors")
    };
    s.to_i8(s.mul(low, inverse), out_low);
    s.to_i8(s.mul(high, inverse), out_high);
    (scale, quants)
}
