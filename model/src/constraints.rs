//! What an answer may be, as masks over the vocabulary: constraints compiled against a model's tokens.
//!
//! A mask is a function of the constraint and of the answer's tokens alone, so whoever has both stands where everybody
//! else stands. Grammars come from strangers: their size, depth, states and work per token are bounded, and what passes a
//! bound is an error.

use std::{fmt, sync::Arc};

use kvasir_kv::{Constraint, TokenId};
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use serde_json::{Map, Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::Tokenizer;

/// What compiling costs grows with the square of an expression's length: these are tenths of a second.
const REGEX_BYTES_MAX: usize = 8 << 10;
const LARK_BYTES_MAX: usize = 16 << 10;
const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Any text in a schema may be an expression.
const SCHEMA_TEXT_BYTES_MAX: usize = 4 << 10;
/// Brackets within brackets: parsers of grammars recurse.
const DEPTH_MAX: usize = 100;
/// What `format` may say that the library has a grammar for.
const FORMATS: [&str; 11] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "unknown",
];
/// Of what the library says; it may quote the grammar.
const REASON_CHARS_MAX: usize = 300;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    #[error("the constraint, or a text in it, has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("the constraint nests brackets {depth} deep; at most {depth_max} are allowed")]
    TooDeep { depth: usize, depth_max: usize },
    #[error("the constraint cannot be compiled: {reason}")]
    Compile { reason: String },
    #[error("the model has no end-of-sequence token, which constrained answers end with")]
    NoEnd,
    #[error("the vocabulary cannot be constrained: {reason}")]
    Vocabulary { reason: String },
    #[error("the constraint cannot be followed further: {reason}")]
    Lost { reason: String },
}

/// Compiles constraints against one vocabulary. Making it takes a tenth of a second: keep it.
pub struct Constraints {
    factory: ParserFactory,
}

impl Constraints {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let vocabulary = |reason: String| ConstraintError::Vocabulary { reason };
        let end_tokens: Vec<u32> = tokenizer.eos_ids().iter().map(|token| token.0).collect();
        let first_end = *end_tokens.first().ok_or(ConstraintError::NoEnd)?;
        let vocab_size = u32::try_from(tokenizer.vocab_size()).map_err(|error| vocabulary(error.to_string()))?;
        let words: Vec<Vec<u8>> = (0..vocab_size).map(|token| word(tokenizer, TokenId(token))).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, first_end), &words).with_eos_tokens(&end_tokens);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| vocabulary(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// Where an answer stands that has no token yet. Errors if the constraint makes no sense, or is too much.
    pub fn compile(&self, constraint: &Constraint) -> Result<Followed, ConstraintError> {
        check_bounds(constraint)?;
        let grammar = match constraint {
            Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(read_schema(schema)?),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.to_string()),
        };
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            Some(reason) => Err(ConstraintError::Compile { reason: short(&reason) }),
            None => Ok(Followed { matcher }),
        }
    }
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").finish_non_exhaustive()
    }
}

/// What the token is to a grammar: text, or something that no text contains.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    match tokenizer.is_control(token) || tokenizer.eos_ids().contains(&token) {
        true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        false => bytes.to_vec(),
    }
}

fn read_schema(schema: &str) -> Result<Value, ConstraintError> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| ConstraintError::Compile {
        reason: error.to_string(),
    })?;
    check_len(longest_text(&schema), SCHEMA_TEXT_BYTES_MAX)?;
    Ok(laid_out(without_unknown_formats(schema)))
}

/// A format is a hint: one that no grammar describes means nothing (JSON Schema, "format" as an annotation).
fn without_unknown_formats(schema: Value) -> Value {
    match schema {
        Value::Object(map) => {
            let is_known = |key: &str, value: &Value| {
                let format = value.as_str().filter(|_| key == "format");
                format.is_none_or(|format| FORMATS.contains(&format))
            };
            let kept = map.into_iter().filter(|(key, value)| is_known(key, value));
            // What these hold is no schema.
            let cleaned = kept.map(|(key, value)| match key.as_str() {
                "const" | "enum" | "default" | "examples" => (key, value),
                _ => (key, without_unknown_formats(value)),
            });
            Value::Object(cleaned.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_unknown_formats).collect()),
        other => other,
    }
}

/// With one space after a comma and a colon, and no other that is not in a text, unless the schema says otherwise: a model
/// that may write spaces for ever does so now and then.
fn laid_out(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    let layout = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    map.entry("x-guidance").or_insert(layout);
    Value::Object(map)
}

/// Reading JSON has bounded its depth.
fn longest_text(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(longest_text).max().unwrap_or(0),
        Value::Object(map) => {
            let lengths = map.iter().map(|(key, value)| key.len().max(longest_text(value)));
            lengths.max().unwrap_or(0)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

fn check_len(bytes: usize, bytes_max: usize) -> Result<(), ConstraintError> {
    match bytes > bytes_max {
        true => Err(ConstraintError::TooLong { bytes, bytes_max }),
        false => Ok(()),
    }
}

/// Brackets in quotes count too: no grammar of use has so many.
fn check_bounds(constraint: &Constraint) -> Result<(), ConstraintError> {
    let bytes_max = match constraint {
        Constraint::JsonSchema(_) => SCHEMA_BYTES_MAX,
        Constraint::Regex(_) => REGEX_BYTES_MAX,
        Constraint::Lark(_) => LARK_BYTES_MAX,
    };
    let source = constraint.source();
    check_len(source.len(), bytes_max)?;
    let (mut open, mut depth) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        depth = depth.max(open);
    }
    match depth > DEPTH_MAX {
        true => Err(ConstraintError::TooDeep {
            depth,
            depth_max: DEPTH_MAX,
        }),
        false => Ok(()),
    }
}

/// A constraint and how far an answer has followed it.
pub struct Followed {
    matcher: Matcher,
}

impl Followed {
    /// Errors if the constraint does not allow the token. What comes after the end is nobody's answer, and no error.
    pub fn push(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        match self.matcher.is_stopped() && !self.matcher.is_error() {
            true => Ok(()),
            false => self.matcher.consume_token(token.0).map_err(lost),
        }
    }

    /// The tokens that may come next, at least one; the tokens that end an answer where it is complete.
    pub fn allowed(&mut self) -> Result<TokenMask, ConstraintError> {
        self.matcher.compute_mask_or_eos().map(TokenMask).map_err(lost)
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").finish_non_exhaustive()
    }
}

fn lost(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Lost {
        reason: short(&error.to_string()),
    }
}

/// One line, of a length that people read.
fn short(reason: &str) -> String {
    let reason = reason.trim_end_matches("<non-verbose/>");
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(REASON_CHARS_MAX).collect()
}

/// A set of tokens.
#[derive(Clone, Debug)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    /// Tokens outside the vocabulary are in no set.
    pub fn allows(&self, token: TokenId) -> bool {
        let index = token.0 as usize;
        index < self.0.len() && self.0.get(index)
    }

    pub fn num_allowed(&self) -> usize {
        self.0.num_set()
    }
}

#[cfg(test)]
mod tests;
