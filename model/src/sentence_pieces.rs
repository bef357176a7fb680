//! SentencePiece's BPE: of all neighbours whose joint text is a token, those with the highest score become it first.
//!
//! Gives what SentencePiece gives. A character that is no token becomes its bytes, if the vocabulary has tokens for
//! them, or the unknown token, one for a run of such characters. Control, unknown and byte tokens are never made of
//! text. Spaces must be U+2581 already.

use std::{cmp::Ordering, collections::BinaryHeap};

use kvasir_kv::TokenId;
use tokenizers::models::bpe::Vocab;

use crate::{
    TokenizerError,
    vocabulary::{TokenEntry, TokenKind, byte_named},
};

#[derive(Debug)]
pub(crate) struct SentencePieces {
    /// Of the tokens that text is made of.
    tokens: Vocab,
    scores: Vec<f32>,
    bytes: Box<[Option<TokenId>; 256]>,
    unknown: Option<TokenId>,
    /// Longer texts are no token: spares a search.
    text_len_max: usize,
}

impl SentencePieces {
    /// `scores` has one item for each token. Errors if two tokens have the same text, a score is not finite, or
    /// `unknown` is none of the tokens.
    pub(crate) fn new(
        entries: &[TokenEntry],
        scores: Vec<f32>,
        unknown: Option<TokenId>,
    ) -> Result<Self, TokenizerError> {
        check_scores(&scores)?;
        check_unknown(unknown, entries.len())?;
        let mut pieces = Self {
            tokens: Vocab::with_capacity(entries.len()),
            // Both zeros are equal, and a score must have one order.
            scores: scores.into_iter().map(|score| score + 0.0).collect(),
            bytes: Box::new([None; 256]),
            unknown,
            text_len_max: 0,
        };
        for (token, entry) in (0u32..).zip(entries) {
            pieces.add(token, entry)?;
        }
        Ok(pieces)
    }

