//! The definition of the canonical arithmetic: scalar, plain, on unpacked data, one value at a time.
//!
//! Every kernel must give these bits; NaN equals NaN. All values are f32 unless said, `mul_add` rounds once, and every other
//! operation rounds once. Nothing here is fast, and nothing here is called by a kernel except the few scalar functions that
//! have one obvious form (`rotate_pair`, `lane_sum`).

use half::f16;
use kvasir_kv::{KvDtype, Q8_0_LEN};
use kvasir_model::{SubBlock, WeightType, dequantize_columns};

use super::{
    LANES, SUB_BLOCK,
    exp::{EXP_MAX, EXP_MIN, EXP_POLYNOMIAL, LN2_HI, LN2_LO, LOG2_E},
    panels::sum_tree,
};

/// Positions of an attention chunk.
pub const ATTENTION_CHUNK: usize = kvasir_kv::ATTENTION_CHUNK as usize;
/// Below this largest magnitude a sub-block of activations is all zeros.
pub const QUANTIZE_AMAX_MIN: f32 = f32::from_bits((127 - 100) << 23);
/// Unit partials must be smaller than this.
pub const PARTIAL_BOUND: f32 = (1 << 20) as f32;

/// 32 activations as int8: `x = scale * quants`.
#[derive(Clone, PartialEq, Debug)]
pub struct Int8SubBlock {
    pub scale: f32,
    pub quants: [i8; SUB_BLOCK],
    pub sum: i32,
}

impl Int8SubBlock {
    pub const ZERO: Self = Self {
        scale: 0.0,
        quants: [0; SUB_BLOCK],
        sum: 0,
    };
}

/// 32 columns of one token as int8, or None if one is not finite: that token is poisoned, and computes on with zeros.
pub fn quantize(x: &[f32; SUB_BLOCK]) -> Option<Int8SubBlock> {
    if x.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let amax = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
    if amax < QUANTIZE_AMAX_MIN {
        return Some(Int8SubBlock::ZERO);
    }
    let inverse = 127.0 / amax;
    let quants = x.map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8);
    let sum = quants.iter().map(|q| i32::from(*q)).sum();
    Some(Int8SubBlock {
        scale: amax / 127.0,
        quants,
        sum,
    })
}

/// The dot product of columns of one row with one token's.
///
/// row: the whole row as stored; x: its columns from `first_col` on, both multiples of 32. Not finite activations count as
/// zeros where the weights are quantized; see [`quantize`].
pub fn dot(weight_type: WeightType, row: &[u8], first_col: usize, x: &[f32]) -> f32 {
    let first = first_col / SUB_BLOCK;
    let mut acc = 0.0;
    for (number, x) in (first..).zip(x.as_chunks::<SUB_BLOCK>().0) {
        if weight_type.is_quantized() {
            let weights = SubBlock::read(weight_type, row, number);
            acc = add_quantized(acc, weight_type, &weights, &quantize(x).unwrap_or(Int8SubBlock::ZERO));
        } else {
            let mut weights = [0.0; SUB_BLOCK];
            dequantize_columns(
                weight_type,
                row,
                number * SUB_BLOCK..(number + 1) * SUB_BLOCK,
                &mut weights,
            );
            acc += weights
                .iter()
                .zip(x)
                .fold(0.0, |inner, (weight, x)| weight.mul_add(*x, inner));
        }
    }
    acc
}

/// Exact integer dots of all columns, or of each half where the type has a scale for 16; then the minimum.
fn add_quantized(acc: f32, weight_type: WeightType, weights: &SubBlock, x: &Int8SubBlock) -> f32 {
    let zero_point = SubBlock::zero_point(weight_type);
    let exact = |columns: std::ops::Range<usize>| -> i32 {
        columns
            .map(|k| (i32::from(weights.quants[k]) - zero_point) * i32::from(x.quants[k]))
            .sum()
    };
    let add = |acc: f32, half: usize, exact: i32| (weights.scale(half) * x.scale).mul_add(exact as f32, acc);
    if weight_type == WeightType::Q6K {
        return add(add(acc, 0, exact(0..16)), 1, exact(16..32));
    }
    let acc = add(acc, 0, exact(0..SUB_BLOCK));
    if has_min(weight_type) {
        return weights.min().mul_add(x.scale * x.sum as f32, acc);
    }
    acc
}

fn has_min(weight_type: WeightType) -> bool {
    use WeightType::*;
    matches!(weight_type, Q4_1 | Q5_1 | Q4K | Q5K)
}

/// A unit's partial sum as an integer count of 2^-30, ties to even; None (poison) unless it is finite and below 2^20.
pub fn to_fixed(partial: f32) -> Option<i64> {
    (partial.abs() < PARTIAL_BOUND).then(|| (f64::from(partial) * (1u64 << 30) as f64).round_ties_even() as i64)
}

/// The sum of all partials as f32.
pub fn from_fixed(sum: i64) -> f32 {
    (sum as f64 * (1.0 / (1u64 << 30) as f64)) as f32
}

/// The sum of values in 16 lanes: value i goes to lane i % 16, then the lanes are folded by the fixed tree.
pub fn lane_sum(values: impl IntoIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, value) in values.into_iter().enumerate() {
        lanes[i % LANES] += value;
    }
    sum_tree(lanes)
}

/// x, weight, result: `[n]`, n a multiple of 16.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut lanes = [0.0; LANES];
    for (i, x) in x.iter().enumerate() {
        lanes[i % LANES] = x.mul_add(*x, lanes[i % LANES]);
    }
    let mean = sum_tree(lanes) / x.len() as f32;
    let r = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| (x * r) * weight).collect()
}

