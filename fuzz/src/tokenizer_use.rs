//! Uses a tokenizer on a text, and checks what holds of every tokenizer.

use std::sync::Arc;

use kvasir_kv::TokenId;
use kvasir_model::{IncrementalDetokenizer, Tokenizer};

/// Panics if a token is outside the vocabulary, or if token by token another text comes out than at once.
pub fn use_all(tokenizer: Tokenizer, text: &str) {
    let tokenizer = Arc::new(tokenizer);
    for parse_special in [true, false] {
        let Ok(tokens) = tokenizer.encode(text, parse_special) else {
            continue;
        };
        for token in &tokens {
            assert!(
                tokenizer.token_bytes(*token).is_some(),
                "{token:?} is outside the vocabulary"
            );
        }
        check_decoding(&tokenizer, &tokens);
    }
    // No text gives these.
    let num_tokens = tokenizer.vocab_size() as u32;
    let any = [num_tokens, 0, num_tokens / 2, u32::MAX, num_tokens - 1, 1].map(TokenId);
    check_decoding(&tokenizer, &any);
}

fn check_decoding(tokenizer: &Arc<Tokenizer>, tokens: &[TokenId]) {
    for skip_special in [true, false] {
        let whole = tokenizer.decode(tokens, skip_special);
        let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), skip_special);
        let mut pieces: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        pieces.push_str(&detokenizer.finish());
        assert_eq!(pieces, whole, "token by token, not at once");
    }
}
