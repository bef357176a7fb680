//! Text to tokens and back, from the vocabulary in a GGUF file or a tokenizer.json.
//!
//! Agrees with the Hugging Face tokenizer of the same vocabulary, or with SentencePiece, token for token. What a
//! vocabulary has no token for vanishes, or is the unknown token, as they do it. `encode` adds no token at the start
//! or the end of a text.
//!
//! Where a vocabulary puts a space before every text, `decode` takes it away again, as the others do for a whole
//! text; and so does the incremental detokenizer at the beginning of an answer.

use kvasir_kv::TokenId;

use crate::{
    CheckpointError, Metadata, ModelSpec, TokenRoles, TokenizerError,
    encoder::Encoder,
    gguf_tokenizer,
    normalizer::Normalizer,
    special_tokens::{Piece, SpecialTokens},
    tokenizer_json,
    vocabulary::{TokenKind, Vocabulary},
};

#[derive(Debug)]
pub struct Tokenizer {
    parts: TokenizerParts,
    end_tokens: Vec<TokenId>,
}

/// What a file says.
#[derive(Debug)]
pub(crate) struct TokenizerParts {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) normalizer: Normalizer,
    /// Special tokens that are looked for in normalized text.
    pub(crate) normalized_tokens: Option<SpecialTokens>,
    pub(crate) encoder: Encoder,
    pub(crate) leading_space: LeadingSpace,
}

/// What happens to a space at the beginning of a decoded text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeadingSpace {
    Keep,
    StripOne,
    /// All that the first token has.
    StripFirstToken,
}

impl Tokenizer {
    pub(crate) fn from_metadata(metadata: &Metadata<'_>, spec: &ModelSpec) -> Result<Self, CheckpointError> {
        Ok(Self {
            parts: gguf_tokenizer::read(metadata)?,
            end_tokens: spec.end_tokens.clone(),
        })
    }

    /// Reads a `tokenizer.json`. Errors if it holds something that is not supported and would change the tokens.
    pub fn from_json(tokenizer_json: &[u8], roles: &TokenRoles) -> Result<Self, TokenizerError> {
        Ok(Self {
            parts: tokenizer_json::read(tokenizer_json)?,
            end_tokens: roles.end_tokens.clone(),
        })
    }

    /// Errors only on a fault of the tokenizer library. `parse_special`: control tokens in the text become tokens;
    /// leave it off for text that users wrote, or they can forge the turns of a chat.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = Vec::new();
        let mut is_first = true;
        for piece in self.parts.special_tokens.split(text, parse_special) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(text) => self.encode_text(text, is_first, parse_special, &mut tokens)?,
            }
            is_first = false;
        }
        Ok(tokens)
    }

    /// Bytes that are not UTF-8 become U+FFFD. Tokens outside the vocabulary stand for nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        let mut at_start = true;
        for token in tokens {
            bytes.extend_from_slice(self.output_bytes(*token, skip_special, &mut at_start));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a token stands for, perhaps a part of a character; `None` outside the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.parts.vocabulary.bytes(token)
    }

    /// Whether a token steers the model and is not text.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.parts.vocabulary.kind(token) == Some(TokenKind::Control)
    }

    pub fn vocab_size(&self) -> usize {
        self.parts.vocabulary.len()
    }

    /// The tokens that end an answer, ascending.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.end_tokens
    }

    /// `at_start`: nothing was put out before; becomes false when something is.
    pub(crate) fn output_bytes(&self, token: TokenId, skip_special: bool, at_start: &mut bool) -> &[u8] {
        if skip_special && self.is_control(token) {
            return &[];
        }
        let bytes = self.token_bytes(token).unwrap_or_default();
        if !*at_start || bytes.is_empty() {
            return bytes;
        }
        *at_start = false;
        match self.parts.leading_space {
            LeadingSpace::Keep => bytes,
            LeadingSpace::StripOne => bytes.strip_prefix(b" ").unwrap_or(bytes),
            LeadingSpace::StripFirstToken => {
                let num_spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
                &bytes[num_spaces..]
            }
        }
    }

    fn encode_text(
        &self,
        text: &str,
        is_first: bool,
        parse_special: bool,
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let text = self.parts.normalizer.apply(text);
        let Some(normalized_tokens) = &self.parts.normalized_tokens else {
            return self.parts.encoder.encode(&text, is_first, tokens);
        };
        let mut is_first = is_first;
        for piece in normalized_tokens.split(&text, parse_special) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(text) => self.parts.encoder.encode(text, is_first, tokens)?,
            }
            is_first = false;
        }
        Ok(())
    }
}