    fn add(&mut self, token: u32, entry: &TokenEntry) -> Result<(), TokenizerError> {
        match entry.kind {
            TokenKind::Control => {}
            TokenKind::Byte => {
                let byte = byte_named(&entry.text);
                byte.into_iter()
                    .for_each(|byte| self.bytes[byte as usize] = Some(TokenId(token)));
            }
            TokenKind::Text | TokenKind::UserDefined if entry.text.is_empty() => {}
            TokenKind::Text | TokenKind::UserDefined => {
                self.text_len_max = self.text_len_max.max(entry.text.len());
                if let Some(first) = self.tokens.insert(entry.text.clone(), token) {
                    let (second, text) = (token, entry.text.clone());
                    return Err(TokenizerError::Duplicate { first, second, text });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        let mut symbols = Symbols::new(self, text);
        symbols.merge();
        let mut after_unknown = false;
        for symbol in symbols.left_to_right() {
            let known = self.push_symbol(symbol, after_unknown, tokens);
            after_unknown = !known;
        }
    }

    /// Returns whether the symbol has tokens of its own.
    fn push_symbol(&self, symbol: &str, after_unknown: bool, tokens: &mut Vec<TokenId>) -> bool {
        if let Some(token) = self.tokens.get(symbol) {
            tokens.push(TokenId(*token));
            return true;
        }
        let start = tokens.len();
        tokens.extend(symbol.bytes().map_while(|byte| self.bytes[byte as usize]));
        if tokens.len() - start == symbol.len() {
            return true;
        }
        tokens.truncate(start);
        tokens.extend(self.unknown.filter(|_| !after_unknown));
        false
    }

    fn token(&self, text: &str) -> Option<u32> {
        if text.len() > self.text_len_max {
            return None;
        }
        self.tokens.get(text).copied()
    }
}

fn check_scores(scores: &[f32]) -> Result<(), TokenizerError> {
    match (0u32..).zip(scores).find(|(_, score)| !score.is_finite()) {
        Some((token, score)) => Err(TokenizerError::Score { token, score: *score }),
        None => Ok(()),
    }
}

fn check_unknown(unknown: Option<TokenId>, num_tokens: usize) -> Result<(), TokenizerError> {
    match unknown.filter(|token| token.0 as usize >= num_tokens) {
        Some(token) => Err(TokenizerError::Role {
            what: "the unknown token".to_owned(),
            token: token.0.into(),
            vocab_size: num_tokens as u32,
        }),
        None => Ok(()),
    }
}

/// A stretch of the text that is one token, or one character.
#[derive(Clone, Copy)]
struct Symbol {
    /// Empty when it has become part of the symbol before it.
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that make a token.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both together: a pair of which either has grown since has another.
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    /// The highest score is the greatest, and of those the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A text on its way from characters to tokens.
struct Symbols<'a> {
    pieces: &'a SentencePieces,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
}

impl<'a> Symbols<'a> {
    fn new(pieces: &'a SentencePieces, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (i, (start, c)) in text.char_indices().enumerate() {
            symbols.push(Symbol {
                start,
                end: start + c.len_utf8(),
                previous: i.checked_sub(1),
                next: Some(i + 1),
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Self {
            pieces,
            text,
            symbols,
            queue: BinaryHeap::new(),
        }
    }

    fn merge(&mut self) {
        for right in 1..self.symbols.len() {
            self.offer(Some(right - 1), Some(right));
        }
        while let Some(pair) = self.queue.pop() {
            if self.is_current(&pair) {
                self.join(pair.left, pair.right);
            }
        }
    }

    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let text = &self.text[self.symbols[left].start..self.symbols[right].end];
        if let Some(token) = self.pieces.token(text) {
            let (score, len) = (self.pieces.scores[token as usize], text.len());
            self.queue.push(Pair {
                score,
                left,
                right,
                len,
            });
        }
    }

    fn is_current(&self, pair: &Pair) -> bool {
        let len = |symbol: Symbol| symbol.end - symbol.start;
        let (left, right) = (len(self.symbols[pair.left]), len(self.symbols[pair.right]));
        left > 0 && right > 0 && left + right == pair.len
    }

    fn join(&mut self, left: usize, right: usize) {
        let Symbol { end, next, .. } = self.symbols[right];
        self.symbols[right].start = end;
        self.symbols[left].end = end;
        self.symbols[left].next = next;
        if let Some(next) = next {
            self.symbols[next].previous = Some(left);
        }
        self.offer(self.symbols[left].previous, Some(left));
        self.offer(Some(left), next);
    }

    fn left_to_right(&self) -> impl Iterator<Item = &'a str> {
        let text = self.text;
        let whole = self.symbols.iter().filter(|symbol| symbol.end > symbol.start);
        whole.map(move |symbol| &text[symbol.start..symbol.end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(tokens: &[(&str, f32)], unknown: Option<TokenId>) -> SentencePieces {
        let entry = |text: &str| TokenEntry {
            text: text.to_owned(),
            kind: if byte_named(text).is_some() {
                TokenKind::Byte
            } else {
                TokenKind::Text
            },
        };
        let entries: Vec<_> = tokens.iter().map(|(text, _)| entry(text)).collect();
        let scores = tokens.iter().map(|(_, score)| *score).collect();
        SentencePieces::new(&entries, scores, unknown).unwrap()
    }

    fn encode(pieces: &SentencePieces, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        pieces.encode(text, &mut tokens);
        tokens.into_iter().map(|token| token.0).collect()
    }

    #[test]
    fn the_highest_score_merges_first_and_of_equals_the_leftmost() {
        let tokens = [
            ("a", 0.0),
            ("b", 0.0),
            ("c", 0.0),
            ("ab", -2.0),
            ("bc", -1.0),
            ("aa", -0.0),
            ("abc", -9.0),
        ];
        let pieces = pieces(&tokens, None);
        assert_eq!(encode(&pieces, "abc"), [6]);
        assert_eq!(encode(&pieces, "abcb"), [6, 1]);
        assert_eq!(encode(&pieces, "aaa"), [5, 0]);
        assert_eq!(encode(&pieces, "aab"), [5, 1]);
        assert_eq!(encode(&pieces, ""), [0; 0]);
    }

    #[test]
    fn a_character_that_is_no_token_becomes_bytes_or_one_unknown_token_for_a_run() {
        let tokens = [("?", 0.0), ("a", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0)];
        let with_unknown = pieces(&tokens, Some(TokenId(0)));
        assert_eq!(encode(&with_unknown, "aéa漢🦀aé漢"), [1, 2, 3, 1, 0, 1, 2, 3, 0]);
        assert_eq!(encode(&pieces(&tokens, None), "a漢é"), [1, 2, 3]);
    }

    #[test]
    fn tokens_that_are_not_text_are_not_made_of_text() {
        let tokens = [
            ("<", 0.0),
            ("0", 0.0),
            ("x", 0.0),
            (">", 0.0),
            ("<0", 0.0),
            ("<0x", 0.0),
            ("<0x0", 0.0),
            ("<0x00>", 0.0),
        ];
        assert_eq!(encode(&pieces(&tokens, None), "<0x00>"), [6, 1, 3]);
    }

    #[test]
    fn scores_are_numbers_and_texts_are_different() {
        let entry = |text: &str| TokenEntry {
            text: text.to_owned(),
            kind: TokenKind::Text,
        };
        for score in [f32::NAN, f32::INFINITY] {
            let error = SentencePieces::new(&[entry("a")], vec![score], None).unwrap_err();
            assert!(matches!(error, TokenizerError::Score { token: 0, .. }));
        }
        let error = SentencePieces::new(&[entry("a"), entry("a")], vec![0.0; 2], None).unwrap_err();
        assert!(matches!(
            error,
            TokenizerError::Duplicate {
                first: 0,
                second: 1,
                ..
            }
        ));
    }
    #[test]
    fn the_unknown_token_is_one_of_the_vocabulary() {
        let entry = TokenEntry {
            text: "a".to_owned(),
            kind: TokenKind::Text,
        };
        let with_unknown = |token| SentencePieces::new(std::slice::from_ref(&entry), vec![0.0], Some(TokenId(token)));
        assert!(with_unknown(0).is_ok());
        assert_eq!(
            with_unknown(1).unwrap_err().to_string(),
            "the unknown token is token 1, expected one below the vocabulary's size 1"
        );
    }
}
