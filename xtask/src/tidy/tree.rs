//! The files that the rules read: every text file of the repository outside build folders, in the order of their paths.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::source::Source;

/// Longer files are data, whatever their name.
const FILE_BYTES_MAX: u64 = 1 << 20;
const SKIPPED_FOLDERS: [&str; 4] = [".git", "target", "node_modules", "__pycache__"];
/// What cargo and others leave in folders that hold only what can be made again.
const CACHE_MARK: &str = "CACHEDIR.TAG";

#[derive(Default)]
pub struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        }
    }

    pub fn num_files(&self) -> usize {
        self.files.len()
    }

    /// Every file as `(path, text)`.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The Rust files that people wrote, those of build scripts, tests and examples included.
    pub fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let rust = self
            .files()
            .filter(|(path, _)| path.ends_with(".rs") && !path.contains("/generated/"));
        rust.map(|(path, text)| Source::new(path, text))
    }

    /// The manifests of the workspace's crates as `(folder, text)`.
    pub fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files()
            .filter_map(|(path, text)| Some((path.strip_suffix("/Cargo.toml")?, text)))
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED_FOLDERS.contains(&name.as_str()) && !entry.path().join(CACHE_MARK).exists() {
                self.read_folder(&entry.path(), &format!("{prefix}{name}/"))?;
            } else if kind.is_file() && entry.metadata()?.len() <= FILE_BYTES_MAX {
                // What is not UTF-8 is not text, and no rule is about it.
                let text = fs::read_to_string(entry.path()).ok();
                self.files.extend(text.map(|text| (format!("{prefix}{name}"), text)));
            }
        }
        Ok(())
    }
}
