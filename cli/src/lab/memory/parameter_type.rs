//! How all parameters of a model are taken to be stored: one type for all of them, which real files rarely keep to. A
//! checkpoint at hand is measured instead.

use std::{fmt, str::FromStr};

use kvasir_model::WeightType;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParameterType {
    /// Eight bits each. Scales are left out: one f32 for 128 x 128 of them in DeepSeek-V3.
    Fp8,
    Stored(WeightType),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown type of weights `{unknown}`; known: fp8, {known}")]
pub struct UnknownParameterType {
    unknown: String,
    known: String,
}

impl ParameterType {
    pub const BF16: Self = Self::Stored(WeightType::BF16);

    pub fn bytes(self, parameters: u64) -> u64 {
        match self {
            Self::Fp8 => parameters,
            Self::Stored(stored) => parameters.div_ceil(stored.block_len() as u64) * stored.block_bytes() as u64,
        }
    }

    /// By the name that a config.json gives in `torch_dtype`.
    pub fn of_torch(name: &str) -> Option<Self> {
        Some(Self::Stored(match name {
            "float32" => WeightType::F32,
            "float16" => WeightType::F16,
            "bfloat16" => WeightType::BF16,
            _ => return None,
        }))
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fp8 => f.write_str("fp8"),
            Self::Stored(stored) => f.write_str(&stored.name().to_lowercase()),
        }
    }
}

impl FromStr for ParameterType {
    type Err = UnknownParameterType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let stored = WeightType::ALL.into_iter().map(Self::Stored);
        let mut all = [Self::Fp8].into_iter().chain(stored.clone());
        all.find(|known| known.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownParameterType {
                unknown: text.to_owned(),
                known: stored.map(|known| known.to_string()).collect::<Vec<_>>().join(", "),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_name_and_takes_its_bits() {
        for (name, bits_of_256) in [
            ("fp8", 2048),
            ("bf16", 4096),
            ("Q8_0", 2176),
            ("q4_k", 1152),
            ("f32", 8192),
        ] {
            let parameters: ParameterType = name.parse().unwrap();
            assert_eq!(parameters.bytes(256) * 8, bits_of_256, "{name}");
        }
        let error = "int4".parse::<ParameterType>().unwrap_err().to_string();
        assert!(error.contains("`int4`") && error.contains("q4_0"), "{error}");
    }
}
