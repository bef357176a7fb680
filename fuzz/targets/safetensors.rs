//! A folder of safetensors files: opened, then everything in it used.
//!
//! The sections of an input are config.json, the index, tokenizer.json, tokenizer_config.json and up to two files of
//! weights, the second one only beside an index. Absent ones are empty.

#![no_main]

use std::fs;

use kvasir_fuzz::{
    checkpoint_use, memory, safetensors_shard,
    sections::{present, sections},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [config, index, tokenizer, tokenizer_config, first, second] = sections(input);
    let folder = kvasir_fuzz::scratch_folder();
    let texts = [
        ("config.json", config),
        ("model.safetensors.index.json", index),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ];
    for (name, bytes) in texts {
        if let Some(bytes) = present(bytes) {
            fs::write(folder.path().join(name), bytes).expect("a file in the scratch folder");
        }
    }
    let names = match present(index) {
        Some(_) => ["1.safetensors", "2.safetensors"],
        None => ["model.safetensors", "other.safetensors"],
    };
    for (name, section) in names.into_iter().zip([first, second]) {
        if let Some(section) = present(section) {
            safetensors_shard::write(&folder.path().join(name), section).expect("a file in the scratch folder");
        }
    }
    memory::bounded(input.len(), || {
        let _ = checkpoint_use::use_all(folder.path());
    });
});
