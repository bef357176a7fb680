//! How the weights of one tensor are stored.
//!
//! To add a type: a variant, its line in each method, its arm in `dequantize`, and kernels in the worker.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WeightType {
    F32,
    F16,
    /// Per 32 columns: f16 scale d, then 32 x i8 q; a weight is d * q.
    Q8_0,
    /// Per 32 columns: f16 scale d, f16 minimum m, then 16 bytes, byte j with q of column j in its low and of column
    /// j + 16 in its high nibble; a weight is d * q + m.
    Q4_1,
}

impl WeightType {
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8_0, Self::Q4_1];

    /// Columns that are stored together.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_1 => 32,
        }
    }

    /// Bytes of `block_len` columns.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_1 => 2 + 2 + 16,
        }
    }

    /// Bytes of a row. Panics if `cols` is not a multiple of `block_len`.
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()), "columns cut a stored block");
        cols / self.block_len() * self.block_bytes()
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// The number that GGUF files use for this type.
    pub const fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
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
        f.write_str(self.name())
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
        assert_eq!(WeightType::from_gguf_id(12), None);
    }

    #[test]
    fn row_bytes_are_those_of_the_format() {
        assert_eq!(WeightType::F32.row_bytes(576), 2304);
        assert_eq!(WeightType::F16.row_bytes(576), 1152);
        assert_eq!(WeightType::Q8_0.row_bytes(576), 612);
        assert_eq!(WeightType::Q4_1.row_bytes(576), 360);
    }
}
