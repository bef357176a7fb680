//! Text to tokens and back, from the vocabulary in a GGUF file: byte-level BPE, as GPT-2 made it.
//!
//! Agrees with the Hugging Face tokenizer of the same vocabulary, token for token. Bytes that the vocabulary has no
//! token for vanish, as they do there and in llama.cpp. No token is added at the start or the end of a text.

use kvasir_kv::TokenId;
use tokenizers::{
    Encoding, Model, OffsetType, PreTokenizedString, PreTokenizer,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence},
};

use crate::{
    CheckpointError, Metadata, ModelSpec, byte_level, long_runs,
    special_tokens::{Piece, SpecialTokens},
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// The largest known ratio is Llama 3's, a little above 2.
const MERGES_PER_TOKEN_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    #[error("tokenizer model {model:?} is not supported yet; supported: gpt2")]
    Model { model: String },
    #[error("pre-tokenizer {name:?} is not supported yet; supported: smollm")]
    PreTokenizer { name: String },
    #[error("{key:?} has {found} items, expected one for each of {expected} tokens")]
    Length {
        key: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("token {token} is not valid UTF-8")]
    NotUtf8 { token: u32 },
    #[error("tokens {first} and {second} are both {text:?}")]
    Duplicate { first: u32, second: u32, text: String },
    #[error("there are {found} merges, at most {most} are allowed for this vocabulary")]
    TooManyMerges { found: usize, most: usize },
    #[error("merge {index} {why}: {text:?}")]
    Merge {
        index: usize,
        text: String,
        why: &'static str,
    },
    #[error("the special tokens have {bytes} bytes of text, at most {bytes_max} are allowed")]
    SpecialTokens { bytes: usize, bytes_max: usize },
    #[error("the tokenizer library says: {reason}")]
    Library { reason: String },
}

pub struct Tokenizer {
    bpe: BPE,
    pre_tokenizer: Sequence,
    /// For text that is one word whatever it holds.
    one_word: ByteLevel,
    special_tokens: SpecialTokens,
    vocabulary: Vocabulary,
    end_tokens: Vec<TokenId>,
}

impl Tokenizer {
    pub(crate) fn from_metadata(metadata: &Metadata<'_>, spec: &ModelSpec) -> Result<Self, CheckpointError> {
        let tokens = read_tokens(metadata)?;
        let kinds = read_kinds(metadata, tokens.len())?;
        let pre_tokenizer = parse_pre_tokenizer(metadata)?;
        let merges = read_merges(metadata, tokens.len())?;
        Ok(Self {
            bpe: build_bpe(&tokens, merges)?,
            pre_tokenizer,
            one_word: ByteLevel::new(false, true, false),
            special_tokens: special_tokens(&tokens, &kinds)?,
            vocabulary: Vocabulary::new(&tokens, kinds),
            end_tokens: spec.end_tokens.clone(),
        })
    }

    /// Errors only on a fault of the tokenizer library. `parse_special`: control tokens in the text become tokens;
    /// leave it off for text that users wrote, or they can forge the turns of a chat.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = Vec::new();
        let mut result = Ok(());
        self.special_tokens.split(text, parse_special, |piece| match piece {
            Piece::Token(token) => tokens.push(token),
            Piece::Text(text) if result.is_ok() => result = self.encode_text(text, &mut tokens),
            Piece::Text(_) => {}
        });
        result.map(|()| tokens)
    }

    /// Bytes that are not UTF-8 become U+FFFD. Tokens outside the vocabulary stand for nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| self.output_bytes(*token, skip_special))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a token stands for, perhaps a part of a character; `None` outside the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.vocabulary.bytes(token)
    }

    /// Whether a token steers the model and is not text.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.vocabulary.kind(token).is_some_and(TokenKind::is_control)
    }

    pub fn vocab_size(&self) -> usize {
        self.vocabulary.kinds.len()
    }

    /// The tokens that end an answer, ascending.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.end_tokens
    }

    pub(crate) fn output_bytes(&self, token: TokenId, skip_special: bool) -> &[u8] {
        if skip_special && self.is_control(token) {
            return &[];
        }
        self.token_bytes(token).unwrap_or_default()
    }

    fn encode_text(&self, text: &str, tokens: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        for piece in long_runs::split(text) {
            let encoded = match piece {
                long_runs::Piece::Words(text) => self.encode_piece(text, &self.pre_tokenizer),
                long_runs::Piece::Run(text) => self.encode_piece(text, &self.one_word),
            };
            let encoding = encoded.map_err(|source| TokenizerError::Library {
                reason: source.to_string(),
            })?;
            tokens.extend(encoding.get_ids().iter().map(|id| TokenId(*id)));
        }
        Ok(())
    }

    fn encode_piece(&self, text: &str, pre_tokenizer: &impl PreTokenizer) -> tokenizers::Result<Encoding> {
        let mut words = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut words)?;
        words.tokenize(|word| self.bpe.tokenize(word.get()))?;
        words.into_encoding(None, 0, OffsetType::None)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// GGUF's token types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TokenKind {
    Text,
    Control,
    UserDefined,
}

impl TokenKind {
    fn from_gguf(token_type: i64) -> Self {
        match token_type {
            // 2 is "unknown": like a control token, it is not something that text contains.
            2 | 3 => Self::Control,
            4 => Self::UserDefined,
            _ => Self::Text,
        }
    }

