//! NVIDIA's compiler, from Python packages in the cache: no installed CUDA is needed, and none is used.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::download::Download;
use crate::{paths, pip};

/// Pinned together: PTX of a newer toolkit is refused by a driver that is older.
const PACKAGES: [&str; 6] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
];
const FOLDER: &str = "cuda-13.0.88";
const FOLDER_IN_PACKAGES: &str = "nvidia/cu13";

#[derive(Debug)]
pub struct Toolkit {
    home: PathBuf,
}

impl Toolkit {
    /// What is in the cache, else fetched into it. Errors on machines that NVIDIA's packages are not for.
    pub fn ensure() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "the CUDA build is for x86_64, this machine is {}",
                std::env::consts::ARCH
            );
        }
        let place = paths::cache()?.join("tools").join(FOLDER);
        let toolkit = Self {
            home: place.join(FOLDER_IN_PACKAGES),
        };
        if !toolkit.nvcc().is_file() {
            fetch(&place)?;
        }
        Ok(toolkit)
    }

    /// What build scripts call `CUDA_HOME`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn nvcc(&self) -> PathBuf {
        self.home.join("bin/nvcc")
    }
}

fn fetch(place: &Path) -> Result<()> {
    eprintln!("fetching NVIDIA's compiler (488 MB unpacked)");
    let download = Download::beside(place)?;
    let unpacked = download.folder().join(FOLDER);
    pip::install(&PACKAGES, &unpacked)?;
    let home = unpacked.join(FOLDER_IN_PACKAGES);
    if !home.join("bin/nvcc").is_file() {
        bail!("{} holds no {FOLDER_IN_PACKAGES}/bin/nvcc", PACKAGES[0]);
    }
    // Linked statically, so that the GPU machine needs no CUDA runtime of this version.
    symlink("libcudart_static.a", home.join("lib/libcudart.a")).context("cannot link libcudart.a")?;
    download.replace(&unpacked, place)
}
