//! What a newcomer sees first: a local cluster of real processes that answers.
//!
//! It will start a coordinator and workers, stream an answer and show the plan and tokens per second. Today it makes
//! sure of the model and the binary, and then says that the rest is missing: it never pretends.

use std::path::Path;

use anyhow::{Result, bail};

/// Shows a cluster of `binary`'s processes serving `model`.
pub fn run(model: &Path, binary: &Path) -> Result<()> {
    if !binary.is_file() {
        bail!("the build left no {}", binary.display());
    }
    eprintln!("model   {}", model.display());
    eprintln!("binary  {}", binary.display());
    bail!("model and binary are ready, but the demo does not yet start a cluster");
}
