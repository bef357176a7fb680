//! A GGUF model around a tokenizer that the fuzzer chooses: sound weights, and metadata that may be anything.
//!
//! Past the file's header from the first input on, where bytes as they are would take the fuzzer long to come.

use arbitrary::Arbitrary;
use kvasir_model::WeightType;

use crate::gguf_writer::{GgufValue, GgufWriter};

const HIDDEN: u64 = 32;
const TOKENS_MAX: usize = 2048;

#[derive(Arbitrary, Debug)]
pub struct TokenizerMetadata {
    is_llama: bool,
    pre_tokenizer: PreTokenizer,
    /// The 256 byte tokens come first.
    all_bytes: bool,
    tokens: Vec<Token>,
    has_types: bool,
    merges: Option<Vec<Merge>>,
    scores: Option<Vec<i8>>,
    add_space_prefix: Option<bool>,
    unknown: Option<u16>,
    bos: Option<u16>,
    eos: Option<u16>,
    /// For a length that fits nothing.
    num_types_off_by: i8,
    pub text: String,
}

#[derive(Arbitrary, Debug)]
struct Token {
    text: TokenText,
    kind: Kind,
}

#[derive(Arbitrary, Debug)]
enum TokenText {
    /// Two tokens before it, so that merges have what to make.
    Joined(u16, u16),
    Text(String),
    Byte(u8),
}

/// The types of a GGUF file's tokens.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Normal,
    Normal2,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
    Other(i32),
}

#[derive(Arbitrary, Debug)]
enum Merge {
    /// Two tokens.
    Pair(u16, u16),
    /// The two that token was joined of.
    Of(u16),
    Text(String),
}

#[derive(Arbitrary, Debug)]
enum PreTokenizer {
    Absent,
    Default,
    Gpt2,
    Smollm,
    Llama3,
    Qwen2,
    Qwen35,
    Tekken,
    Other(String),
}

impl TokenizerMetadata {
    /// The bytes of a GGUF file.
    pub fn to_gguf(&self) -> Vec<u8> {
        let texts = self.texts();
        let mut file = GgufWriter::default();
        put_spec(&mut file);
        self.put_tokenizer(&mut file, &texts);
        put_weights(&mut file, texts.len() as u64);
        file.to_bytes()
    }

    fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        if self.all_bytes {
            texts.extend((0..=255).map(|byte| self.byte(byte)));
        }
        for token in self.tokens.iter().take(TOKENS_MAX) {
            let text = match &token.text {
                TokenText::Joined(left, right) => nth(&texts, *left).to_owned() + nth(&texts, *right),
                TokenText::Text(text) => text.clone(),
                TokenText::Byte(byte) => self.byte(*byte),
            };
            // Doubling could go on for ever.
            texts.push(text.chars().take(64).collect());
        }
        if texts.is_empty() {
            texts.push("a".to_owned());
        }
        texts
    }

    fn byte(&self, byte: u8) -> String {
        if self.is_llama {
            format!("<0x{byte:02X}>")
        } else {
            byte_char(byte).to_string()
        }
    }

    fn put_tokenizer(&self, file: &mut GgufWriter, texts: &[String]) {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let model = if self.is_llama { "llama" } else { "gpt2" };
        file.set(&key("model"), GgufValue::Str(model.to_owned()));
        if let Some(name) = self.pre_tokenizer.name() {
            file.set(&key("pre"), GgufValue::Str(name.to_owned()));
        }
        file.set(&key("tokens"), GgufValue::Strings(texts.to_vec()));
        if self.has_types {
            file.set(&key("token_type"), GgufValue::I32s(self.types(texts.len())));
        }
        if let Some(merges) = &self.merges {
            let merges = merges.iter().take(TOKENS_MAX);
            let merges = merges.map(|merge| self.merge(merge, texts)).collect();
            file.set(&key("merges"), GgufValue::Strings(merges));
        }
        if let Some(scores) = &self.scores {
            let score = |i| scores.get(i).map_or(0.0, |score| score_of(*score));
            let scores = (0..texts.len()).map(score).collect();
            file.set(&key("scores"), GgufValue::F32s(scores));
        }
        if let Some(prefix) = self.add_space_prefix {
            file.set(&key("add_space_prefix"), GgufValue::Bool(prefix));
        }
        for (name, token) in [("unknown", self.unknown), ("bos", self.bos), ("eos", self.eos)] {
            if let Some(token) = token {
                file.set(&key(&format!("{name}_token_id")), GgufValue::U32(token.into()));
            }
        }
    }

    fn types(&self, num_tokens: usize) -> Vec<i32> {
        let num_bytes = if self.all_bytes { 256 } else { 0 };
        let byte_kind = if self.is_llama { Kind::Byte } else { Kind::Normal };
        let kinds = self.tokens.iter().map(|token| token.kind);
        let kinds = std::iter::repeat_n(byte_kind, num_bytes).chain(kinds);
        let types = kinds.chain(std::iter::repeat(Kind::Normal)).map(Kind::number);
        // Mostly right.
        let off_by = (self.num_types_off_by / 127) as isize;
        types.take(num_tokens.saturating_add_signed(off_by)).collect()
    }

    fn merge(&self, merge: &Merge, texts: &[String]) -> String {
        let pair = |left, right| format!("{} {}", nth(texts, left), nth(texts, right));
        match merge {
            Merge::Pair(left, right) => pair(*left, *right),
            Merge::Of(token) => match self.tokens.get(*token as usize).map(|token| &token.text) {
                Some(TokenText::Joined(left, right)) => pair(*left, *right),
                _ => pair(*token, *token),
            },
            Merge::Text(text) => text.clone(),
        }
    }
}

