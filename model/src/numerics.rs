//! What must agree for two engines to produce the same bits, and its hash, the numerics id.

use std::{fmt, str::FromStr};

use kvasir_kv::{KvDtype, NumericsId};

use crate::WeightType;

/// Bumped whenever a checked-in digest of tokens and logprobs changes.
pub const NUMERICS_VERSION: u32 = 1;

/// What becomes of the file's weights at load.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WeightMode {
    /// They keep the type they have in the file.
    #[default]
    File,
    /// Dequantized to f32.
    F32,
    /// Quantized, or quantized again, to Q8_0.
    Q8_0,
}

impl WeightMode {
    pub const ALL: [Self; 3] = [Self::File, Self::F32, Self::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }

    /// What a matrix that is stored as `stored` is in memory.
    pub fn weight_type(self, stored: WeightType) -> WeightType {
        match self {
            Self::File => stored,
            Self::F32 => WeightType::F32,
            Self::Q8_0 => WeightType::Q8_0,
        }
    }
}

/// Which arithmetic computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendKind {
    /// The same bits for any plan, batch and history.
    #[default]
    Canonical,
    /// candle in f32: an independent check; its bits are its own.
    Candle,
    /// The canonical arithmetic on an NVIDIA GPU.
    CudaExact,
    /// On an NVIDIA GPU in bf16 with f32 sums: quick, and without any promise about bits.
    CudaFast,
}

impl BackendKind {
    pub const ALL: [Self; 4] = [Self::Canonical, Self::Candle, Self::CudaExact, Self::CudaFast];

    pub fn name(self) -> &'static str {
        match self {
            Self::Canonical => "canonical",
            Self::Candle => "candle",
            Self::CudaExact => "cuda-exact",
            Self::CudaFast => "cuda-fast",
        }
    }

    pub fn is_cuda(self) -> bool {
        matches!(self, Self::CudaExact | Self::CudaFast)
    }

    /// Devices of one class are held to give the same bits. `cuda-exact` is meant to give those of the CPU, and keeps a
    /// class of its own as long as no GPU has been seen to.
    fn device_class(self) -> &'static str {
        match self {
            Self::Canonical | Self::Candle => "cpu",
            Self::CudaExact => "cuda-exact",
            Self::CudaFast => "cuda-fast-bf16",
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} `{found}`; supported: {supported}")]
pub struct UnknownName {
    pub what: &'static str,
    pub found: String,
    pub supported: &'static str,
}

impl FromStr for WeightMode {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| UnknownName {
            what: "weights dtype",
            found: text.to_owned(),
            supported: "file, f32, q8_0",
        })
    }
}

impl FromStr for BackendKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| UnknownName {
            what: "backend",
            found: text.to_owned(),
            supported: "canonical, candle, cuda-exact, cuda-fast",
        })
    }
}

impl fmt::Display for WeightMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// hash(model bytes, numerics version, backend and device class, KV dtype, weight mode), 128 bits.
pub fn numerics_id(content_hash: &[u8; 32], backend: BackendKind, kv_dtype: KvDtype, mode: WeightMode) -> NumericsId {
    let mut hasher = blake3::Hasher::new_derive_key("kvasir numerics id");
    hasher.update(content_hash);
    hasher.update(&NUMERICS_VERSION.to_le_bytes());
    for part in [backend.name(), backend.device_class(), kv_dtype.name(), mode.name()] {
        hasher.update(&(part.len() as u32).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    NumericsId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_id() {
        let base = numerics_id(&[1; 32], BackendKind::Canonical, KvDtype::F16, WeightMode::File);
        let others = [
            numerics_id(&[2; 32], BackendKind::Canonical, KvDtype::F16, WeightMode::File),
            numerics_id(&[1; 32], BackendKind::Candle, KvDtype::F16, WeightMode::File),
            numerics_id(&[1; 32], BackendKind::Canonical, KvDtype::F32, WeightMode::File),
            numerics_id(&[1; 32], BackendKind::Canonical, KvDtype::F16, WeightMode::F32),
            numerics_id(&[1; 32], BackendKind::Canonical, KvDtype::F16, WeightMode::Q8_0),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn no_two_backends_share_an_id() {
        let ids = BackendKind::ALL.map(|kind| numerics_id(&[1; 32], kind, KvDtype::F16, WeightMode::File));
        for (index, id) in ids.iter().enumerate() {
            assert!(!ids[..index].contains(id), "{}", BackendKind::ALL[index]);
        }
    }
}
