//! Seeded inputs, ordinary and extreme, and the comparison of bits.

use half::{bf16, f16};
use kvasir_model::WeightType;

use crate::arith::{Isa, Kernels};

/// The kernels of each instruction set that this machine has.
pub fn all_kernels() -> impl Iterator<Item = Kernels> {
    Isa::ALL.into_iter().filter_map(Kernels::with)
}

/// Equal bits, where NaN equals NaN.
#[track_caller]
pub fn assert_same_bits(actual: &[f32], expected: &[f32], context: &str) {
    assert_eq!(actual.len(), expected.len(), "{context}");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let same = actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan());
        assert!(same, "{context}: value {i} is {actual:e}, by definition {expected:e}");
    }
}

/// How wild the numbers are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Style {
    /// As a model has them.
    Ordinary,
    /// Any exponent, zeros of both signs, denormals; all finite.
    Extreme,
    /// As `Extreme`, now and then infinite or NaN.
    Broken,
}

impl Style {
    pub const ALL: [Self; 3] = [Self::Ordinary, Self::Extreme, Self::Broken];
}

/// splitmix64
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn float(&mut self, style: Style) -> f32 {
        match (style, self.below(200)) {
            (Style::Ordinary, _) => 4.0 * self.unit(),
            (_, 0..20) => [0.0, -0.0][self.below(2)],
            (_, 20..30) => f32::from_bits(self.next() as u32 & 0x807f_ffff),
            (_, 30..35) => [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -f32::MIN_POSITIVE][self.below(4)],
            (Style::Broken, 80) => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][self.below(3)],
            (_, 35..80) => self.unit() * 2.0f32.powi(self.below(240) as i32 - 120),
            _ => self.unit() * 2.0f32.powi(self.below(20) as i32 - 10),
        }
    }

    pub fn floats(&mut self, style: Style, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float(style)).collect()
    }

    /// A row of weights as stored: quants of any value, scales of the given style.
    pub fn row(&mut self, weight_type: WeightType, style: Style, cols: usize) -> Vec<u8> {
        let mut row: Vec<u8> = (0..weight_type.row_bytes(cols)).map(|_| self.next() as u8).collect();
        for block in row.chunks_exact_mut(weight_type.block_bytes()) {
            match weight_type {
                WeightType::F32 => block.copy_from_slice(&self.float(style).to_le_bytes()),
                WeightType::BF16 => block.copy_from_slice(&bf16::from_f32(self.float(style)).to_le_bytes()),
                WeightType::F16 | WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => {
                    block[..2].copy_from_slice(&self.half(style));
                }
                WeightType::Q6K => block[208..].copy_from_slice(&self.half(style)),
                WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
                    block[..2].copy_from_slice(&self.half(style));
                    block[2..4].copy_from_slice(&self.half(style));
                }
            }
        }
        row
    }

    fn half(&mut self, style: Style) -> [u8; 2] {
        let half = match (style, self.below(20)) {
            (Style::Ordinary, _) => f16::from_f32(0.01 * self.unit()),
            (_, 0) => f16::from_bits(self.next() as u16 & 0x83ff),
            (_, 1) => [f16::MAX, f16::MIN, f16::ZERO, f16::NEG_ZERO][self.below(4)],
            _ => f16::from_f32(self.unit() * 2.0f32.powi(self.below(28) as i32 - 14)),
        };
        half.to_le_bytes()
    }
}
