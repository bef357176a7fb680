//! What each token of a vocabulary is, and the bytes it stands for.

use kvasir_kv::TokenId;

use crate::{TokenizerError, byte_level};

/// What takes the place of a space in the tokens of SentencePiece.
pub(crate) const SPACE: &str = "\u{2581}";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TokenKind {
    Text,
    /// Steers the model and is not text.
    Control,
    /// Stands for itself and is found in text as a whole.
    UserDefined,
    /// One byte, written as `<0x0A>`.
    Byte,
}

/// How the text of a token is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spelling {
    /// In GPT-2's alphabet of bytes.
    ByteLevel,
    /// As text with U+2581 for spaces.
    Spaced,
}

/// A token as a file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TokenEntry {
    /// Empty where a vocabulary has a hole.
    pub(crate) text: String,
    pub(crate) kind: TokenKind,
}

impl TokenEntry {
    pub(crate) fn hole() -> Self {
        Self {
            text: String::new(),
            kind: TokenKind::Text,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Vocabulary {
    kinds: Vec<TokenKind>,
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where those of the token before end.
    ends: Vec<usize>,
}

impl Vocabulary {
    /// Errors if a byte token is not written as one.
    pub(crate) fn new(tokens: &[TokenEntry], spelling: Spelling) -> Result<Self, TokenizerError> {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for (token, entry) in (0u32..).zip(tokens) {
            match (entry.kind, spelling) {
                (TokenKind::Text, Spelling::ByteLevel) => byte_level::append_bytes(&entry.text, &mut bytes),
                (TokenKind::Text, Spelling::Spaced) => bytes.extend(entry.text.replace(SPACE, " ").bytes()),
                // Special tokens are written as they are.
                (TokenKind::Control | TokenKind::UserDefined, _) => bytes.extend(entry.text.bytes()),
                (TokenKind::Byte, _) => bytes.push(parse_byte_token(token, &entry.text)?),
            }
            ends.push(bytes.len());
        }
        let kinds = tokens.iter().map(|entry| entry.kind).collect();
        Ok(Self { kinds, bytes, ends })
    }

    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(crate) fn kind(&self, token: TokenId) -> Option<TokenKind> {
        self.kinds.get(token.0 as usize).copied()
    }

    /// `None` outside the vocabulary.
    pub(crate) fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        let i = token.0 as usize;
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.bytes[start..end])
    }
}

/// The byte that a text like `<0x0A>` names.
pub(crate) fn byte_named(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

fn parse_byte_token(token: u32, text: &str) -> Result<u8, TokenizerError> {
    byte_named(text).ok_or_else(|| TokenizerError::ByteToken {
        token,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_token_has_two_hexadecimal_digits() {
        assert_eq!(byte_named("<0x0A>"), Some(10));
        assert_eq!(byte_named("<0xff>"), Some(255));
        for text in ["<0x+1>", "<0x0>", "<0x000>", "0x00", "<0xé>", ""] {
            assert_eq!(byte_named(text), None, "{text}");
        }
    }

    #[test]
    fn each_kind_of_token_stands_for_its_own_bytes() {
        let entry = |text: &str, kind| TokenEntry {
            text: text.to_owned(),
            kind,
        };
        let tokens = [
            entry("▁a▁", TokenKind::Text),
            entry("▁", TokenKind::UserDefined),
            TokenEntry::hole(),
            entry("<0x80>", TokenKind::Byte),
        ];
        let vocabulary = Vocabulary::new(&tokens, Spelling::Spaced).unwrap();
        let bytes: Vec<_> = (0..5).map(|token| vocabulary.bytes(TokenId(token))).collect();
        assert_eq!(
            bytes,
            [Some(&b" a "[..]), Some("▁".as_bytes()), Some(b""), Some(&[0x80]), None]
        );
        let error = Vocabulary::new(&[entry("x", TokenKind::Byte)], Spelling::Spaced).unwrap_err();
        assert!(matches!(error, TokenizerError::ByteToken { token: 0, .. }));
    }
}
