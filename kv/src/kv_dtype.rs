//! The element type of KV cells.

use std::{fmt, str::FromStr};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KvDtype {
    F32,
    F16,
    /// i8 with an f16 scale for every 32 dimensions of a position.
    Q8_0,
}

/// Dimensions that share a scale in q8_0 cells.
pub const Q8_0_LEN: usize = 32;

impl KvDtype {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// Bytes of K, or of V, of one position of a head. q8_0 takes 34 bytes for 32 dimensions.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Q8_0 => head_dim + 2 * (head_dim / Q8_0_LEN),
        }
    }

    /// Whether a head of this dimension can be stored so.
    pub fn fits(self, head_dim: usize) -> bool {
        self != Self::Q8_0 || head_dim.is_multiple_of(Q8_0_LEN)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown KV dtype `{0}`; supported: f32, f16, q8_0")]
pub struct UnknownKvDtype(pub String);

impl FromStr for KvDtype {
    type Err = UnknownKvDtype;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| UnknownKvDtype(text.to_owned()))
    }
}
