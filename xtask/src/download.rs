//! A folder beside the place where a download belongs: what is complete moves out by one rename, the rest vanishes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

#[derive(Debug)]
pub struct Download {
    folder: PathBuf,
}

impl Download {
    /// Opens an empty folder beside `target`, hence on the same file system.
    pub fn beside(target: &Path) -> Result<Self> {
        let parent = target.parent().context("a download needs a folder to go to")?;
        let folder = parent.join(format!(".download-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Moves a finished piece of the download to its place; nobody ever sees half of it there.
    pub fn keep(&self, piece: &Path, target: &Path) -> Result<()> {
        fs::rename(piece, target).with_context(|| format!("cannot move the download to {}", target.display()))
    }

    /// The same where a torn leftover may lie, which a rename needs gone.
    pub fn replace(&self, piece: &Path, target: &Path) -> Result<()> {
        if target.exists() {
            fs::remove_dir_all(target).with_context(|| format!("cannot clear {}", target.display()))?;
        }
        self.keep(piece, target)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Nothing depends on it: a leftover costs disk space alone.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
