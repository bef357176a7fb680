//! Python's package installer, our way to prebuilt files on a fresh machine. Says in one line what is missing.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Downloads one package file, and nothing it depends on, into a folder.
pub fn download(package: &str, folder: &Path) -> Result<()> {
    pip(
        package,
        [
            OsStr::new("download"),
            "--no-deps".as_ref(),
            "-d".as_ref(),
            folder.as_ref(),
            package.as_ref(),
        ],
    )
}

/// Installs one package into a folder of its own, apart from any Python environment.
pub fn install(package: &str, folder: &Path) -> Result<()> {
    pip(
        package,
        [
            OsStr::new("install"),
            "--no-deps".as_ref(),
            "--target".as_ref(),
            folder.as_ref(),
            package.as_ref(),
        ],
    )
}

/// Unpacks a wheel, which is a zip file.
pub fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    let arguments = [
        OsStr::new("-m"),
        "zipfile".as_ref(),
        "-e".as_ref(),
        wheel.as_ref(),
        folder.as_ref(),
    ];
    if !python(arguments)? {
        bail!("cannot unpack {}", wheel.display());
    }
    Ok(())
}

fn pip<const N: usize>(package: &str, arguments: [&OsStr; N]) -> Result<()> {
    let common = ["-m", "pip", "--disable-pip-version-check"].map(OsStr::new);
    if python(common.into_iter().chain(arguments))? {
        return Ok(());
    }
    if !python(["-m", "pip", "--version"])? {
        bail!("python3 has no pip, which is needed to fetch {package}: install it (Debian: python3-pip)");
    }
    bail!("pip could not fetch {package}: its own words are above; is the network there?");
}

/// Whether python3 succeeded. What it prints goes to our standard error: standard output is for answers.
fn python(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<bool> {
    let status = Command::new("python3")
        .args(arguments)
        .stdout(Stdio::from(io::stderr()))
        .status();
    match status {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("python3 is not on PATH: it is needed to fetch prebuilt files")
        }
        Err(error) => Err(error).context("cannot start python3"),
    }
}
