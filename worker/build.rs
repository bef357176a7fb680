//! Compiles the GPU kernels of `cuda/` where a feature asks for them; the ordinary build does nothing here.
//!
//! `cuda`: NVIDIA's compiler makes an image of each .cu file, which the binary holds: machine code for Hopper, and PTX, of
//! which the driver makes machine code for what is newer. `NVCC` names the compiler, else it is `nvcc` on PATH.
//!
//! `cuda-on-host`: the C++ compiler makes the same files run on this machine, for tests.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_for_gpu(&PathBuf::from(env::var("OUT_DIR")?))?;
    }
    #[cfg(feature = "cuda-on-host")]
    compile_for_host()?;
    Ok(())
}

/// One static library. The bits depend on these flags; `HostDevice::new` asks whether the processor has what -march
/// promises.
#[cfg(feature = "cuda-on-host")]
fn compile_for_host() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cuda");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if arch != "x86_64" {
        return Err(format!(
            "the kernels run on hosts that are x86_64, and this one is {arch}: leave cuda-on-host out"
        )
        .into());
    }
    let flags = [
        "-ffp-contract=off",
        "-fno-fast-math",
        "-march=x86-64-v3",
        "-fno-exceptions",
        "-fno-rtti",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
        "-xc++",
    ];
    let mut build = cc::Build::new();
    build.cpp(true).cpp_link_stdlib(None).std("c++17").opt_level(2);
    build.define("KVASIR_ON_HOST", None);
    for flag in flags {
        build.flag(flag);
    }
    build.file("cuda/on_host.cpp").files(sources()?);
    build.try_compile("kvasir_kernels_on_host")?;
    Ok(())
}

/// Leaves `images.rs`: one pair of name and bytes for each file.
fn compile_for_gpu(output: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=NVCC");
    let mut list = String::new();
    for source in sources()? {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let target = output.join(&stem).with_extension("fatbin");
        nvcc(&source, &target)?;
        writeln!(list, "({stem:?}, include_bytes!({target:?})),")?;
    }
    fs::write(output.join("images.rs"), format!("&[\n{list}]\n"))?;
    Ok(())
}

fn sources() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir("cuda")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// IEEE arithmetic and no contraction: the exact kernels compute what the CPU computes, bit for bit.
fn nvcc(source: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let compiler = env::var_os("NVCC").unwrap_or_else(|| "nvcc".into());
    let status = Command::new(&compiler)
        .args(["--fatbin", "-gencode=arch=compute_90,code=sm_90"])
        .args(["-gencode=arch=compute_90,code=compute_90", "-std=c++17", "-O3"])
        .args(["-fmad=false", "-o"])
        .arg(target)
        .arg(source)
        .status()
        .map_err(|error| {
            format!(
                "cannot start {}: {error}; `cargo xtask gpu` fetches it",
                compiler.display()
            )
        })?;
    if !status.success() {
        return Err(format!("{} of {} ended with {status}", compiler.display(), source.display()).into());
    }
    Ok(())
}
