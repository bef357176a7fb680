//! A folder with all that a machine needs that has a GPU, its driver and Python's CUDA libraries, and nothing else.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Program;
use crate::{model, paths, process};

/// What can be carried to such a machine at once, with room to spare for what travels beside it.
const BYTES_MAX: u64 = 60 << 20;
/// The default model is larger than that, so it goes in pieces.
const PIECE_BYTES: usize = 48 << 20;

pub struct Bundle {
    folder: PathBuf,
    bytes: u64,
    model_pieces: Vec<PathBuf>,
}

impl Bundle {
    /// Errors if it has become too large to carry.
    pub fn write(programs: &[Program]) -> Result<Self> {
        let root = paths::root();
        let folder = root.join("target/gpu-bundle");
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        pack_programs(programs, &folder)?;
        for script in ["gpu_check.sh", "torch_times.py"] {
            copy(&root.join("tests/gpu").join(script), &folder.join(script))?;
        }
        for data in ["tests/digests", "tests/reference/models"] {
            copy_folder(&root.join(data), &folder.join(data))?;
        }
        copy(
            &root.join("tests/reference/models.json"),
            &folder.join("tests/reference/models.json"),
        )?;
        let bytes = folder_bytes(&folder)?;
        if bytes > BYTES_MAX {
            bail!(
                "{} holds {bytes} bytes, at most {BYTES_MAX} can be carried",
                folder.display()
            );
        }
        Ok(Self {
            folder,
            bytes,
            model_pieces: write_model_pieces()?,
        })
    }

    /// The check, as it runs where a GPU is.
    pub fn check_command(&self) -> Command {
        let mut command = Command::new("bash");
        command.arg(self.folder.join("gpu_check.sh"));
        command
    }

    pub fn how_to_carry(&self) -> String {
        let pieces: Vec<String> = self
            .model_pieces
            .iter()
            .map(|piece| piece.display().to_string())
            .collect();
        format!(
            "no GPU here: copy {} to a machine that has one and run `bash gpu_check.sh` in it; for the checks on the \
             default model, first join {} there and name the file in KVASIR_MODEL",
            self.folder.display(),
            pieces.join(" and "),
        )
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        write!(
            formatter,
            "{}: {mib:.1} MiB of at most {} MiB",
            self.folder.display(),
            BYTES_MAX >> 20
        )
    }
}

/// One archive of all, since they have most in common: its dictionary is as long as several of them.
const PACK: &str = "\
import lzma, sys, tarfile
target, folder, *names = sys.argv[1:]
filters = [{'id': lzma.FILTER_LZMA2, 'preset': 6, 'dict_size': 256 << 20}]
with lzma.open(target, 'wb', filters=filters) as packed, tarfile.open(fileobj=packed, mode='w|') as archive:
    for name in names:
        archive.add(folder + '/' + name, name)
";

fn pack_programs(programs: &[Program], folder: &Path) -> Result<()> {
    let stripped = paths::root().join("target/cuda/stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    for program in programs {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(stripped.join(&program.name)).arg(&program.path);
        process::run(&mut strip).context("cannot strip a program (Debian: binutils)")?;
    }
    eprintln!("packing {} programs, which takes a minute or two", programs.len());
    let mut python = Command::new("python3");
    python
        .args(["-c", PACK])
        .arg(folder.join("programs.tar.xz"))
        .arg(&stripped);
    python.args(programs.iter().map(|program| &program.name));
    process::run(&mut python).context("cannot pack the programs")
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(())
}

fn copy_folder(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    for entry in source
        .read_dir()
        .with_context(|| format!("cannot list {}", source.display()))?
    {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        match path.is_dir() {
            true => copy_folder(&path, &target.join(name))?,
            false => copy(&path, &target.join(name))?,
        }
    }
    Ok(())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir()? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => folder_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

/// The default model in pieces that can each be carried, in order.
fn write_model_pieces() -> Result<Vec<PathBuf>> {
    let folder = paths::root().join("target/gpu-model");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let model = fs::read(model::fetch()?).context("cannot read the default model")?;
    let mut pieces = Vec::new();
    for (index, piece) in model.chunks(PIECE_BYTES).enumerate() {
        let path = folder.join(format!("piece-{index}"));
        fs::write(&path, piece).with_context(|| format!("cannot write {}", path.display()))?;
        pieces.push(path);
    }
    Ok(pieces)
}
