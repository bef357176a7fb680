//! Fuzzing of everything that reads bytes which strangers made: what the targets have in common.
//!
//! A target fails by a panic, by an assertion that does not hold, by taking more memory than its input justifies
//! (`memory`), or by not coming to an end in time, which libFuzzer watches. `cargo xtask fuzz` builds and runs them.

pub mod checkpoint_use;
// The writer of the tests, without the rest of their crate, which needs the whole cluster.
pub mod gguf_model;
#[allow(dead_code)]
#[path = "../../tests/src/gguf_writer.rs"]
mod gguf_writer;
pub mod memory;
pub mod safetensors_shard;
pub mod sections;
pub mod tokenizer_use;

use std::path::Path;

/// An empty folder, in memory where there is such a place, that is gone with the value.
pub fn scratch_folder() -> tempfile::TempDir {
    let in_memory = Path::new("/dev/shm");
    let folder = if in_memory.is_dir() {
        tempfile::tempdir_in(in_memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder for temporary files")
}
