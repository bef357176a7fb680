//! Tokens that are found in text as a whole, before anything is split: `<|im_start|>` and the like.
//!
//! Control tokens steer the model and are only looked for in text that is trusted to contain them (a rendered chat
//! template). User-defined tokens are ordinary text that the vocabulary wants kept whole, and are always looked for.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use kvasir_kv::TokenId;

use crate::TokenizerError;

/// The search automaton takes many bytes of memory per byte of text; real vocabularies need a few kilobytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct SpecialTokens {
    with_control: Finder,
    user_defined: Finder,
}

/// A piece of a text.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Piece<'t> {
    Text(&'t str),
    Token(TokenId),
}

impl SpecialTokens {
    /// Errors if the texts are too long altogether. Empty texts match nothing.
    pub(crate) fn new(
        control: Vec<(String, TokenId)>,
        user_defined: Vec<(String, TokenId)>,
    ) -> Result<Self, TokenizerError> {
        let all = control.into_iter().chain(user_defined.iter().cloned()).collect();
        Ok(Self {
            with_control: Finder::new(all)?,
            user_defined: Finder::new(user_defined)?,
        })
    }

    /// Cuts `text` at special tokens, the leftmost first and of those the longest.
    pub(crate) fn split<'t>(&self, text: &'t str, parse_special: bool, mut piece: impl FnMut(Piece<'t>)) {
        let finder = if parse_special {
            &self.with_control
        } else {
            &self.user_defined
        };
        let mut end = 0;
        for found in finder.automaton.find_iter(text) {
            if found.start() > end {
                piece(Piece::Text(&text[end..found.start()]));
            }
            piece(Piece::Token(finder.tokens[found.pattern().as_usize()]));
            end = found.end();
        }
        if end < text.len() {
            piece(Piece::Text(&text[end..]));
        }
    }
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<TokenId>,
}

impl Finder {
    fn new(tokens: Vec<(String, TokenId)>) -> Result<Self, TokenizerError> {
        // An empty pattern would match between all characters.
        let tokens: Vec<_> = tokens.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        let bytes: usize = tokens.iter().map(|(text, _)| text.len()).sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(TokenizerError::SpecialTokens {
                bytes,
                bytes_max: TEXT_BYTES_MAX,
            });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|(text, _)| text))
            .expect("a mebibyte of patterns is far below the automaton's limits");
        Ok(Self {
            automaton,
            tokens: tokens.into_iter().map(|(_, token)| token).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &'static str, parse_special: bool) -> Vec<Piece<'static>> {
        let control = vec![
            ("<a>".to_owned(), TokenId(0)),
            ("<a><b>".to_owned(), TokenId(1)),
            (String::new(), TokenId(2)),
        ];
        let tokens = SpecialTokens::new(control, vec![("@@".to_owned(), TokenId(3))]).unwrap();
        let mut pieces = Vec::new();
        tokens.split(text, parse_special, |piece| pieces.push(piece));
        pieces
    }

    #[test]
    fn the_longest_of_the_leftmost_matches_wins() {
        let expected = [
            Piece::Text("x"),
            Piece::Token(TokenId(1)),
            Piece::Token(TokenId(0)),
            Piece::Text(" y"),
        ];
        assert_eq!(pieces("x<a><b><a> y", true), expected);
        assert_eq!(pieces("", true), []);
    }

    #[test]
    fn control_tokens_are_plain_text_unless_they_are_asked_for() {
        assert_eq!(pieces("<a>@@", false), [Piece::Text("<a>"), Piece::Token(TokenId(3))]);
        assert_eq!(
            pieces("<a>@@", true),
            [Piece::Token(TokenId(0)), Piece::Token(TokenId(3))]
        );
    }

    #[test]
    fn special_tokens_beyond_a_mebibyte_are_refused() {
        let long = vec![("x".repeat(TEXT_BYTES_MAX + 1), TokenId(0))];
        assert!(matches!(
            SpecialTokens::new(long, Vec::new()),
            Err(TokenizerError::SpecialTokens { .. })
        ));
    }
}
