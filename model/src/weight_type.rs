//! How the weights of one tensor are stored.
//!
//! To add a type: a variant, its line in each method, its arm in `sub_block` or `dequantize`, and kernels in the worker.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    /// Per 32 columns: f16 scale d, then 32 x i8 q; a weight is d * q.
    Q8_0,
    /// Per 32 columns: f16 scale d, then 16 bytes, byte j with q of column j in its low and of column j + 16 in its high
    /// nibble; a weight is d * (q - 8).
    Q4_0,
    /// As Q4_0 with an f16 minimum m after d; a weight is d * q + m.
    Q4_1,
    /// As Q4_0 with four bytes after d, whose bit j is the fifth of column j; a weight is d * (q - 16).
    Q5_0,
    /// As Q4_1 with those four bytes after m; a weight is d * q + m.
    Q5_1,
    /// Per 256 columns: f16 d, f16 dmin, then per 32 columns a scale s and a minimum m of 6 bits each in 12 bytes, then
    /// nibbles; a weight is d * s * q - dmin * m.
    Q4K,
    /// As Q4_K with the fifth bits in 32 bytes before the nibbles.
    Q5K,
    /// Per 256 columns: 128 bytes of nibbles, 64 bytes of two high bits, an i8 scale s per 16 columns, f16 d; a weight is
    /// d * s * (q - 32).
    Q6K,
}

impl WeightType {
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Columns that are stored together.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of `block_len` columns.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a row. Panics if `cols` is not a multiple of `block_len`.
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()), "columns cut a stored block");
        cols / self.block_len() * self.block_bytes()
    }

    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The number that GGUF files use for this type.
    pub const fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|weight_type| weight_type.gguf_id() == id)
    }

    /// All names, for messages that say what would work.
    pub fn supported() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name that ggml gives to a type number, for messages about types that we cannot read.
pub(crate) fn gguf_type_name(id: u32) -> String {
    let name = match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type number {id}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_again_by_its_number_and_name() {
        for weight_type in WeightType::ALL {
            assert_eq!(WeightType::from_gguf_id(weight_type.gguf_id()), Some(weight_type));
            assert_eq!(gguf_type_name(weight_type.gguf_id()), weight_type.name());
        }
        assert_eq!(WeightType::from_gguf_id(10), None);
    }

    #[test]
    fn row_bytes_are_those_of_the_format() {
        let bytes = |weight_type: WeightType| weight_type.row_bytes(256);
        let all = WeightType::ALL.map(bytes);
        assert_eq!(all, [1024, 512, 512, 272, 144, 160, 176, 192, 144, 176, 210]);
    }
}
