//! The steps of a tokenizer.json around its model: normalizer, pre-tokenizer, decoder.

use serde_json::Value;

use crate::{
    TokenizerError,
    encoder::{Metaspace, SpacePrefix},
    normalizer::Normalizer,
    tokenizer::LeadingSpace,
    vocabulary::{SPACE, Spelling},
    word_splitter::{DIGIT, DIGITS, GPT_2, PUBLISHED, UP_TO_THREE_DIGITS, WordSplitter},
};

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) normalizer: Normalizer,
    pub(crate) words: Words,
    pub(crate) leading_space: LeadingSpace,
    /// Tokens like `<0x0A>` stand for bytes.
    pub(crate) byte_tokens: bool,
}

#[derive(Debug)]
pub(crate) enum Words {
    ByteLevel { splitter: WordSplitter, prefix_space: bool },
    Spaced(Option<Metaspace>),
}

impl Words {
    pub(crate) fn spelling(&self) -> Spelling {
        match self {
            Self::ByteLevel { .. } => Spelling::ByteLevel,
            Self::Spaced(_) => Spelling::Spaced,
        }
    }
}

impl Pipeline {
    pub(crate) fn parse(normalizer: &Value, pre_tokenizer: &Value, decoder: &Value) -> Result<Self, TokenizerError> {
        let steps = steps(pre_tokenizer, "pretokenizers");
        let is_byte_level = steps.iter().any(|step| kind(step) == "ByteLevel");
        let parsed = parse_normalizer(normalizer)?;
        if is_byte_level == matches!(parsed, Normalizer::Spaced { .. }) && parsed != Normalizer::Keep {
            return Err(refused(
                "normalizer",
                normalizer,
                "null or NFC with byte-level words, Prepend and Replace without",
            ));
        }
        if is_byte_level {
            return Self::byte_level(parsed, &steps, decoder);
        }
        let metaspace = parse_spaced(&steps, parsed)?;
        let decoder = SpacedDecoder::parse(decoder)?;
        Ok(Self {
            normalizer: parsed,
            words: Words::Spaced(metaspace),
            leading_space: decoder.leading_space,
            byte_tokens: decoder.byte_tokens,
        })
    }

    fn byte_level(normalizer: Normalizer, steps: &[&Value], decoder: &Value) -> Result<Self, TokenizerError> {
        for step in self::steps(decoder, "decoders") {
            if kind(step) != "ByteLevel" {
                return Err(refused("decoder", step, "ByteLevel, with byte-level words"));
            }
        }
        let mut expressions = Vec::new();
        let mut prefix_space = false;
        for (i, step) in steps.iter().enumerate() {
            if kind(step) != "ByteLevel" {
                expressions.push(parse_split(step)?);
                continue;
            }
            // After this step the text is no longer text, and a prefix would go before each word.
            prefix_space = flag(step, "add_prefix_space", true);
            if i + 1 != steps.len() || (prefix_space && i != 0) {
                return Err(refused(
                    "pre_tokenizer",
                    step,
                    "ByteLevel as the last step, without add_prefix_space unless it is the only one",
                ));
            }
            if flag(step, "use_regex", true) {
                expressions.push(GPT_2);
            }
        }
        Ok(Self {
            normalizer,
            words: Words::ByteLevel {
                splitter: WordSplitter::new(&expressions),
                prefix_space,
            },
            leading_space: LeadingSpace::Keep,
            byte_tokens: false,
        })
    }
}

fn parse_normalizer(normalizer: &Value) -> Result<Normalizer, TokenizerError> {
    let steps = steps(normalizer, "normalizers");
    let text = |step: &Value, name: &str| step.get(name).and_then(Value::as_str).map(str::to_owned);
    let is_spaces = |step: &Value| {
        let pattern = step.get("pattern").and_then(|pattern| text(pattern, "String"));
        kind(step) == "Replace" && pattern.as_deref() == Some(" ") && text(step, "content").as_deref() == Some(SPACE)
    };
    let is_prefix = |step: &Value| kind(step) == "Prepend" && text(step, "prepend").as_deref() == Some(SPACE);
    match steps.as_slice() {
        [] => Ok(Normalizer::Keep),
        [step] if kind(step) == "NFC" => Ok(Normalizer::Nfc),
        [spaces] if is_spaces(spaces) => Ok(Normalizer::Spaced { prepend: false }),
        [prefix, spaces] if is_prefix(prefix) && is_spaces(spaces) => Ok(Normalizer::Spaced { prepend: true }),
        _ => Err(refused(
            "normalizer",
            normalizer,
            "null, NFC, Replace \" \" by \"▁\", the same after Prepend \"▁\"",
        )),
    }
}

