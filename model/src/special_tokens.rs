//! Tokens that are found in text as a whole, before anything is split: `<|im_start|>` and the like.
//!
//! Control tokens steer the model and are only looked for in text that is trusted to contain them (a rendered chat
//! template). User-defined tokens are ordinary text that the vocabulary wants kept whole, and are always looked for.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use kvasir_kv::TokenId;
use regex_automata::meta::Regex;

use crate::TokenizerError;

/// The search automaton takes many bytes of memory per byte of text; real vocabularies need a few kilobytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// What words are made of, as the expressions of other tokenizers have it.
static WORD_CHARACTER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\w$").expect("it compiles"));

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SpecialToken {
    pub(crate) text: String,
    pub(crate) token: TokenId,
    pub(crate) is_control: bool,
    pub(crate) bounds: Bounds,
}

/// What a special token does with the text beside it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Bounds {
    /// Takes in the white space before it.
    pub(crate) strip_left: bool,
    pub(crate) strip_right: bool,
    /// Is not found inside a word.
    pub(crate) single_word: bool,
}

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
    pub(crate) fn new(tokens: Vec<SpecialToken>) -> Result<Self, TokenizerError> {
        let user_defined = tokens.iter().filter(|token| !token.is_control).cloned().collect();
        Ok(Self {
            with_control: Finder::new(tokens)?,
            user_defined: Finder::new(user_defined)?,
        })
    }

    /// Cuts `text` at special tokens, the leftmost first and of those the longest.
    pub(crate) fn split<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Piece<'t>> {
        let finder = if parse_special {
            &self.with_control
        } else {
            &self.user_defined
        };
        let mut pieces = Vec::new();
        let mut done = 0;
        for found in finder.automaton.find_iter(text) {
            let special = &finder.tokens[found.pattern().as_usize()];
            let Some((start, end)) = special.bounds.apply(text, done, found.range()) else {
                continue;
            };
            if start > done {
                pieces.push(Piece::Text(&text[done..start]));
            }
            pieces.push(Piece::Token(special.token));
            done = end;
        }
        if done < text.len() {
            pieces.push(Piece::Text(&text[done..]));
        }
        pieces
    }
}

impl Bounds {
    /// What a token at `found` takes of the text that is not `done`; `None` if it may not stand there.
    fn apply(self, text: &str, done: usize, found: std::ops::Range<usize>) -> Option<(usize, usize)> {
        // Another token may have taken in the white space that this one is.
        if found.start < done {
            return None;
        }
        let (before, after) = (&text[..found.start], &text[found.end..]);
        if self.single_word
            && (before.chars().next_back().is_some_and(is_word) || after.chars().next().is_some_and(is_word))
        {
            return None;
        }
        let start = if self.strip_left {
            before.trim_end().len().max(done)
        } else {
            found.start
        };
        let end = if self.strip_right {
            text.len() - after.trim_start().len()
        } else {
            found.end
        };
        Some((start, end))
    }
}

fn is_word(c: char) -> bool {
    WORD_CHARACTER.is_match(c.encode_utf8(&mut [0; 4]).as_bytes())
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<SpecialToken>,
}

impl Finder {
    fn new(mut tokens: Vec<SpecialToken>) -> Result<Self, TokenizerError> {
        // An empty pattern would match between all characters.
        tokens.retain(|token| !token.text.is_empty());
        let bytes: usize = tokens.iter().map(|token| token.text.len()).sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(TokenizerError::SpecialTokens {
                bytes,
                bytes_max: TEXT_BYTES_MAX,
            });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|token| &token.text))
            .expect("a mebibyte of patterns is far below the automaton's limits");
        Ok(Self { automaton, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(text: &str, token: u32) -> SpecialToken {
        SpecialToken {
            text: text.to_owned(),
            token: TokenId(token),
            is_control: text.starts_with('<'),
            bounds: Bounds::default(),
        }
    }

    fn pieces(text: &'static str, parse_special: bool) -> Vec<Piece<'static>> {
        let tokens = vec![
            special("<a>", 0),
            special("<a><b>", 1),
            special("", 2),
            special("@@", 3),
        ];
        SpecialTokens::new(tokens).unwrap().split(text, parse_special)
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
    fn a_token_takes_in_white_space_and_stands_alone_if_it_says_so() {
        let bounds = |strip_left, strip_right, single_word| Bounds {
            strip_left,
            strip_right,
            single_word,
        };
        let with = |bounds, text: &'static str| {
            let tokens = vec![
                SpecialToken {
                    bounds,
                    ..special("@", 7)
                },
                special("  ", 8),
            ];
            SpecialTokens::new(tokens).unwrap().split(text, false)
        };
        let (text, token) = (Piece::Text, || Piece::Token(TokenId(7)));
        assert_eq!(
            with(bounds(true, false, false), "a \n@ b"),
            [text("a"), token(), text(" b")]
        );
        assert_eq!(
            with(bounds(false, true, false), "a @ \n@ b"),
            [text("a "), token(), token(), text("b")]
        );
        // The two spaces are taken already.
        assert_eq!(with(bounds(false, true, false), "@  b"), [token(), text("b")]);
        assert_eq!(
            with(bounds(false, false, true), "a@ @b \u{301}@ @"),
            [text("a@ @b \u{301}@ "), token()]
        );
        assert_eq!(with(bounds(false, false, true), "-@-"), [text("-"), token(), text("-")]);
    }

    #[test]
    fn special_tokens_beyond_a_mebibyte_are_refused() {
        let long = vec![special(&"x".repeat(TEXT_BYTES_MAX + 1), 0)];
        assert!(matches!(
            SpecialTokens::new(long),
            Err(TokenizerError::SpecialTokens { .. })
        ));
    }
}
