//! Checks the types of the CUDA build on machines without NVIDIA's compiler: a script answers in its place.
//!
//! The script creates the files that it is asked for, empty. That is enough to check and too little to link, and so the
//! target folder is one of its own: a real build would find those empty files fresh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{FEATURES, cuda_environment};
use crate::{paths, process};

/// cudarc reads the fourth line of the version; candle-kernels names outputs by `-o` or by the folder alone.
const SCRIPT: &str = r#"#!/bin/sh
# Stands in for nvcc where types are checked and nothing is compiled: creates what it is asked for, empty.
folder=. output= source=
while [ $# -gt 0 ]; do
  case "$1" in
    --version)
      printf 'nvcc: a stand-in that compiles nothing\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'
      exit ;;
    --list-gpu-code) echo sm_90; exit ;;
    --list-gpu-arch) echo compute_90; exit ;;
    -o) output=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    *.cu) source=$1 ;;
  esac
  shift
done
if [ -z "$output" ]; then
  output=$folder/$(basename "$source" .cu).ptx
fi
: > "$output"
"#;

/// Errors if anything that the features add does not pass clippy.
pub fn check() -> Result<()> {
    let target = paths::root().join("target/cuda-check");
    let nvcc = write_script(&target.join("toolkit"))?;
    let mut cargo = paths::cargo();
    cargo.args([
        "clippy",
        "--quiet",
        "--package",
        "kvasir",
        "--package",
        "kvasir-tests",
        "--features",
        FEATURES,
    ]);
    cargo
        .args(["--lib", "--bins", "--examples", "--target-dir"])
        .arg(&target);
    cuda_environment(&mut cargo, &target.join("toolkit"), &nvcc);
    process::run(cargo.args(["--", "-D", "warnings"]))
}

/// Written only where it differs: build scripts run again when it is newer than what they made.
fn write_script(home: &Path) -> Result<PathBuf> {
    let path = home.join("bin/nvcc");
    if fs::read_to_string(&path).is_ok_and(|found| found == SCRIPT) {
        return Ok(path);
    }
    let cannot = || format!("cannot write {}", path.display());
    fs::create_dir_all(home.join("bin")).with_context(cannot)?;
    fs::write(&path, SCRIPT).with_context(cannot)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(cannot)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_script_answers_and_makes_what_it_is_asked_for() {
        let home = std::env::temp_dir().join(format!("kvasir-nvcc-{}", std::process::id()));
        let nvcc = write_script(&home).unwrap();
        let said = |arguments: &[&str]| {
            let output = Command::new(&nvcc).args(arguments).current_dir(&home).output().unwrap();
            assert!(output.status.success(), "{arguments:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let version = said(&["--version"]);
        said(&["--ptx", "--output-directory", "bin", "src/a.cu"]);
        said(&["--lib", "-o", "b.a", "b.o"]);
        let made = [home.join("bin/a.ptx").is_file(), home.join("b.a").is_file()];
        fs::remove_dir_all(&home).unwrap();
        assert_eq!(
            version.lines().nth(3).and_then(|line| line.split(", ").nth(1)),
            Some("release 13.0")
        );
        assert_eq!(made, [true, true]);
    }
}