/// The rotary frequency of pair `pair` of `dim` columns.
pub fn rope_frequency(theta: f64, dim: usize, pair: usize) -> f64 {
    libm::pow(theta, -((2 * pair) as f64) / dim as f64)
}

/// Cosine and sine of a position's angle, computed in f64.
pub fn rope_cos_sin(position: u32, frequency: f64) -> (f32, f32) {
    let angle = f64::from(position) * frequency;
    (libm::cos(angle) as f32, libm::sin(angle) as f32)
}

#[inline(always)]
pub fn rotate_pair((x0, x1): (f32, f32), cos: f32, sin: f32) -> (f32, f32) {
    (x0.mul_add(cos, -(x1 * sin)), x0.mul_add(sin, x1 * cos))
}

/// Rotates the interleaved pairs (2i, 2i + 1) of one head at one position. head: `[dim]`.
pub fn rope(head: &mut [f32], theta: f64, position: u32) {
    let dim = head.len();
    for pair in 0..dim / 2 {
        let (cos, sin) = rope_cos_sin(position, rope_frequency(theta, dim, pair));
        (head[2 * pair], head[2 * pair + 1]) = rotate_pair((head[2 * pair], head[2 * pair + 1]), cos, sin);
    }
}

/// e^x, within 2 ulp for results in range; 0 below -87, infinite above 88.
pub fn exp(x: f32) -> f32 {
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    if x.is_nan() {
        return x;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_HI, x);
    let r = n.mul_add(-LN2_LO, r);
    let p = EXP_POLYNOMIAL[1..]
        .iter()
        .fold(EXP_POLYNOMIAL[0], |p, coefficient| p.mul_add(r, *coefficient));
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The gated activation of an FFN.
pub fn silu_mul(gate: f32, up: f32) -> f32 {
    (gate / (1.0 + exp(-gate))) * up
}

/// What a cell of `dtype` holds of a token's K or V. row: `[head_dim]`, for q8_0 a multiple of 32.
pub fn round_row_to_cell(row: &[f32], dtype: KvDtype) -> Vec<f32> {
    match dtype {
        KvDtype::F32 => row.to_vec(),
        KvDtype::F16 => row.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        KvDtype::Q8_0 => row.as_chunks().0.iter().flat_map(round_to_q8_0).collect(),
    }
}

/// 32 values as an f16 scale times i8; NaN where one is not finite or the scale is not.
fn round_to_q8_0(x: &[f32; Q8_0_LEN]) -> [f32; Q8_0_LEN] {
    let amax = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
    let scale = f16::from_f32(amax / 127.0);
    if !scale.is_finite() || x.iter().any(|x| !x.is_finite()) {
        return [f32::NAN; Q8_0_LEN];
    }
    if scale.to_f32() == 0.0 {
        return [0.0; Q8_0_LEN];
    }
    x.map(|x| scale.to_f32() * f32::from((x * (127.0 / amax)).round_ties_even() as i8))
}

/// Attention of one query head at the last of the given positions.
///
/// q: `[head_dim]`; keys, values: `[positions][head_dim]` as cells hold them (see [`round_row_to_cell`]).
pub fn attend(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let mut merged: Option<Chunk> = None;
    for (keys, values) in keys.chunks(ATTENTION_CHUNK).zip(values.chunks(ATTENTION_CHUNK)) {
        let chunk = attend_chunk(q, keys, values, scale);
        merged = Some(match merged {
            None => chunk,
            Some(earlier) => merge(earlier, chunk),
        });
    }
    let Chunk { sum, out, .. } = merged.expect("a token attends at least to itself");
    out.iter().map(|o| o / sum).collect()
}

struct Chunk {
    max: f32,
    sum: f32,
    out: Vec<f32>,
}

fn attend_chunk(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Chunk {
    let score = |key: &Vec<f32>| q.iter().zip(key).fold(0.0f32, |dot, (q, k)| q.mul_add(*k, dot)) * scale;
    let scores: Vec<f32> = keys.iter().map(score).collect();
    let max = max(&scores);
    let e: Vec<f32> = scores.iter().map(|score| exp(score - max)).collect();
    let out = (0..q.len())
        .map(|d| {
            e.iter()
                .zip(values)
                .fold(0.0f32, |o, (e, value)| e.mul_add(value[d], o))
        })
        .collect();
    Chunk {
        max,
        sum: lane_sum(e),
        out,
    }
}

fn merge(earlier: Chunk, chunk: Chunk) -> Chunk {
    let max = max(&[earlier.max, chunk.max]);
    let a = exp(earlier.max - max);
    let b = exp(chunk.max - max);
    let out = earlier
        .out
        .iter()
        .zip(&chunk.out)
        .map(|(old, new)| old.mul_add(a, new * b))
        .collect();
    Chunk {
        max,
        sum: earlier.sum.mul_add(a, chunk.sum * b),
        out,
    }
}

fn max(values: &[f32]) -> f32 {
    values
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
}

/// The index and value of the largest logit, ties to the lowest index.
pub fn arg_max(logits: &[f32]) -> (usize, f32) {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    (best, logits[best])
}

/// The sum of exp(logit - max) of a vocab unit.
pub fn sum_exp(logits: &[f32], max: f32) -> f32 {
    lane_sum(logits.iter().map(|logit| exp(logit - max)))
}