/// A step that cuts text at an expression.
fn parse_split(step: &Value) -> Result<&'static str, TokenizerError> {
    match kind(step) {
        "Digits" if flag(step, "individual_digits", false) => return Ok(DIGIT),
        "Digits" => return Ok(DIGITS),
        "Split" => {}
        _ => {
            return Err(refused(
                "pre_tokenizer",
                step,
                "ByteLevel, Split, Digits, Metaspace, Sequence",
            ));
        }
    }
    let behavior = (
        step.get("behavior").and_then(Value::as_str),
        flag(step, "invert", false),
    );
    let expression = step
        .get("pattern")
        .and_then(|pattern| pattern.get("Regex"))
        .and_then(Value::as_str);
    let published = PUBLISHED.iter().find(|known| Some(**known) == expression);
    let digits = [DIGIT, UP_TO_THREE_DIGITS]
        .into_iter()
        .find(|known| Some(*known) == expression);
    match (published, digits, behavior) {
        // What such an expression does not match is nothing, so keeping the matches alone is the same.
        (Some(known), _, (Some("Isolated"), false) | (Some("Removed"), true)) => Ok(known),
        (None, Some(known), (Some("Isolated"), false)) => Ok(known),
        _ => Err(refused(
            "pre_tokenizer",
            step,
            "the expressions of GPT-2, Llama 3, Qwen 2, Qwen 3.5 and Tekken, isolated",
        )),
    }
}

fn parse_spaced(steps: &[&Value], normalizer: Normalizer) -> Result<Option<Metaspace>, TokenizerError> {
    match steps {
        [] => Ok(None),
        [step] if kind(step) == "Metaspace" => Ok(Some(Metaspace {
            prefix: parse_prefix(step)?,
            split: flag(step, "split", true),
        })),
        // No space is left that it could split at.
        [step] if normalizer != Normalizer::Keep && is_split_at_space(step) => Ok(None),
        [step, ..] => Err(refused(
            "pre_tokenizer",
            step,
            "ByteLevel, Split, Digits, Metaspace, Sequence",
        )),
    }
}

fn is_split_at_space(step: &Value) -> bool {
    let pattern = step
        .get("pattern")
        .and_then(|pattern| pattern.get("String"))
        .and_then(Value::as_str);
    kind(step) == "Split" && pattern == Some(" ")
}

/// Of a Metaspace step, which has two ways to say it.
fn parse_prefix(step: &Value) -> Result<SpacePrefix, TokenizerError> {
    let replacement = step.get("replacement").and_then(Value::as_str);
    let scheme = step.get("prepend_scheme").and_then(Value::as_str);
    match (replacement, scheme) {
        (Some(SPACE), None | Some("always")) if !flag(step, "add_prefix_space", true) => Ok(SpacePrefix::Never),
        (Some(SPACE), None | Some("always")) => Ok(SpacePrefix::Always),
        (Some(SPACE), Some("first")) => Ok(SpacePrefix::First),
        (Some(SPACE), Some("never")) => Ok(SpacePrefix::Never),
        _ => Err(refused(
            "Metaspace",
            step,
            "replacement \"▁\", prepend_scheme always, first or never",
        )),
    }
}

struct SpacedDecoder {
    leading_space: LeadingSpace,
    byte_tokens: bool,
}

impl SpacedDecoder {
    fn parse(decoder: &Value) -> Result<Self, TokenizerError> {
        let mut parsed = Self {
            leading_space: LeadingSpace::Keep,
            byte_tokens: false,
        };
        let mut has_spaces = false;
        for step in steps(decoder, "decoders") {
            match kind(step) {
                "Replace" => has_spaces = true,
                "ByteFallback" => parsed.byte_tokens = true,
                "Fuse" => {}
                "Strip" if number(step, "start") == 1 && number(step, "stop") == 0 => {
                    parsed.leading_space = LeadingSpace::StripOne;
                }
                "Metaspace" => {
                    has_spaces = true;
                    let strips = parse_prefix(step)? != SpacePrefix::Never;
                    parsed.leading_space = if strips {
                        LeadingSpace::StripFirstToken
                    } else {
                        LeadingSpace::Keep
                    };
                }
                _ => {
                    return Err(refused(
                        "decoder",
                        step,
                        "Replace, ByteFallback, Fuse, Strip of one space, Metaspace",
                    ));
                }
            }
        }
        match has_spaces {
            true => Ok(parsed),
            false => Err(refused("decoder", decoder, "one with Replace or Metaspace")),
        }
    }
}

/// The steps of a sequence, or the one step.
fn steps<'v>(value: &'v Value, list: &str) -> Vec<&'v Value> {
    match value {
        Value::Null => Vec::new(),
        _ if kind(value) == "Sequence" => {
            let items = value.get(list).and_then(Value::as_array);
            items.into_iter().flatten().flat_map(|item| steps(item, list)).collect()
        }
        _ => vec![value],
    }
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn flag(step: &Value, name: &str, default: bool) -> bool {
    step.get(name).and_then(Value::as_bool).unwrap_or(default)
}

fn number(step: &Value, name: &str) -> u64 {
    step.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn refused(part: &'static str, value: &Value, supported: &'static str) -> TokenizerError {
    let mut value = value.to_string();
    // Whoever reads the message needs no more to find it.
    value.truncate(value.floor_char_boundary(200));
    TokenizerError::Part { part, value, supported }
}
