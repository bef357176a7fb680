//! Builds what runs on an NVIDIA GPU, on a machine that needs none, and folds it into a bundle for one that has nothing else.
//!
//! Proves here what can be proved without a GPU: every kernel goes through NVIDIA's compiler and assembler and keeps to
//! its limits of registers and memory, and the binary links. What the GPU itself computes, the bundle's check says there.

mod bundle;
mod kernels;
mod link_stubs;
mod stand_in;
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::arguments::GpuExtent;
use crate::{paths, process};

use bundle::Bundle;
use kernels::Kernels;
use toolkit::Toolkit;

/// What is built for GPUs of Hopper's kind.
const COMPUTE_CAPABILITY: &str = "90";
/// As cudarc counts CUDA 13.0.
const CUDA_VERSION: &str = "13000";
const FEATURES: &str = "nccl";

pub fn run(extent: GpuExtent) -> Result<ExitCode> {
    if extent == GpuExtent::Types {
        stand_in::check()?;
        return Ok(ExitCode::SUCCESS);
    }
    let toolkit = Toolkit::ensure()?;
    let compiled = Kernels::in_tree()?.compile(&toolkit)?;
    println!("{compiled}");
    compiled.check_limits()?;
    let build = CudaBuild::new(toolkit);
    let bundle = Bundle::write(&build.binaries()?)?;
    println!("{bundle}");
    if extent == GpuExtent::Build {
        return Ok(ExitCode::SUCCESS);
    }
    if !has_gpu() {
        println!("{}", bundle.how_to_carry());
        return Ok(ExitCode::SUCCESS);
    }
    let status = bundle.check_command().status().context("cannot start gpu-check")?;
    Ok(ExitCode::from(
        status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

/// Whether the driver answers and names a GPU.
fn has_gpu() -> bool {
    let listed = Command::new("nvidia-smi").arg("-L").stderr(Stdio::null()).output();
    listed.is_ok_and(|listed| listed.status.success() && listed.stdout.starts_with(b"GPU "))
}

/// A build of its own, in a target folder of its own: its `kvasir` does not start without the driver's library, and
/// must not take the ordinary one's place.
struct CudaBuild {
    toolkit: Toolkit,
    target: PathBuf,
}

/// The programs that go to the GPU machine.
struct Binaries {
    kvasir: PathBuf,
    gpu_check: PathBuf,
}

impl CudaBuild {
    fn new(toolkit: Toolkit) -> Self {
        let target = paths::root().join("target/cuda");
        Self { toolkit, target }
    }

    /// Compiles the libraries, makes stand-ins for what they call, and links the programs.
    fn binaries(&self) -> Result<Binaries> {
        let profile = self.target.join("debug");
        process::run(&mut self.cargo(&["--package", "kvasir-tests", "--lib"]))?;
        let stubs = self.target.join("stubs");
        link_stubs::write(&profile.join("deps"), &stubs)?;
        for what in [
            ["--package", "kvasir", "--bin", "kvasir"],
            ["--package", "kvasir-tests", "--example", "gpu_check"],
        ] {
            process::run(self.cargo(&what).env("LIBRARY_PATH", &stubs))?;
        }
        Ok(Binaries {
            kvasir: profile.join("kvasir"),
            gpu_check: profile.join("examples/gpu_check"),
        })
    }

    fn cargo(&self, what: &[&str]) -> Command {
        let mut cargo = paths::cargo();
        cargo.arg("build").args(what).args(["--features", FEATURES]);
        cargo.arg("--target-dir").arg(&self.target);
        cuda_environment(&mut cargo, self.toolkit.home(), &self.toolkit.nvcc());
        cargo
    }
}

/// Tells every build script of this toolkit.
fn cuda_environment(command: &mut Command, home: &Path, nvcc: &Path) {
    command
        .env("CUDA_HOME", home)
        .env("CUDA_PATH", home)
        .env("NVCC", nvcc)
        .env("CUDA_COMPUTE_CAP", COMPUTE_CAPABILITY)
        .env("CUDARC_CUDA_VERSION", CUDA_VERSION);
}
