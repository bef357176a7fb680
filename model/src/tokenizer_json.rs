//! The tokenizer in a tokenizer.json: byte-level BPE and SentencePiece's BPE as merges.
//!
//! Every part of the file that changes the tokens is understood or refused by name. Parts that change something else
//! (truncation, padding, what is put before and after a text) are not used here.

use std::fmt;

use kvasir_kv::TokenId;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{
    TokenizerError,
    byte_pairs::{BytePairOptions, BytePairs, Merge, check_count},
    encoder::Encoder,
    gguf_tokenizer::parse_merge,
    json_pipeline::{Pipeline, Words},
    normalizer::Normalizer,
    special_tokens::{Bounds, SpecialToken, SpecialTokens},
    tokenizer::TokenizerParts,
    tokenizer_files::from_json,
    vocabulary::{SPACE, TokenEntry, TokenKind, Vocabulary, byte_named},
};

const FILE: &str = "tokenizer.json";
/// Ids may leave holes, but a few tokens must not make a large table.
const HOLES_MAX: usize = 1 << 16;

pub(crate) fn read(bytes: &[u8]) -> Result<TokenizerParts, TokenizerError> {
    let file: File = from_json(FILE, bytes)?;
    file.model.check()?;
    let pipeline = Pipeline::parse(&file.normalizer, &file.pre_tokenizer, &file.decoder)?;
    let entries = entries(&file.model.vocab, &file.added_tokens, pipeline.byte_tokens)?;
    let (normalized, plain): (Vec<_>, Vec<_>) = file.added_tokens.iter().partition(|token| token.normalized);
    let pairs = BytePairs::new(&entries, file.model.merges(entries.len())?, file.model.options())?;
    let spelling = pipeline.words.spelling();
    Ok(TokenizerParts {
        vocabulary: Vocabulary::new(&shown(entries, &normalized, pipeline.normalizer), spelling)?,
        special_tokens: special_tokens(&plain, Normalizer::Keep)?,
        normalized_tokens: match normalized.is_empty() {
            true => None,
            false => Some(special_tokens(&normalized, pipeline.normalizer)?),
        },
        normalizer: pipeline.normalizer,
        encoder: match pipeline.words {
            Words::ByteLevel { splitter, prefix_space } => Encoder::ByteLevel {
                splitter,
                prefix_space,
                pairs,
            },
            Words::Spaced(metaspace) => Encoder::Spaced { metaspace, pairs },
        },
        leading_space: pipeline.leading_space,
    })
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: VocabList,
    merges: Option<Vec<MergeText>>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeText {
    Line(String),
    Pair(String, String),
}

impl Model {
    fn check(&self) -> Result<(), TokenizerError> {
        let kind = self
            .kind
            .as_deref()
            .unwrap_or(if self.merges.is_some() { "BPE" } else { "without a type" });
        if kind != "BPE" {
            return Err(TokenizerError::Model {
                model: kind.to_owned(),
                supported: "BPE",
            });
        }
        let refuse = |part, value: &dyn fmt::Debug| {
            Err(TokenizerError::Part {
                part,
                value: format!("{value:?}"),
                supported: "none",
            })
        };
        let affix = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(dropout) = self.dropout.filter(|dropout| *dropout != 0.0) {
            return refuse("dropout", &dropout);
        }
        if let Some(prefix) = affix(&self.continuing_subword_prefix) {
            return refuse("continuing_subword_prefix", &prefix);
        }
        match affix(&self.end_of_word_suffix) {
            Some(suffix) => refuse("end_of_word_suffix", &suffix),
            None => Ok(()),
        }
    }

    fn merges(&self, num_tokens: usize) -> Result<Vec<Merge>, TokenizerError> {
        let merges = self.merges.as_deref().unwrap_or_default();
        check_count(merges.len(), num_tokens)?;
        let parse = |(index, merge): (usize, &MergeText)| match merge {
            MergeText::Line(text) => parse_merge(index, text),
            MergeText::Pair(left, right) => Ok((left.clone(), right.clone())),
        };
        merges.iter().enumerate().map(parse).collect()
    }

    fn options(&self) -> BytePairOptions {
        BytePairOptions {
            ignore_merges: self.ignore_merges,
            byte_fallback: self.byte_fallback,
            unknown: self.unk_token.clone(),
            fuse_unknown: self.fuse_unk,
        }
    }
}

/// The texts of a vocabulary with their tokens, as the file has them; those of other models than BPE are left out.
#[derive(Default)]
struct VocabList(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for VocabList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = VocabList;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from texts to tokens")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabList, A::Error> {
        let mut tokens = Vec::new();
        while let Some(entry) = map.next_entry()? {
            tokens.push(entry);
        }
        Ok(VocabList(tokens))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<VocabList, A::Error> {
        while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(VocabList::default())
    }
}

fn entries(vocab: &VocabList, added: &[AddedToken], byte_tokens: bool) -> Result<Vec<TokenEntry>, TokenizerError> {
    let added_ids = added.iter().map(|token| token.id);
    let ids = vocab.0.iter().map(|(_, token)| *token).chain(added_ids);
    let mut entries = vec![TokenEntry::hole(); table_len(ids, vocab.0.len() + added.len())?];
    for (text, token) in &vocab.0 {
        let is_byte = byte_tokens && byte_named(text).is_some();
        let kind = if is_byte { TokenKind::Byte } else { TokenKind::Text };
        put(&mut entries, *token, text, kind)?;
    }
    for token in added {
        let kind = if token.special {
            TokenKind::Control
        } else {
            TokenKind::UserDefined
        };
        put(&mut entries, token.id, &token.content, kind)?;
    }
    Ok(entries)
}

fn table_len(ids: impl Iterator<Item = u32>, num_tokens: usize) -> Result<usize, TokenizerError> {
    let token = ids.max().ok_or(TokenizerError::Empty)?;
    let most = u32::try_from(num_tokens + HOLES_MAX).unwrap_or(u32::MAX);
    if token > most {
        return Err(TokenizerError::TokenId {
            token,
            most,
            num_tokens,
        });
    }
    Ok(token as usize + 1)
}

fn put(entries: &mut [TokenEntry], token: u32, text: &str, kind: TokenKind) -> Result<(), TokenizerError> {
    let entry = &mut entries[token as usize];
    if !entry.text.is_empty() && entry.text != text {
        return Err(TokenizerError::DuplicateId {
            token,
            first: entry.text.clone(),
            second: text.to_owned(),
        });
    }
    let text = text.to_owned();
    *entry = TokenEntry { text, kind };
    Ok(())
}

/// Tokens that are looked for in normalized text are also shown so.
fn shown(mut entries: Vec<TokenEntry>, normalized: &[&AddedToken], normalizer: Normalizer) -> Vec<TokenEntry> {
    for token in normalized {
        let text = normalizer.apply(&token.content);
        entries[token.id as usize].text = match normalizer {
            Normalizer::Spaced { .. } => text.replace(SPACE, " "),
            Normalizer::Keep | Normalizer::Nfc => text.into_owned(),
        };
    }
    entries
}

fn special_tokens(tokens: &[&AddedToken], normalizer: Normalizer) -> Result<SpecialTokens, TokenizerError> {
    let special = |token: &&AddedToken| SpecialToken {
        text: normalizer.apply(&token.content).into_owned(),
        token: TokenId(token.id),
        is_control: token.special,
        bounds: Bounds {
            strip_left: token.lstrip,
            strip_right: token.rstrip,
            single_word: token.single_word,
        },
    };
    SpecialTokens::new(tokens.iter().map(special).collect())
}
