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

use anyhow::{Context, Result, bail};

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
/// Tests that run on the device that `KVASIR_GPU` names, beside those of the kernels.
const TESTS: [&str; 3] = ["gpu_parity", "gpu_group", "gpu_fast"];
/// The kernels are slow on the host.
const DRY_RUN_SECONDS: &str = "900";

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
    let bundle = Bundle::write(&build.programs()?)?;
    println!("{bundle}");
    let mut check = bundle.check_command();
    match extent {
        GpuExtent::Types | GpuExtent::Build => return Ok(ExitCode::SUCCESS),
        GpuExtent::DryRun => {
            check.env("KVASIR_GPU", "host").env("LD_LIBRARY_PATH", build.stubs());
            check
                .env("GPU_CHECK_SECONDS", DRY_RUN_SECONDS)
                .env("GPU_TEST_SECONDS", DRY_RUN_SECONDS);
        }
        GpuExtent::Check if has_gpu() => {}
        GpuExtent::Check => {
            println!("{}", bundle.how_to_carry());
            return Ok(ExitCode::SUCCESS);
        }
    }
    let status = check.status().context("cannot start gpu-check")?;
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

/// A program that goes to the GPU machine, and its name there.
struct Program {
    path: PathBuf,
    name: String,
}

impl CudaBuild {
    fn new(toolkit: Toolkit) -> Self {
        let target = paths::root().join("target/cuda");
        Self { toolkit, target }
    }

    /// Compiles the libraries, makes stand-ins for what they call, and links the programs: the binary, the measurements,
    /// and the tests that run on a GPU as they run in CI on the host's device.
    fn programs(&self) -> Result<Vec<Program>> {
        process::run(&mut self.cargo("build", &["--package", "kvasir-tests", "--lib"]))?;
        link_stubs::write(&self.target.join("debug/deps"), &self.stubs())?;
        let mut what = vec!["--package", "kvasir", "--bin", "kvasir", "--package", "kvasir-tests"];
        what.extend(["--example", "gpu_bench"]);
        what.extend(TESTS.iter().flat_map(|test| ["--test", test]));
        let mut programs = self.executables("build", &what)?;
        programs.extend(self.executables("test", &["--no-run", "--package", "kvasir-worker", "--lib"])?);
        Ok(programs)
    }

    fn executables(&self, command: &str, what: &[&str]) -> Result<Vec<Program>> {
        let mut cargo = self.cargo(command, what);
        cargo
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit());
        let output = cargo
            .output()
            .with_context(|| format!("cannot start {}", process::line(&cargo)))?;
        if !output.status.success() {
            bail!("{} ended with {}", process::line(&cargo), output.status);
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        Ok(messages.lines().filter_map(Program::in_message).collect())
    }

    fn stubs(&self) -> PathBuf {
        self.target.join("stubs")
    }

    fn cargo(&self, command: &str, what: &[&str]) -> Command {
        let mut cargo = paths::cargo();
        cargo.arg(command).args(what).args(["--features", &features(what)]);
        cargo.arg("--target-dir").arg(&self.target);
        cargo.env("LIBRARY_PATH", self.stubs());
        cuda_environment(&mut cargo, self.toolkit.home(), &self.toolkit.nvcc());
        cargo
    }
}

/// Of each package that is named: the device on the host belongs to all, so that they share what is compiled.
fn features(what: &[&str]) -> String {
    let packages = what
        .windows(2)
        .filter(|pair| pair[0] == "--package")
        .map(|pair| pair[1]);
    let of_package = |package| match package {
        "kvasir-worker" => "kvasir-worker/nccl,kvasir-worker/cuda-on-host".to_owned(),
        other => format!("{other}/{FEATURES}"),
    };
    packages.map(of_package).collect::<Vec<_>>().join(",")
}

impl Program {
    /// From a line that cargo writes about what it built. The name is without cargo's hash.
    fn in_message(line: &str) -> Option<Self> {
        let path = PathBuf::from(line.split_once("\"executable\":\"")?.1.split_once('"')?.0);
        let file = path.file_name()?.to_string_lossy().into_owned();
        let in_deps = path.parent().is_some_and(|folder| folder.ends_with("deps"));
        let name = match file.rsplit_once('-') {
            Some((name, _)) if in_deps => name.to_owned(),
            _ => file,
        };
        // The library's own tests, which cargo names as the library.
        let name = name.replace("kvasir_worker", "worker_tests");
        Some(Self { path, name })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_target() {
        let name = |path: &str| {
            let line = format!("{{\"reason\":\"compiler-artifact\",\"executable\":\"{path}\",\"fresh\":true}}");
            Program::in_message(&line).map(|program| program.name)
        };
        assert_eq!(name("/t/debug/kvasir").as_deref(), Some("kvasir"));
        assert_eq!(name("/t/debug/deps/gpu_parity-0123abcd").as_deref(), Some("gpu_parity"));
        assert_eq!(
            name("/t/debug/deps/kvasir_worker-0123abcd").as_deref(),
            Some("worker_tests")
        );
        assert_eq!(name("/t/debug/examples/gpu_bench").as_deref(), Some("gpu_bench"));
        assert!(Program::in_message("{\"executable\":null}").is_none());
    }

    #[test]
    fn every_package_gets_its_features() {
        assert_eq!(features(&["--package", "kvasir", "--bin", "kvasir"]), "kvasir/nccl");
        let both = features(&["--package", "kvasir", "--package", "kvasir-tests"]);
        assert_eq!(both, "kvasir/nccl,kvasir-tests/nccl");
    }
}
