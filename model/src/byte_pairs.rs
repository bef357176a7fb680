//! Byte pair encoding with an explicit list of merges, by the tokenizer library.
//!
//! What the library takes on trust is checked here: every merge names tokens, no text is there twice.

use kvasir_kv::TokenId;
use tokenizers::{
    Model,
    models::bpe::{BPE, Vocab},
};

use crate::{
    TokenizerError, byte_level,
    vocabulary::{TokenEntry, TokenKind},
};

/// The largest known ratio is Llama 3's, a little above 2.
const MERGES_PER_TOKEN_MAX: usize = 16;

pub(crate) type Merge = (String, String);

#[derive(Clone, Default, Debug)]
pub(crate) struct BytePairOptions {
    /// A word that is a token is that token, whatever the merges would make of it.
    pub(crate) ignore_merges: bool,
    /// Characters that are no token become tokens like `<0x0A>`.
    pub(crate) byte_fallback: bool,
    pub(crate) unknown: Option<String>,
    /// A run of unknown characters is one unknown token.
    pub(crate) fuse_unknown: bool,
}

#[derive(Debug)]
pub(crate) struct BytePairs {
    library: BPE,
}

impl BytePairs {
    pub(crate) fn new(
        entries: &[TokenEntry],
        merges: Vec<Merge>,
        options: BytePairOptions,
    ) -> Result<Self, TokenizerError> {
        check_count(merges.len(), entries.len())?;
        let mut vocab = index(entries)?;
        check_merges(&vocab, &merges)?;
        if let Some(text) = options.unknown.iter().find(|text| !vocab.contains_key(*text)) {
            return Err(TokenizerError::UnknownToken { text: text.clone() });
        }
        if options.ignore_merges {
            hide_control(&mut vocab, entries, &merges);
        }
        // Without a cache: the library keeps one per thread and tokenizer for ever, of words as long as they come.
        let mut builder = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .cache_capacity(0)
            .ignore_merges(options.ignore_merges)
            .byte_fallback(options.byte_fallback)
            .fuse_unk(options.fuse_unknown);
        if let Some(unknown) = options.unknown {
            builder = builder.unk_token(unknown);
        }
        let library = builder.build().map_err(library_error)?;
        Ok(Self { library })
    }

    /// Errors only on a fault of the library.
    pub(crate) fn encode(&self, word: &str, tokens: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let found = self.library.tokenize(word).map_err(library_error)?;
        tokens.extend(found.into_iter().map(|token| TokenId(token.id)));
        Ok(())
    }

    /// A word as bytes, for a vocabulary in GPT-2's alphabet.
    pub(crate) fn encode_bytes(&self, word: &[u8], tokens: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let word: String = word.iter().map(|byte| byte_level::char_of(*byte)).collect();
        self.encode(&word, tokens)
    }
}

fn library_error(source: tokenizers::Error) -> TokenizerError {
    TokenizerError::Library {
        reason: source.to_string(),
    }
}

pub(crate) fn check_count(num_merges: usize, num_tokens: usize) -> Result<(), TokenizerError> {
    let most = num_tokens.saturating_mul(MERGES_PER_TOKEN_MAX);
    if num_merges > most {
        let found = num_merges;
        return Err(TokenizerError::TooManyMerges { found, most });
    }
    Ok(())
}

fn index(entries: &[TokenEntry]) -> Result<Vocab, TokenizerError> {
    let mut vocab = Vocab::with_capacity(entries.len());
    for (token, entry) in (0u32..).zip(entries).filter(|(_, entry)| !entry.text.is_empty()) {
        if let Some(first) = vocab.insert(entry.text.clone(), token) {
            let (second, text) = (token, entry.text.clone());
            return Err(TokenizerError::Duplicate { first, second, text });
        }
    }
    Ok(vocab)
}

/// The library indexes by what merges promise.
fn check_merges(vocab: &Vocab, merges: &[Merge]) -> Result<(), TokenizerError> {
    let mut result = String::new();
    for (index, (left, right)) in merges.iter().enumerate() {
        result.clear();
        result.push_str(left);
        result.push_str(right);
        if ![left, right, &result].into_iter().all(|part| vocab.contains_key(part)) {
            let (text, why) = (format!("{left} {right}"), "has a part or a result that is not a token");
            return Err(TokenizerError::Merge { index, text, why });
        }
    }
    Ok(())
}

/// A word that spells a control token is still text.
fn hide_control(vocab: &mut Vocab, entries: &[TokenEntry], merges: &[Merge]) {
    let control = entries.iter().filter(|entry| entry.kind == TokenKind::Control);
    let mut hidden: std::collections::HashSet<&str> = control.map(|entry| entry.text.as_str()).collect();
    for (left, right) in merges {
        hidden.remove(left.as_str());
        hidden.remove(right.as_str());
        hidden.remove(format!("{left}{right}").as_str());
    }
    vocab.retain(|text, _| !hidden.contains(text.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(texts: &[&str]) -> Vec<TokenEntry> {
        let entry = |text: &&str| TokenEntry {
            text: text.to_string(),
            kind: if text.starts_with("<|") {
                TokenKind::Control
            } else {
                TokenKind::Text
            },
        };
        texts.iter().map(entry).collect()
    }

    fn encode(texts: &[&str], merges: &[(&str, &str)], options: BytePairOptions, word: &str) -> Vec<u32> {
        let merges = merges
            .iter()
            .map(|(left, right)| (left.to_string(), right.to_string()))
            .collect();
        let pairs = BytePairs::new(&entries(texts), merges, options).unwrap();
        let mut tokens = Vec::new();
        pairs.encode(word, &mut tokens).unwrap();
        tokens.into_iter().map(|token| token.0).collect()
    }

    #[test]
    fn a_word_that_is_a_token_can_ignore_the_merges_unless_it_spells_a_control_token() {
        let (texts, merges) = (["a", "b", "c", "bc", "abc", "<", "|", "<|"], [("b", "c")]);
        let ignoring = || BytePairOptions {
            ignore_merges: true,
            ..BytePairOptions::default()
        };
        assert_eq!(encode(&texts, &merges, BytePairOptions::default(), "abc"), [0, 3]);
        assert_eq!(encode(&texts, &merges, ignoring(), "abc"), [4]);
        assert_eq!(encode(&texts, &merges, ignoring(), "<|"), [5, 6]);
    }

    #[test]
    fn holes_have_no_text() {
        assert_eq!(encode(&["", "a", ""], &[], BytePairOptions::default(), "aa"), [1, 1]);
    }

    #[test]
    fn what_merges_and_options_promise_is_there() {
        let options = BytePairOptions {
            unknown: Some("<unk>".to_owned()),
            ..BytePairOptions::default()
        };
        let error = BytePairs::new(&entries(&["a"]), Vec::new(), options).unwrap_err();
        assert!(matches!(error, TokenizerError::UnknownToken { .. }));
        let merges = vec![("a".to_owned(), "a".to_owned())];
        let error = BytePairs::new(&entries(&["a"]), merges, BytePairOptions::default()).unwrap_err();
        assert!(matches!(error, TokenizerError::Merge { index: 0, .. }));
    }
}
