//! llama.cpp's own measuring programs, built here for this processor, once for each version.
//!
//! The sources travel inside a Python package, since package registries are what a closed network mirrors; so do the
//! tools that build them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::machine;
use crate::checksum;
use crate::download::Download;
use crate::{paths, pip, process, tools};

const PACKAGE: &str = "llama-cpp-python";
const VERSION: &str = "0.3.36";
const ARCHIVE: &str = "llama_cpp_python-0.3.36.tar.gz";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
const SOURCES_IN_ARCHIVE: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";
const BUILD_TOOLS: [&str; 2] = ["cmake==4.1.2", "ninja==1.13.0"];
const CMAKE_IN_PACKAGE: &str = "cmake/data/bin/cmake";
const NINJA_IN_PACKAGE: &str = "bin/ninja";
/// What llama.cpp is configured with: optimized, for this very processor, without what measuring does not need.
const SETTINGS: [&str; 9] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
];
const BENCH: &str = "llama-bench";
const BATCHED_BENCH: &str = "llama-batched-bench";
const RPC_SERVER: &str = "ggml-rpc-server";
const ALL: [&str; 3] = [BENCH, BATCHED_BENCH, RPC_SERVER];
const BUILD_LIMIT: Duration = Duration::from_secs(3 * 3600);

#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// What is in the cache, else built into it.
    pub fn ensure() -> Result<Self> {
        let name = format!("llama.cpp-{VERSION}-{}", machine::cpu_fingerprint());
        let folder = paths::cache()?.join("tools").join(name);
        if !ALL.iter().all(|name| folder.join(name).is_file()) {
            build(&folder)?;
        }
        Ok(Self { folder })
    }

    /// Prompts, and answers one at a time.
    pub fn bench(&self) -> Command {
        Command::new(self.folder.join(BENCH))
    }

    /// Several answers at once.
    pub fn batched_bench(&self) -> Command {
        Command::new(self.folder.join(BATCHED_BENCH))
    }

    pub fn rpc_server(&self) -> Command {
        Command::new(self.folder.join(RPC_SERVER))
    }
}

/// Where the programs come from and how they were built.
pub fn origin() -> String {
    format!("from {PACKAGE} {VERSION}, built here with {}", SETTINGS[..3].join(" "))
}

fn build(place: &Path) -> Result<()> {
    eprintln!("building llama.cpp ({PACKAGE} {VERSION}), once: about ten minutes on two cores");
    tools::ensure_cpp_compiler()?;
    let download = Download::beside(place)?;
    let folder = download.folder();
    let build_tools = folder.join("build-tools");
    pip::install(&BUILD_TOOLS, &build_tools)?;
    let sources = fetch_sources(folder)?;
    let built = folder.join("built");
    configure(&build_tools, &sources, &built)?;
    compile(&build_tools, &built)?;
    let programs = folder.join("programs");
    fs::create_dir(&programs)?;
    for name in ALL {
        let program = built.join("bin").join(name);
        ensure!(program.is_file(), "llama.cpp's build made no {}", program.display());
        fs::rename(program, programs.join(name))?;
    }
    download.replace(&programs, place)
}

fn fetch_sources(folder: &Path) -> Result<PathBuf> {
    pip::download_sources(PACKAGE, VERSION, folder)?;
    let archive = folder.join(ARCHIVE);
    checksum::verify(&archive, SHA256).with_context(|| format!("{PACKAGE} {VERSION} is not what it was"))?;
    pip::unpack_sources(&archive, folder)?;
    let sources = folder.join(SOURCES_IN_ARCHIVE);
    ensure!(sources.is_dir(), "{ARCHIVE} holds no {SOURCES_IN_ARCHIVE}");
    Ok(sources)
}

fn configure(build_tools: &Path, sources: &Path, built: &Path) -> Result<()> {
    let mut ninja = std::ffi::OsString::from("-DCMAKE_MAKE_PROGRAM=");
    ninja.push(build_tools.join(NINJA_IN_PACKAGE));
    let mut configure = cmake(build_tools);
    configure
        .args(["-G", "Ninja"])
        .args(SETTINGS)
        .arg(ninja)
        .arg("-S")
        .arg(sources)
        .arg("-B")
        .arg(built);
    process::run_within(&mut configure, BUILD_LIMIT)
}

fn compile(build_tools: &Path, built: &Path) -> Result<()> {
    let mut compile = cmake(build_tools);
    compile.arg("--build").arg(built).arg("--target").args(ALL);
    process::run_within(&mut compile, BUILD_LIMIT)
}

/// What it prints goes to our standard error: standard output is for answers.
fn cmake(build_tools: &Path) -> Command {
    let mut cmake = Command::new(build_tools.join(CMAKE_IN_PACKAGE));
    cmake.stdout(Stdio::from(io::stderr()));
    cmake
}
