//! Thirty-two columns of a stored row in plain form: what every quantized type means.
//!
//! Each factor is as stored, so that whoever repacks the weights loses nothing. The formats are ggml's (ggml-common.h,
//! ggml-quants.c).

use half::f16;

use crate::WeightType;

/// Columns of a sub-block.
pub const SUB_BLOCK_LEN: usize = 32;

/// 32 quantized weights. Weight `i` is `scale(i / 16) * (quants[i] - zero_point) + min()`.
#[derive(Clone, PartialEq, Debug)]
pub struct SubBlock {
    pub quants: [u8; SUB_BLOCK_LEN],
    pub d: f16,
    /// Of each half; 1 where a type has no second scale.
    pub factors: [i8; 2],
    /// Negative where a type subtracts it; 0 where it has none.
    pub dmin: f16,
    pub min_factor: u8,
}

impl SubBlock {
    /// Sub-block `index` of a whole row. Panics if the row is shorter or the type is not quantized.
    pub fn read(weight_type: WeightType, row: &[u8], index: usize) -> Self {
        let in_block = weight_type.block_len() / SUB_BLOCK_LEN;
        let block = &row[index / in_block * weight_type.block_bytes()..][..weight_type.block_bytes()];
        match weight_type {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => panic!("{weight_type} has no quants"),
            WeightType::Q8_0 => Self::of_block(f16_at(block, 0), None, signed_bytes(&block[2..])),
            WeightType::Q4_0 => Self::of_block(f16_at(block, 0), None, nibbles(&block[2..])),
            WeightType::Q4_1 => Self::of_block(f16_at(block, 0), Some(f16_at(block, 2)), nibbles(&block[4..])),
            WeightType::Q5_0 => Self::of_block(f16_at(block, 0), None, five_bits(&block[2..])),
            WeightType::Q5_1 => Self::of_block(f16_at(block, 0), Some(f16_at(block, 2)), five_bits(&block[4..])),
            WeightType::Q4K => Self::of_q4_k(block, index % in_block),
            WeightType::Q5K => Self::of_q5_k(block, index % in_block),
            WeightType::Q6K => Self::of_q6_k(block, index % in_block),
        }
    }

    fn of_block(d: f16, min: Option<f16>, quants: [u8; SUB_BLOCK_LEN]) -> Self {
        Self {
            quants,
            d,
            factors: [1; 2],
            dmin: min.unwrap_or_default(),
            min_factor: u8::from(min.is_some()),
        }
    }

    fn of_q4_k(block: &[u8], index: usize) -> Self {
        let (scale, min_factor) = scale_and_min(&block[4..16], index);
        Self {
            quants: half_of_pairs(&block[16..], index),
            d: f16_at(block, 0),
            factors: [scale as i8; 2],
            dmin: -f16_at(block, 2),
            min_factor,
        }
    }

    fn of_q5_k(block: &[u8], index: usize) -> Self {
        let mut quants = half_of_pairs(&block[48..], index);
        for (quant, bits) in quants.iter_mut().zip(&block[16..48]) {
            *quant |= (bits >> index & 1) << 4;
        }
        Self {
            quants,
            ..Self::of_q4_k(block, index)
        }
    }

    fn of_q6_k(block: &[u8], index: usize) -> Self {
        // Each half of 128 columns has 64 bytes of nibbles: low ones for its first 64 columns, high ones for the others.
        let (half, quarter) = (index / 4, index % 4);
        let low = &block[64 * half + 32 * (quarter % 2)..];
        let high = &block[128 + 32 * half..];
        let quant = |i: usize| (low[i] >> (4 * (quarter / 2)) & 15) | (high[i] >> (2 * quarter) & 3) << 4;
        Self {
            quants: std::array::from_fn(quant),
            d: f16_at(block, 208),
            factors: [block[192 + 2 * index] as i8, block[193 + 2 * index] as i8],
            dmin: f16::ZERO,
            min_factor: 0,
        }
    }

    /// What is subtracted from a quant.
    pub const fn zero_point(weight_type: WeightType) -> i32 {
        match weight_type {
            WeightType::Q8_0 => 128,
            WeightType::Q4_0 => 8,
            WeightType::Q5_0 => 16,
            WeightType::Q6K => 32,
            _ => 0,
        }
    }

    /// Exact: eleven bits times at most eight.
    pub fn scale(&self, half: usize) -> f32 {
        self.d.to_f32() * f32::from(self.factors[half])
    }

    /// Exact, like `scale`.
    pub fn min(&self) -> f32 {
        self.dmin.to_f32() * f32::from(self.min_factor)
    }

    /// Rounds once for each weight: the product is exact.
    pub fn dequantize(&self, weight_type: WeightType, out: &mut [f32]) {
        for (i, (quant, out)) in self.quants.iter().zip(out).enumerate() {
            let product = self.scale(i / 16) * (i32::from(*quant) - Self::zero_point(weight_type)) as f32;
            *out = if self.min_factor == 0 {
                product
            } else {
                product + self.min()
            };
        }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn signed_bytes(bytes: &[u8]) -> [u8; SUB_BLOCK_LEN] {
    std::array::from_fn(|i| bytes[i].wrapping_add(128))
}

/// Byte j holds columns j and j + 16.
fn nibbles(bytes: &[u8]) -> [u8; SUB_BLOCK_LEN] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Four bytes with the fifth bits, then nibbles.
fn five_bits(bytes: &[u8]) -> [u8; SUB_BLOCK_LEN] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

/// Of the nibbles of 256 columns: 32 bytes hold two sub-blocks, the first in the low nibbles.
fn half_of_pairs(bytes: &[u8], index: usize) -> [u8; SUB_BLOCK_LEN] {
    let (pair, shift) = (&bytes[32 * (index / 2)..], 4 * (index % 2));
    std::array::from_fn(|i| pair[i] >> shift & 15)
}

/// Scale and minimum of a sub-block, 6 bits each, of eight packed in 12 bytes.
fn scale_and_min(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let both = packed[index + 4];
    (
        both & 15 | packed[index - 4] >> 6 << 4,
        both >> 4 | packed[index] >> 6 << 4,
    )
}
