//! The instruction sets, and the choice between them at run time.
//!
//! The choice changes speed alone, never a bit of a result.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{portable::Portable, simd::Kernel};

/// What kernels are compiled for. `Avx2` includes FMA and F16C; `Avx512` is F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    Portable,
    Avx2,
    Avx512,
}

impl Isa {
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// The kernels of one instruction set. The functions live beside what they compute: `matmul`, `attend`, `rope`, ...
#[derive(Clone, Copy, Debug)]
pub struct Kernels(Proven);

/// An instruction set together with the proof that this machine has it.
#[derive(Clone, Copy, Debug)]
enum Proven {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Kernels {
    /// The fastest that this machine has.
    pub fn best() -> Self {
        [Isa::Avx512, Isa::Avx2]
            .into_iter()
            .find_map(Self::with)
            .unwrap_or(Self(Proven::Portable(Portable)))
    }

    /// The kernels of `isa`, or None where the machine lacks it.
    pub fn with(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Portable => Some(Self(Proven::Portable(Portable))),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().map(Proven::Avx2).map(Self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::detect().map(Proven::Avx512).map(Self),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }

    pub fn isa(&self) -> Isa {
        match self.0 {
            Proven::Portable(_) => Isa::Portable,
            #[cfg(target_arch = "x86_64")]
            Proven::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Proven::Avx512(_) => Isa::Avx512,
        }
    }

    #[inline(always)]
    pub(super) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        match self.0 {
            Proven::Portable(portable) => kernel.run(portable),
            #[cfg(target_arch = "x86_64")]
            Proven::Avx2(avx2) => avx2.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Proven::Avx512(avx512) => avx512.run(kernel),
        }
    }
}
