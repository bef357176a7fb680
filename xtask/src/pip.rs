//! Python's package installer, our way to prebuilt files on a fresh machine. Says in one line what is missing.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{self, Ended};

/// The largest file is a hundred megabytes; a line too slow for it is as good as none.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

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

/// Downloads a package's sources as they were published. Builds nothing of it, though pip fetches what would.
pub fn download_sources(name: &str, version: &str, folder: &Path) -> Result<()> {
    let package = format!("{name}=={version}");
    let arguments = [
        OsStr::new("download"),
        "--no-deps".as_ref(),
        "--no-binary".as_ref(),
        name.as_ref(),
        "-d".as_ref(),
        folder.as_ref(),
        package.as_ref(),
    ];
    pip(&package, arguments)
}

/// Installs packages into a folder of their own, apart from any Python environment.
pub fn install(packages: &[&str], folder: &Path) -> Result<()> {
    let common = [
        OsStr::new("install"),
        "--no-deps".as_ref(),
        "--target".as_ref(),
        folder.as_ref(),
    ];
    let arguments = common.into_iter().chain(packages.iter().map(OsStr::new));
    pip(&packages.join(", "), arguments)
}

/// Installs what a file lists, and what that depends on, into a folder of their own.
pub fn install_listed(requirements: &Path, folder: &Path) -> Result<()> {
    let arguments = [
        OsStr::new("install"),
        "--quiet".as_ref(),
        "--target".as_ref(),
        folder.as_ref(),
        "--requirement".as_ref(),
        requirements.as_ref(),
    ];
    pip(&requirements.display().to_string(), arguments)
}

/// Unpacks a wheel, which is a zip file.
pub fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    unpack_with("zipfile", wheel, folder)
}

/// Unpacks what `download_sources` left, which is a tar file.
pub fn unpack_sources(archive: &Path, folder: &Path) -> Result<()> {
    unpack_with("tarfile", archive, folder)
}

fn unpack_with(module: &str, archive: &Path, folder: &Path) -> Result<()> {
    let arguments = [
        OsStr::new("-m"),
        module.as_ref(),
        "-e".as_ref(),
        archive.as_ref(),
        folder.as_ref(),
    ];
    if !python(arguments)? {
        bail!("cannot unpack {}", archive.display());
    }
    Ok(())
}

fn pip<'a>(package: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
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
    let mut python = Command::new("python3");
    python
        .args(arguments)
        .stdout(Stdio::from(io::stderr()))
        .env("PIP_ROOT_USER_ACTION", "ignore");
    match process::run_until(&mut python, Instant::now() + FETCH_LIMIT) {
        Ok(Ended::Exited(status)) => Ok(status.success()),
        Ok(Ended::TimedOut) => bail!(
            "{} took longer than {} s",
            process::line(&python),
            FETCH_LIMIT.as_secs()
        ),
        Err(error) if is_not_found(&error) => bail!("python3 is not on PATH: it is needed to fetch prebuilt files"),
        Err(error) => Err(error),
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}
