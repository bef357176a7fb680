//! `cargo xtask clients`: other people's clients (OpenAI's for Python, grpcio, grpcurl) against a running cluster.
//!
//! Their packages go to the cache, by the checksum of the list of them, and touch no Python environment.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::download::Download;
use crate::{checksum, model, paths, pip, process};

/// Runs the tests in `tests/clients`; `filters` go to pytest as they are. The binary must be built.
pub fn run(filters: &[String]) -> Result<ExitCode> {
    let tests = paths::root().join("tests/clients");
    let packages = ensure_packages(&tests.join("requirements.txt"))?;
    let model = match paths::non_empty("KVASIR_MODEL") {
        Some(model) => model,
        None => model::fetch()?,
    };
    let mut pytest = Command::new("python3");
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .args(if filters.is_empty() {
            vec![tests.into_os_string()]
        } else {
            named(&tests, filters)
        })
        .env("PYTHONPATH", &packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PATH", path_with(&packages.join("bin"))?)
        .env("KVASIR_BIN", paths::kvasir_binary()?)
        .env("KVASIR_MODEL", model);
    process::run(&mut pytest)?;
    Ok(ExitCode::SUCCESS)
}

/// Files of the folder by their names, flags as they are.
fn named(tests: &Path, filters: &[String]) -> Vec<OsString> {
    let in_folder = |filter: &String| match tests.join(filter).exists() {
        true => tests.join(filter).into_os_string(),
        false => filter.into(),
    };
    filters.iter().map(in_folder).collect()
}

/// Where they are importable from.
fn ensure_packages(requirements: &Path) -> Result<PathBuf> {
    let list = fs::read_to_string(requirements);
    let list = list.with_context(|| format!("cannot read {}", requirements.display()))?;
    let sum = checksum::of_text(&list);
    let place = paths::cache()?.join("tools").join(format!("clients-{}", &sum[..16]));
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("fetching the clients for Python");
    let download = Download::beside(&place)?;
    let unpacked = download.folder().join("clients");
    pip::install_listed(requirements, &unpacked)?;
    download.replace(&unpacked, &place)?;
    Ok(place)
}

fn path_with(folder: &Path) -> Result<OsString> {
    let mut folders = vec![folder.to_owned()];
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    Ok(env::join_paths(folders)?)
}
