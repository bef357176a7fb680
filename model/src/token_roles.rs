//! Which tokens begin a prompt and end an answer.
//!
//! A GGUF file names some of them by keys; others are known by their text, the list of which follows llama.cpp's.
//! Only control tokens count by their text: a token that text is made of must never end an answer. A folder of files
//! names them in config.json, generation_config.json and tokenizer_config.json, and nothing counts by its text.

use kvasir_kv::TokenId;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    CheckpointError, Metadata, TokenizerError, TokenizerFiles,
    gguf_tokenizer::{self, GgufModel},
    tokenizer_files::{from_json, parse},
    vocabulary::TokenKind,
};

/// Control tokens with these texts end an answer: turns, texts, messages.
const END_TEXTS: [&str; 34] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Of filling in the middle: what follows is another file.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
    "<file-sep>",
];

/// Keys of GGUF files that name one such token each.
const END_KEYS: [&str; 6] = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"];

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TokenRoles {
    pub bos_token: Option<TokenId>,
    pub eos_token: Option<TokenId>,
    /// Only where the file names it.
    pub eot_token: Option<TokenId>,
    /// Every token that ends an answer, ascending, each once.
    pub end_tokens: Vec<TokenId>,
    /// Prompts begin with `bos_token`.
    pub add_bos: bool,
    /// The vocabulary is published with texts that end in `eos_token`. No prompt of an answer does.
    pub add_eos: bool,
}

impl TokenRoles {
    pub(crate) fn from_metadata(metadata: &Metadata<'_>, vocab_size: u32) -> Result<Self, CheckpointError> {
        let key = |name: &str| keyed_token(metadata, name, vocab_size);
        let controls = Controls::read(metadata)?;
        // SentencePiece's own numbers, where the file leaves them out.
        let is_llama = metadata.str("tokenizer.ggml.model").ok().flatten() == Some("llama");
        let default = |token: u32| Some(TokenId(token)).filter(|token| is_llama && controls.contain(*token));
        let bos_token = key("bos")?.or(default(1));
        let eos_token = key("eos")?.or(default(2));
        let mut end_tokens = controls.end_tokens();
        end_tokens.extend(eos_token);
        for name in END_KEYS {
            end_tokens.extend(key(name)?);
        }
        let adds_bos = GgufModel::read(metadata).is_ok_and(GgufModel::adds_bos);
        let flag = |name: &str| metadata.bool(&format!("tokenizer.ggml.add_{name}_token"));
        Ok(Self {
            bos_token,
            eos_token,
            eot_token: key("eot")?,
            end_tokens: ascending(end_tokens),
            // Without such a token there is nothing to add.
            add_bos: flag("bos")?.unwrap_or(adds_bos) && bos_token.is_some(),
            add_eos: flag("eos")?.unwrap_or(false) && eos_token.is_some(),
        })
    }

    /// From the files of a folder. Errors if one is no JSON or names a token that the model does not have.
    pub fn from_files(files: &TokenizerFiles, vocab_size: u32) -> Result<Self, TokenizerError> {
        let head: TokenizerHead = from_json("tokenizer.json", &files.tokenizer)?;
        let tokenizer_config = parse("tokenizer_config.json", files.tokenizer_config.as_deref())?;
        let config = Configured::parse("config.json", files.config.as_deref(), vocab_size)?;
        let generation = Configured::parse("generation_config.json", files.generation_config.as_deref(), vocab_size)?;
        let named = |role: &str| -> Result<Option<TokenId>, TokenizerError> {
            let text = files.special_text(role)?;
            let token = text.and_then(|text| head.token(&text));
            token
                .map(|token| check(role.to_owned(), token.into(), vocab_size))
                .transpose()
        };
        let template_bos = head.template_bos().map(|token| {
            let what = "the token at the start in tokenizer.json".to_owned();
            check(what, token.0.into(), vocab_size)
        });
        let template_bos = template_bos.transpose()?;
        let bos_token = named("bos_token")?.or(template_bos).or(config.bos_token);
        let eos_token = named("eos_token")?;
        let end_tokens = eos_token.into_iter().chain(config.end_tokens.iter().copied());
        let end_tokens = ascending(end_tokens.chain(generation.end_tokens).collect());
        let flag = |name: &str| tokenizer_config.get(name).and_then(Value::as_bool);
        Ok(Self {
            bos_token,
            eos_token: eos_token.or(config.end_tokens.first().copied()),
            eot_token: None,
            end_tokens,
            add_bos: flag("add_bos_token").unwrap_or(template_bos.is_some()) && bos_token.is_some(),
            add_eos: flag("add_eos_token").unwrap_or(false),
        })
    }
}

