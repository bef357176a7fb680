//! The tokenizer's metadata of a GGUF file that is otherwise sound.

#![no_main]

use std::fs;

use kvasir_fuzz::{gguf_model::TokenizerMetadata, memory, tokenizer_use};
use kvasir_model::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|metadata: TokenizerMetadata| {
    let bytes = metadata.to_gguf();
    let folder = kvasir_fuzz::scratch_folder();
    let path = folder.path().join("model.gguf");
    fs::write(&path, &bytes).expect("a file in the scratch folder");
    memory::bounded(bytes.len(), || {
        let Ok(checkpoint) = Checkpoint::open(&path) else {
            return;
        };
        if let Ok(tokenizer) = checkpoint.tokenizer() {
            tokenizer_use::use_all(tokenizer, &metadata.text);
        }
    });
});
