//! Text without special tokens to tokens, by the rules of one family of vocabularies.

use std::borrow::Cow;

use kvasir_kv::TokenId;

use crate::{
    TokenizerError,
    byte_pairs::BytePairs,
    normalizer::{prefixed, spaced},
    sentence_pieces::SentencePieces,
    vocabulary::SPACE,
    word_splitter::WordSplitter,
};

#[derive(Debug)]
pub(crate) enum Encoder {
    /// GPT-2's: words of bytes.
    ByteLevel {
        splitter: WordSplitter,
        /// Text that does not begin with a space gets one.
        prefix_space: bool,
        pairs: BytePairs,
    },
    /// Merges by rank over text with U+2581 for spaces.
    Spaced {
        metaspace: Option<Metaspace>,
        pairs: BytePairs,
    },
    /// Merges by score over text with U+2581 for spaces.
    Pieces(SentencePieces),
}

/// Hugging Face's way to see to spaces after special tokens are cut out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Metaspace {
    pub(crate) prefix: SpacePrefix,
    /// Words are encoded one by one.
    pub(crate) split: bool,
}

/// Which texts that do not begin with a space get one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SpacePrefix {
    Never,
    /// The one at the very beginning.
    First,
    Always,
}

impl Encoder {
    /// `is_first`: `text` begins what is being encoded. Errors only on a fault of the tokenizer library.
    pub(crate) fn encode(&self, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        match self {
            Self::ByteLevel {
                splitter,
                prefix_space,
                pairs,
            } => {
                let text = with_space(text, *prefix_space);
                splitter
                    .split(&text)
                    .into_iter()
                    .try_for_each(|word| pairs.encode_bytes(word.as_bytes(), tokens))
            }
            Self::Spaced { metaspace: None, pairs } => pairs.encode(text, tokens),
            Self::Spaced {
                metaspace: Some(metaspace),
                pairs,
            } => {
                let text = metaspace.prefixed(text, is_first);
                metaspace.words(&text).try_for_each(|word| pairs.encode(word, tokens))
            }
            Self::Pieces(pieces) => {
                pieces.encode(text, tokens);
                Ok(())
            }
        }
    }
}

impl Metaspace {
    fn prefixed(self, text: &str, is_first: bool) -> String {
        let text = spaced(text);
        let wanted = match self.prefix {
            SpacePrefix::Never => false,
            SpacePrefix::First => is_first,
            SpacePrefix::Always => true,
        };
        if wanted && !text.starts_with(SPACE) {
            prefixed(&text)
        } else {
            text
        }
    }

    /// A word begins at each space.
    fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let first = rest.chars().next()?;
            let after = first.len_utf8();
            let end = match rest[after..].find(SPACE) {
                Some(end) if self.split => after + end,
                _ => rest.len(),
            };
            let (word, left) = rest.split_at(end);
            rest = left;
            Some(word)
        })
    }
}

fn with_space(text: &str, wanted: bool) -> Cow<'_, str> {
    if wanted && !text.starts_with(' ') {
        return Cow::Owned([" ", text].concat());
    }
    Cow::Borrowed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(prefix: SpacePrefix, split: bool, text: &str, is_first: bool) -> Vec<String> {
        let metaspace = Metaspace { prefix, split };
        metaspace
            .words(&metaspace.prefixed(text, is_first))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_word_begins_at_each_space() {
        assert_eq!(words(SpacePrefix::Always, true, "a  b ", false), ["▁a", "▁", "▁b", "▁"]);
        assert_eq!(words(SpacePrefix::Never, true, "a b", true), ["a", "▁b"]);
        assert_eq!(words(SpacePrefix::First, false, "a b", true), ["▁a▁b"]);
    }

    #[test]
    fn only_the_first_text_that_begins_without_a_space_gets_one() {
        assert_eq!(words(SpacePrefix::First, true, "a", true), ["▁a"]);
        assert_eq!(words(SpacePrefix::First, true, "a", false), ["a"]);
        assert_eq!(words(SpacePrefix::First, true, " a", true), ["▁a"]);
        assert_eq!(with_space("a", true), " a");
        assert_eq!(with_space(" a", true), " a");
        assert_eq!(with_space("a", false), "a");
    }
}
