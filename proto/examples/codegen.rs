//! Generates `src/generated/` from the .proto files. `cargo xtask codegen` runs it.

use std::path::Path;

#[path = "../tests/generate/mod.rs"]
mod generate;

fn main() -> anyhow::Result<()> {
    generate::into_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated"))
}
