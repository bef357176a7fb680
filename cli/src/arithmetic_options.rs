//! Which arithmetic computes, and on which device: `--backend`, `--device`, `--gpu-mode`, checked together.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail};
use clap::Args;
use kvasir_model::BackendKind;

#[derive(Args, Clone, Debug)]
pub struct ArithmeticOptions {
    /// Arithmetic: `canonical` gives the same bits on any cluster, `candle` is an independent check, `cuda` computes on a
    /// GPU [default: canonical, or cuda where the device is one]
    #[arg(long, value_enum, value_name = "NAME")]
    backend: Option<BackendName>,
    /// Where: cpu, or cuda:N for the machine's GPU number N
    #[arg(long, value_name = "cpu|cuda:N")]
    device: Option<DeviceName>,
    /// On a GPU: `exact` is meant to give the canonical bits for any plan and batch, `fast` (bf16, f32 sums) promises none
    #[arg(long, value_enum, value_name = "MODE")]
    gpu_mode: Option<GpuMode>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum BackendName {
    Canonical,
    Candle,
    Cuda,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum GpuMode {
    Exact,
    Fast,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DeviceName {
    Cpu,
    Cuda { ordinal: u32 },
}

/// What the flags come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arithmetic {
    pub backend: BackendKind,
    /// Of the machine's GPUs; 0 on the CPU.
    pub gpu_ordinal: u32,
}

impl ArithmeticOptions {
    /// Errors where the flags contradict each other.
    pub fn resolve(&self) -> Result<Arithmetic> {
        let device = self.device.unwrap_or(match self.backend {
            Some(BackendName::Cuda) => DeviceName::Cuda { ordinal: 0 },
            _ => DeviceName::Cpu,
        });
        let DeviceName::Cuda { ordinal } = device else {
            return self.on_cpu();
        };
        if self.backend == Some(BackendName::Canonical) {
            bail!(
                "--backend canonical computes on the CPU, not on {device}; on a GPU, --backend cuda computes the same arithmetic"
            );
        }
        let backend = match self.gpu_mode {
            None | Some(GpuMode::Exact) => BackendKind::CudaExact,
            Some(GpuMode::Fast) => BackendKind::CudaFast,
        };
        Ok(Arithmetic {
            backend,
            gpu_ordinal: ordinal,
        })
    }

    fn on_cpu(&self) -> Result<Arithmetic> {
        if self.gpu_mode.is_some() {
            bail!("--gpu-mode is for GPUs; add --device cuda:0");
        }
        let backend = match self.backend {
            None | Some(BackendName::Canonical) => BackendKind::Canonical,
            Some(BackendName::Candle) => BackendKind::Candle,
            Some(BackendName::Cuda) => {
                bail!("--backend cuda does not compute on cpu; leave --device out, or say cuda:0")
            }
        };
        Ok(Arithmetic {
            backend,
            gpu_ordinal: 0,
        })
    }
}

impl Arithmetic {
    /// Errors if this program was built without what it takes to compute so. Who computes nothing need not ask.
    pub fn can_compute_here(self) -> Result<()> {
        if self.backend.is_cuda() && !kvasir_worker::HAS_CUDA {
            bail!(
                "this kvasir was built without CUDA and cannot compute with {}: `cargo xtask gpu --build-only` makes one \
                 that can, or `cargo build --package kvasir --features cuda` where nvcc is on PATH",
                self.backend
            );
        }
        Ok(())
    }

    /// The flags again, for a child process.
    pub fn to_args(self) -> Vec<String> {
        let (name, mode) = match self.backend {
            BackendKind::Canonical => ("canonical", None),
            BackendKind::Candle => ("candle", None),
            BackendKind::CudaExact => ("cuda", Some("exact")),
            BackendKind::CudaFast => ("cuda", Some("fast")),
        };
        let mut flags = vec!["--backend".to_owned(), name.to_owned()];
        if let Some(mode) = mode {
            let device = DeviceName::Cuda {
                ordinal: self.gpu_ordinal,
            };
            flags.extend([
                "--device".to_owned(),
                device.to_string(),
                "--gpu-mode".to_owned(),
                mode.to_owned(),
            ]);
        }
        flags
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no device; supported: cpu, cuda:N with N from 0 (`nvidia-smi -L` lists them)");
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda { ordinal: 0 }),
            Some(("cuda", ordinal)) => Ok(Self::Cuda {
                ordinal: ordinal.parse().map_err(|_| wrong())?,
            }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: ArithmeticOptions,
    }

    fn resolved(line: &str) -> Result<Arithmetic> {
        let words = std::iter::once("kvasir").chain(line.split_whitespace());
        Line::try_parse_from(words)?.options.resolve()
    }

    #[test]
    fn flags_come_to_a_backend_and_a_gpu() {
        use BackendKind::{Candle, Canonical, CudaExact, CudaFast};
        for (line, backend, gpu_ordinal) in [
            ("", Canonical, 0),
            ("--device cpu", Canonical, 0),
            ("--backend candle", Candle, 0),
            ("--backend cuda", CudaExact, 0),
            ("--device cuda", CudaExact, 0),
            ("--device cuda:3", CudaExact, 3),
            ("--backend candle --device cuda:0", CudaExact, 0),
            ("--backend cuda --device cuda:1 --gpu-mode fast", CudaFast, 1),
        ] {
            assert_eq!(resolved(line).unwrap(), Arithmetic { backend, gpu_ordinal }, "{line}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_what_would_work() {
        for (line, named) in [
            ("--backend canonical --device cuda:0", "--backend cuda"),
            ("--backend cuda --device cpu", "cuda:0"),
            ("--gpu-mode fast", "--device cuda:0"),
            ("--device gpu0", "cuda:N"),
            ("--device cuda:x", "cuda:N"),
            ("--device cuda:-1", "cuda:N"),
        ] {
            let message = resolved(line).unwrap_err().to_string();
            assert!(message.contains(named), "{line}: {message}");
        }
    }

    #[test]
    fn the_flags_for_a_child_mean_the_same() {
        for line in [
            "",
            "--backend candle",
            "--device cuda:2",
            "--device cuda:1 --gpu-mode fast",
        ] {
            let meant = resolved(line).unwrap();
            assert_eq!(resolved(&meant.to_args().join(" ")).unwrap(), meant, "{line}");
        }
    }

    #[test]
    fn a_build_without_cuda_says_how_to_get_one_with_it() {
        if kvasir_worker::HAS_CUDA {
            return;
        }
        let message = resolved("--device cuda:0")
            .unwrap()
            .can_compute_here()
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("cuda-exact") && message.contains("cargo xtask gpu"),
            "{message}"
        );
        resolved("").unwrap().can_compute_here().unwrap();
    }
}
