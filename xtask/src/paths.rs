//! Where things are: the repository, the cache, the built binary, the cargo that called us. Reads no file.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository's root. Cargo names our manifest at run time, so a binary built for another checkout still finds this one.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_owned)
}

/// `${XDG_CACHE_HOME:-~/.cache}/kvasir`.
pub fn cache() -> Result<PathBuf> {
    let base = match non_empty("XDG_CACHE_HOME") {
        Some(cache) => cache,
        None => non_empty("HOME")
            .context("neither XDG_CACHE_HOME nor HOME is set: no place for a cache")?
            .join(".cache"),
    };
    Ok(base.join("kvasir"))
}

/// The path in an environment variable; an empty one counts as unset.
pub fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The `kvasir` that `cargo build` leaves. We lie in the same target folder, whatever it is called.
pub fn kvasir_binary() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where xtask itself lies")?;
    let profiles = own
        .parent()
        .and_then(Path::parent)
        .context("xtask does not lie in a target folder")?;
    Ok(profiles.join("debug").join("kvasir"))
}

/// The cargo that runs us, started in the root.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}