impl GgufModel {
    /// Where the file does not say.
    fn adds_bos(self) -> bool {
        match self {
            Self::Llama => true,
            Self::Gpt2(pre_tokenizer) => pre_tokenizer.adds_bos(),
        }
    }
}

/// The control tokens of a GGUF file.
struct Controls<'a>(Vec<(TokenId, &'a [u8])>);

impl<'a> Controls<'a> {
    /// None, if the file has no vocabulary or does not say what the tokens are.
    fn read(metadata: &Metadata<'a>) -> Result<Self, CheckpointError> {
        let (tokens, kinds) = (
            metadata.strings(gguf_tokenizer::TOKENS)?,
            gguf_tokenizer::read_kinds(metadata)?,
        );
        let (Some(tokens), Some(kinds)) = (tokens, kinds) else {
            return Ok(Self(Vec::new()));
        };
        let all = (0u32..).map(TokenId).zip(tokens).zip(kinds);
        let controls = all.filter(|(_, kind)| *kind == TokenKind::Control);
        Ok(Self(controls.map(|(token, _)| token).collect()))
    }

    fn contain(&self, token: TokenId) -> bool {
        self.0.iter().any(|(other, _)| *other == token)
    }

    fn end_tokens(&self) -> Vec<TokenId> {
        let has = |text: &str| self.0.iter().any(|(_, other)| *other == text.as_bytes());
        let ends = self.0.iter().filter(|(_, text)| {
            let text = std::str::from_utf8(text).unwrap_or_default();
            END_TEXTS.contains(&text) && !is_no_end(text, has)
        });
        ends.map(|(token, _)| *token).collect()
    }
}

/// Texts that mean something else in the company of others.
fn is_no_end(text: &str, has: impl Fn(&str) -> bool) -> bool {
    let has_call = has("<|call|>") || has("<|calls|>");
    match text {
        // Ends a part of an answer where answers have parts.
        "<|end|>" => has_call && (has("<|return|>") || has("<|flush|>")),
        "</s>" => has("<|tool_response>"),
        _ => false,
    }
}

fn keyed_token(metadata: &Metadata<'_>, name: &str, vocab_size: u32) -> Result<Option<TokenId>, CheckpointError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(token) = metadata.u32(&key)? else {
        return Ok(None);
    };
    if token >= vocab_size {
        let expected = format!("a token below the vocabulary's size {vocab_size}");
        return Err(CheckpointError::BadValue {
            key,
            value: token.to_string(),
            expected,
        });
    }
    Ok(Some(TokenId(token)))
}

/// What config.json and generation_config.json say alike.
struct Configured {
    bos_token: Option<TokenId>,
    end_tokens: Vec<TokenId>,
}

impl Configured {
    fn parse(file: &'static str, bytes: Option<&[u8]>, vocab_size: u32) -> Result<Self, TokenizerError> {
        let config = parse(file, bytes)?;
        let tokens = |name: &str| -> Result<Vec<TokenId>, TokenizerError> {
            let token = |value: &Value| match value.as_u64() {
                Some(token) => check(format!("{name} in {file}"), token, vocab_size),
                None => Err(TokenizerError::Json {
                    file,
                    reason: format!("{name} is {value}, expected a token or a list of tokens"),
                }),
            };
            match config.get(name) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Array(values)) => values.iter().map(token).collect(),
                Some(value) => Ok(vec![token(value)?]),
            }
        };
        Ok(Self {
            bos_token: tokens("bos_token_id")?.first().copied(),
            end_tokens: tokens("eos_token_id")?,
        })
    }
}

/// The parts of a tokenizer.json that name tokens with roles.
#[derive(Deserialize)]
struct TokenizerHead {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

impl TokenizerHead {
    fn token(&self, text: &str) -> Option<u32> {
        self.added_tokens
            .iter()
            .find(|token| token.content == text)
            .map(|token| token.id)
    }

    /// The token that the file says every text begins with.
    fn template_bos(&self) -> Option<TokenId> {
        let processors = match self.post_processor.get("processors") {
            Some(Value::Array(processors)) => processors.as_slice(),
            _ => std::slice::from_ref(&self.post_processor),
        };
        let text = processors.iter().find_map(|processor| {
            processor
                .get("single")?
                .get(0)?
                .get("SpecialToken")?
                .get("id")?
                .as_str()
        });
        text.and_then(|text| self.token(text)).map(TokenId)
    }
}

fn check(what: String, token: u64, vocab_size: u32) -> Result<TokenId, TokenizerError> {
    match u32::try_from(token) {
        Ok(token) if token < vocab_size => Ok(TokenId(token)),
        _ => Err(TokenizerError::Role {
            what,
            token,
            vocab_size,
        }),
    }
}

fn ascending(mut tokens: Vec<TokenId>) -> Vec<TokenId> {
    tokens.sort();
    tokens.dedup();
    tokens
}
