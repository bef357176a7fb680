//! A tokenizer.json, used on a text, and the roles that the files beside it give to tokens.
//!
//! The sections of an input are tokenizer.json, the text, tokenizer_config.json and generation_config.json.

#![no_main]

use kvasir_fuzz::{
    memory,
    sections::{present, sections},
    tokenizer_use,
};
use kvasir_model::{TokenRoles, Tokenizer, TokenizerFiles};
use libfuzzer_sys::fuzz_target;

const VOCAB_SIZE: u32 = 512;

fuzz_target!(|input: &[u8]| {
    let [tokenizer, text, tokenizer_config, generation_config] = sections(input);
    memory::bounded(input.len(), || {
        let files = TokenizerFiles {
            tokenizer: tokenizer.to_vec(),
            tokenizer_config: present(tokenizer_config).map(<[u8]>::to_vec),
            generation_config: present(generation_config).map(<[u8]>::to_vec),
            ..TokenizerFiles::default()
        };
        let roles = TokenRoles::from_files(&files, VOCAB_SIZE).unwrap_or_default();
        let named = roles.bos_token.into_iter().chain(roles.eos_token);
        for token in named.chain(roles.end_tokens.iter().copied()) {
            assert!(token.0 < VOCAB_SIZE, "{token:?} of {VOCAB_SIZE}");
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&files.tokenizer, &roles) {
            tokenizer_use::use_all(tokenizer, &String::from_utf8_lossy(text));
        }
    });
});
