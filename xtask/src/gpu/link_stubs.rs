//! Stand-ins for the GPU machine's libraries, to link against: the right names, the symbols that are called, no code.
//!
//! The driver's library comes with the driver, and the others are larger than all the rest; none is needed to build.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

struct Library {
    name: &'static str,
    /// By which the program finds the real one.
    soname: &'static str,
    /// What its symbols begin with, and what the next character is.
    prefix: &'static str,
}

/// The first one that a symbol fits is the one it belongs to.
const LIBRARIES: [Library; 6] = [
    Library {
        name: "cublasLt",
        soname: "libcublasLt.so.13",
        prefix: "cublasLt",
    },
    Library {
        name: "cublas",
        soname: "libcublas.so.13",
        prefix: "cublas",
    },
    Library {
        name: "curand",
        soname: "libcurand.so.10",
        prefix: "curand",
    },
    Library {
        name: "nvrtc",
        soname: "libnvrtc.so.13",
        prefix: "nvrtc",
    },
    Library {
        name: "nccl",
        soname: "libnccl.so.2",
        prefix: "nccl",
    },
    Library {
        name: "cuda",
        soname: "libcuda.so.1",
        prefix: "cu",
    },
];
/// The crates whose objects call them.
const CALLERS: [&str; 5] = [
    "libcudarc-",
    "libcandle_core-",
    "libcandle_kernels-",
    "libkvasir_worker-",
    "libkvasir_tests-",
];

/// Makes one library each in `folder`, with what the compiled crates in `dependencies` leave undefined.
pub fn write(dependencies: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut symbols = BTreeSet::new();
    for path in callers(dependencies)? {
        symbols.extend(undefined_symbols(&path)?);
    }
    for library in &LIBRARIES {
        let of_it: Vec<&String> = symbols.iter().filter(|symbol| library.owns(symbol)).collect();
        library.write(&of_it, folder)?;
    }
    Ok(())
}

fn callers(dependencies: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in dependencies
        .read_dir()
        .with_context(|| format!("cannot list {}", dependencies.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && CALLERS.iter().any(|caller| name.starts_with(caller)) {
            paths.push(entry.path());
        }
    }
    if paths.is_empty() {
        bail!("{} holds no compiled crate that calls CUDA", dependencies.display());
    }
    Ok(paths)
}

/// An archive's metadata is no object, of which nm complains on standard error; the objects are listed all the same.
fn undefined_symbols(archive: &Path) -> Result<Vec<String>> {
    let listed = Command::new("nm")
        .args(["--undefined-only", "--format=just-symbols"])
        .arg(archive)
        .stderr(Stdio::null())
        .output()
        .context("cannot start nm, which comes with gcc (Debian: binutils)")?;
    if !listed.status.success() {
        bail!("nm could not list {}: {}", archive.display(), listed.status);
    }
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

impl Library {
    fn owns(&self, symbol: &str) -> bool {
        LIBRARIES
            .iter()
            .find(|library| library.fits(symbol))
            .is_some_and(|owner| owner.name == self.name)
    }

    /// `cuInit` is the driver's; `cudaMalloc` is of the runtime, which is linked statically.
    fn fits(&self, symbol: &str) -> bool {
        let rest = symbol.strip_prefix(self.prefix);
        rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
    }

    /// So that a program starts with the stand-ins, to see that it runs as far as it does without a GPU.
    fn link_soname(&self, folder: &Path) -> Result<()> {
        let link = folder.join(self.soname);
        let _ = fs::remove_file(&link);
        symlink(format!("lib{}.so", self.name), &link).with_context(|| format!("cannot link {}", link.display()))
    }

    fn write(&self, symbols: &[&String], folder: &Path) -> Result<()> {
        let mut source = String::new();
        for symbol in symbols {
            writeln!(source, "void {symbol}(void) {{}}")?;
        }
        let source_path = folder.join(self.name).with_extension("c");
        fs::write(&source_path, source).with_context(|| format!("cannot write {}", source_path.display()))?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-w"])
            .arg(format!("-Wl,-soname,{}", self.soname))
            .arg("-o")
            .arg(folder.join(format!("lib{}.so", self.name)))
            .arg(&source_path);
        process::run(&mut gcc).context("cannot make a library to link against")?;
        self.link_soname(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(symbol: &str) -> Option<&'static str> {
        LIBRARIES
            .iter()
            .find(|library| library.owns(symbol))
            .map(|library| library.name)
    }

    #[test]
    fn a_symbol_belongs_to_one_library() {
        assert_eq!(owner("cuInit"), Some("cuda"));
        assert_eq!(owner("cublasLtMatmul"), Some("cublasLt"));
        assert_eq!(owner("cublasGemmEx"), Some("cublas"));
        assert_eq!(owner("ncclAllReduce"), Some("nccl"));
        assert_eq!(owner("cudaMalloc"), None);
        assert_eq!(owner("current"), None);
    }
}
