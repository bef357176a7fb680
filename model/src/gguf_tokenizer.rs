//! The tokenizer in a GGUF file: keys `tokenizer.ggml.*`.

use kvasir_kv::TokenId;

use crate::{
    CheckpointError, Metadata, TokenizerError,
    byte_pairs::{BytePairOptions, BytePairs, Merge, check_count},
    encoder::Encoder,
    normalizer::Normalizer,
    pre_tokenizer::PreTokenizer,
    sentence_pieces::SentencePieces,
    special_tokens::{Bounds, SpecialToken, SpecialTokens},
    tokenizer::{LeadingSpace, TokenizerParts},
    vocabulary::{Spelling, TokenEntry, TokenKind, Vocabulary},
};

pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const MODEL: &str = "tokenizer.ggml.model";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
/// What SentencePiece calls a token of type "unknown".
const TYPE_UNKNOWN: i64 = 2;

/// What the key `tokenizer.ggml.model` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GgufModel {
    /// Byte-level BPE.
    Gpt2(PreTokenizer),
    /// SentencePiece's BPE.
    Llama,
}

impl GgufModel {
    pub(crate) fn read(metadata: &Metadata<'_>) -> Result<Self, CheckpointError> {
        match metadata.str(MODEL)?.ok_or_else(|| missing(MODEL))? {
            "gpt2" => Ok(Self::Gpt2(PreTokenizer::named(metadata.str("tokenizer.ggml.pre")?)?)),
            "llama" => Ok(Self::Llama),
            model => Err(TokenizerError::Model {
                model: model.to_owned(),
                supported: "gpt2, llama",
            }
            .into()),
        }
    }
}

pub(crate) fn read(metadata: &Metadata<'_>) -> Result<TokenizerParts, CheckpointError> {
    let model = GgufModel::read(metadata)?;
    let types = read_types(metadata)?;
    let entries = read_entries(metadata, types.as_deref())?;
    let special_tokens = special_tokens(&entries)?;
    match model {
        GgufModel::Gpt2(pre_tokenizer) => {
            let options = BytePairOptions {
                ignore_merges: pre_tokenizer.ignores_merges(),
                ..BytePairOptions::default()
            };
            let merges = read_merges(metadata, entries.len())?;
            Ok(TokenizerParts {
                vocabulary: Vocabulary::new(&entries, Spelling::ByteLevel)?,
                special_tokens,
                normalizer: pre_tokenizer.normalizer(),
                normalized_tokens: None,
                encoder: Encoder::ByteLevel {
                    splitter: pre_tokenizer.splitter(),
                    prefix_space: false,
                    pairs: BytePairs::new(&entries, merges, options)?,
                },
                leading_space: LeadingSpace::Keep,
            })
        }
        GgufModel::Llama => {
            let prepend = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            let scores = read_scores(metadata, entries.len())?;
            let unknown = read_unknown(metadata, types.as_deref())?;
            Ok(TokenizerParts {
                vocabulary: Vocabulary::new(&entries, Spelling::Spaced)?,
                special_tokens,
                normalizer: Normalizer::Spaced { prepend },
                normalized_tokens: None,
                encoder: Encoder::Pieces(SentencePieces::new(&entries, scores, unknown)?),
                leading_space: if prepend {
                    LeadingSpace::StripOne
                } else {
                    LeadingSpace::Keep
                },
            })
        }
    }
}

fn read_entries(metadata: &Metadata<'_>, types: Option<&[i64]>) -> Result<Vec<TokenEntry>, CheckpointError> {
    let tokens = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    if tokens.len() == 0 {
        return Err(TokenizerError::Empty.into());
    }
    if let Some(types) = types {
        check_len(TOKEN_TYPES, types.len(), tokens.len())?;
    }
    let entry = |(i, bytes): (usize, &[u8])| {
        let text = std::str::from_utf8(bytes).map_err(|_| TokenizerError::NotUtf8 { token: i as u32 })?;
        Ok(TokenEntry {
            text: text.to_owned(),
            kind: types.map_or(TokenKind::Text, |types| kind(types[i])),
        })
    };
    tokens.enumerate().map(entry).collect()
}

/// The kind of each token; absent types mean that all tokens are text.
pub(crate) fn read_kinds(metadata: &Metadata<'_>) -> Result<Option<Vec<TokenKind>>, CheckpointError> {
    Ok(read_types(metadata)?.map(|types| types.into_iter().map(kind).collect()))
}

fn read_types(metadata: &Metadata<'_>) -> Result<Option<Vec<i64>>, CheckpointError> {
    Ok(metadata.integers(TOKEN_TYPES)?.map(Iterator::collect))
}

fn kind(token_type: i64) -> TokenKind {
    match token_type {
        // Like a control token, an unknown one is not something that text contains.
        TYPE_UNKNOWN | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        6 => TokenKind::Byte,
        _ => TokenKind::Text,
    }
}

fn read_merges(metadata: &Metadata<'_>, num_tokens: usize) -> Result<Vec<Merge>, CheckpointError> {
    let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(MERGES))?;
    check_count(merges.len(), num_tokens)?;
    let parse = |(index, bytes): (usize, &[u8])| Ok(parse_merge(index, &String::from_utf8_lossy(bytes))?);
    merges.enumerate().map(parse).collect()
}

pub(crate) fn parse_merge(index: usize, text: &str) -> Result<Merge, TokenizerError> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(TokenizerError::Merge {
            index,
            text: text.to_owned(),
            why: "is not two tokens with a space between them",
        }),
    }
}

fn read_scores(metadata: &Metadata<'_>, num_tokens: usize) -> Result<Vec<f32>, CheckpointError> {
    let scores = metadata.floats(SCORES)?.ok_or_else(|| missing(SCORES))?;
    check_len(SCORES, scores.len(), num_tokens)?;
    Ok(scores.collect())
}

/// The key, or the one token of that type.
fn read_unknown(metadata: &Metadata<'_>, types: Option<&[i64]>) -> Result<Option<TokenId>, CheckpointError> {
    let by_type = |types: &[i64]| types.iter().position(|token_type| *token_type == TYPE_UNKNOWN);
    let by_type = types.and_then(by_type).map(|token| token as u32);
    Ok(metadata.u32(UNKNOWN)?.or(by_type).map(TokenId))
}

fn special_tokens(entries: &[TokenEntry]) -> Result<SpecialTokens, TokenizerError> {
    let special = |(token, entry): (u32, &TokenEntry)| SpecialToken {
        text: entry.text.clone(),
        token: TokenId(token),
        is_control: entry.kind == TokenKind::Control,
        bounds: Bounds::default(),
    };
    let is_special = |entry: &TokenEntry| matches!(entry.kind, TokenKind::Control | TokenKind::UserDefined);
    let all = (0u32..).zip(entries).filter(|(_, entry)| is_special(entry));
    SpecialTokens::new(all.map(special).collect())
}

fn check_len(key: &'static str, found: usize, expected: usize) -> Result<(), TokenizerError> {
    if found == expected {
        return Ok(());
    }
    Err(TokenizerError::Length { key, found, expected })
}

fn missing(key: &str) -> CheckpointError {
    CheckpointError::MissingKey { key: key.to_owned() }
}