    fn is_control(self) -> bool {
        self == Self::Control
    }
}

/// What each token stands for.
struct Vocabulary {
    kinds: Vec<TokenKind>,
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where those of the token before end.
    ends: Vec<usize>,
}

impl Vocabulary {
    fn new(tokens: &[String], kinds: Vec<TokenKind>) -> Self {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for (text, kind) in tokens.iter().zip(&kinds) {
            match kind {
                TokenKind::Text => byte_level::append_bytes(text, &mut bytes),
                // Special tokens are written as they are, not in the alphabet of bytes.
                TokenKind::Control | TokenKind::UserDefined => bytes.extend_from_slice(text.as_bytes()),
            }
            ends.push(bytes.len());
        }
        Self { kinds, bytes, ends }
    }

    fn kind(&self, token: TokenId) -> Option<TokenKind> {
        self.kinds.get(token.0 as usize).copied()
    }

    fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        let i = token.0 as usize;
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.bytes[start..end])
    }
}

fn read_tokens(metadata: &Metadata<'_>) -> Result<Vec<String>, CheckpointError> {
    let tokens = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let text = |(token, bytes): (usize, &[u8])| {
        let text = std::str::from_utf8(bytes).map_err(|_| TokenizerError::NotUtf8 { token: token as u32 })?;
        Ok(text.to_owned())
    };
    tokens.enumerate().map(text).collect()
}

/// Absent types mean that all tokens are text.
fn read_kinds(metadata: &Metadata<'_>, num_tokens: usize) -> Result<Vec<TokenKind>, CheckpointError> {
    let Some(types) = metadata.integers(TOKEN_TYPES)? else {
        return Ok(vec![TokenKind::Text; num_tokens]);
    };
    if types.len() != num_tokens {
        let (found, expected) = (types.len(), num_tokens);
        return Err(TokenizerError::Length {
            key: TOKEN_TYPES,
            found,
            expected,
        }
        .into());
    }
    Ok(types.map(TokenKind::from_gguf).collect())
}

fn parse_pre_tokenizer(metadata: &Metadata<'_>) -> Result<Sequence, CheckpointError> {
    let model = metadata
        .str("tokenizer.ggml.model")?
        .ok_or_else(|| missing("tokenizer.ggml.model"))?;
    if model != "gpt2" {
        return Err(TokenizerError::Model {
            model: model.to_owned(),
        }
        .into());
    }
    let name = metadata
        .str("tokenizer.ggml.pre")?
        .ok_or_else(|| missing("tokenizer.ggml.pre"))?;
    match name {
        // Each digit alone, then GPT-2's split into words with the space before them.
        "smollm" => Ok(Sequence::new(vec![
            Digits::new(true).into(),
            ByteLevel::new(false, true, true).into(),
        ])),
        _ => Err(TokenizerError::PreTokenizer { name: name.to_owned() }.into()),
    }
}

fn read_merges(metadata: &Metadata<'_>, num_tokens: usize) -> Result<Vec<(String, String)>, CheckpointError> {
    let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(MERGES))?;
    let most = num_tokens.saturating_mul(MERGES_PER_TOKEN_MAX);
    if merges.len() > most {
        return Err(TokenizerError::TooManyMerges {
            found: merges.len(),
            most,
        }
        .into());
    }
    let parse = |(index, bytes): (usize, &[u8])| {
        let text = String::from_utf8_lossy(bytes);
        match text.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
            _ => {
                let why = "is not two tokens with a space between them";
                Err(TokenizerError::Merge {
                    index,
                    text: text.into_owned(),
                    why,
                }
                .into())
            }
        }
    };
    merges.enumerate().map(parse).collect()
}

fn build_bpe(tokens: &[String], merges: Vec<(String, String)>) -> Result<BPE, TokenizerError> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (token, text) in (0u32..).zip(tokens) {
        if let Some(first) = vocab.insert(text.clone(), token) {
            return Err(TokenizerError::Duplicate {
                first,
                second: token,
                text: text.clone(),
            });
        }
    }
    // The library indexes by what these merges promise.
    for (index, (left, right)) in merges.iter().enumerate() {
        let text = format!("{left}{right}");
        if ![left, right, &text].into_iter().all(|part| vocab.contains_key(part)) {
            let (text, why) = (format!("{left} {right}"), "has a part or a result that is not a token");
            return Err(TokenizerError::Merge { index, text, why });
        }
    }
    let build = BPE::builder().vocab_and_merges(vocab, merges).build();
    build.map_err(|source| TokenizerError::Library {
        reason: source.to_string(),
    })
}

fn special_tokens(tokens: &[String], kinds: &[TokenKind]) -> Result<SpecialTokens, TokenizerError> {
    let of_kind = |wanted: TokenKind| {
        let all = (0u32..).zip(tokens.iter().zip(kinds));
        all.filter(|(_, (_, kind))| **kind == wanted)
            .map(|(token, (text, _))| (text.clone(), TokenId(token)))
            .collect()
    };
    SpecialTokens::new(of_kind(TokenKind::Control), of_kind(TokenKind::UserDefined))
}

fn missing(key: &str) -> CheckpointError {
    CheckpointError::MissingKey { key: key.to_owned() }
}