/// Extremes that a file can hold, and plain numbers.
fn score_of(score: i8) -> f32 {
    match score {
        i8::MIN => f32::NAN,
        -127 => f32::NEG_INFINITY,
        i8::MAX => f32::INFINITY,
        126 => -0.0,
        score => score.into(),
    }
}

/// "" of nothing; numbers go round.
fn nth(texts: &[String], index: u16) -> &str {
    let wrapped = (index as usize).checked_rem(texts.len());
    wrapped.map_or("", |index| &texts[index])
}

impl Kind {
    fn number(self) -> i32 {
        match self {
            Self::Normal | Self::Normal2 => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
            Self::Other(number) => number,
        }
    }
}

impl PreTokenizer {
    fn name(&self) -> Option<&str> {
        Some(match self {
            Self::Absent => return None,
            Self::Default => "default",
            Self::Gpt2 => "gpt-2",
            Self::Smollm => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
            Self::Qwen35 => "qwen35",
            Self::Tekken => "tekken",
            Self::Other(name) => name,
        })
    }
}

/// GPT-2's letter for a byte.
fn byte_char(byte: u8) -> char {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(&byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|other| !is_printable(other)).count() as u32;
    char::from_u32(256 + before).expect("letters from U+0100 on")
}

fn put_spec(file: &mut GgufWriter) {
    file.set("general.architecture", GgufValue::Str("llama".to_owned()));
    let counts = [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", HIDDEN as u32),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
    ];
    for (key, count) in counts {
        file.set(&format!("llama.{key}"), GgufValue::U32(count));
    }
    file.set("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(1e-5));
}

fn put_weights(file: &mut GgufWriter, num_tokens: u64) {
    let mut put = |name: &str, weight_type: WeightType, dimensions: &[u64]| {
        let num_blocks = dimensions.iter().product::<u64>() as usize / weight_type.block_len();
        let bytes = vec![0; num_blocks * weight_type.block_bytes()];
        file.add_tensor(name, weight_type, dimensions, bytes);
    };
    put("token_embd.weight", WeightType::Q4_0, &[HIDDEN, num_tokens]);
    for norm in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        put(&format!("{norm}.weight"), WeightType::F32, &[HIDDEN]);
    }
    for part in [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        put(&format!("blk.0.{part}.weight"), WeightType::Q4_0, &[HIDDEN, HIDDEN]);
    }
}
