//! A GGUF file: opened, then everything in it used.
//!
//! The first byte of an input says whether zeros follow the rest, as weights. So a small input can have a whole header.

#![no_main]

use std::{fs::File, io::Write, path::Path};

use kvasir_fuzz::{checkpoint_use, memory};
use libfuzzer_sys::fuzz_target;

const WEIGHT_BYTES: u64 = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let folder = kvasir_fuzz::scratch_folder();
    let path = folder.path().join("model.gguf");
    write(&path, bytes, mode % 2 == 1).expect("a file in the scratch folder");
    memory::bounded(bytes.len(), || {
        let _ = checkpoint_use::use_all(&path);
    });
});

fn write(path: &Path, bytes: &[u8], with_weights: bool) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    let more = if with_weights { WEIGHT_BYTES } else { 0 };
    file.set_len(bytes.len() as u64 + more)
}
