//! Small models with random weights: real files with a real tokenizer, of any head layout, in milliseconds.
//!
//! The same seed gives the same bytes on every machine. Weights are scaled so that attention looks around, the
//! residual stream stays near 1, and logits spread by about 3: greedy decoding neither repeats one token nor hangs
//! on near ties.

use std::{io, path::Path};

use kvasir_model::WeightType;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    gguf_writer::{GgufValue, GgufWriter},
    quantize::quantize,
};

pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The special tokens and one for each byte.
pub const VOCAB_MIN: u32 = 3 + 256;
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// What to make. `hidden` need not be `num_q_heads * head_dim`.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub num_layers: u32,
    pub num_q_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub hidden: u32,
    pub ffn: u32,
    /// At least `VOCAB_MIN`; the rest are merges.
    pub vocab: u32,
    /// Of the matrices in the layers; norms are F32.
    pub weight_type: WeightType,
    /// Of the token embedding and the output head.
    pub embedding_type: WeightType,
    pub context_len: u32,
    /// As GGUF names it: llama, qwen2 (q, k and v have biases) or qwen3 (q and k have norms).
    pub architecture: &'static str,
    /// Biases wherever the llama architecture can have one.
    pub all_biases: bool,
    /// What rotary frequencies are divided by: 1, 2, 3 and so on, pair by pair.
    pub rope_divisors: bool,
    /// The output head is the token embedding.
    pub tied: bool,
    pub seed: u64,
}

impl Default for TinyModel {
    /// Two layers, three KV heads with three query heads each, Q4_1 with a Q8_0 embedding.
    fn default() -> Self {
        Self {
            num_layers: 2,
            num_q_heads: 9,
            num_kv_heads: 3,
            head_dim: 32,
            hidden: 96,
            ffn: 192,
            vocab: 320,
            weight_type: WeightType::Q4_1,
            embedding_type: WeightType::Q8_0,
            context_len: 1024,
            architecture: "llama",
            all_biases: false,
            rope_divisors: false,
            tied: true,
            seed: 0,
        }
    }
}

impl TinyModel {
    /// The default model with other heads.
    pub fn with_heads(num_q_heads: u32, num_kv_heads: u32, head_dim: u32) -> Self {
        Self {
            num_q_heads,
            num_kv_heads,
            head_dim,
            ..Self::default()
        }
    }

    /// With widths that stored blocks of the type fill.
    pub fn of_whole_blocks(self, weight_type: WeightType) -> Self {
        let round = |width: u32| width.next_multiple_of(weight_type.block_len().max(32) as u32);
        Self {
            hidden: round(self.hidden),
            ffn: round(self.ffn),
            ..self
        }
    }

    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.gguf().write(path)
    }

    /// The file before it is written, to change something in it.
    pub fn gguf(&self) -> GgufWriter {
        let mut file = self.header();
        let mut weights = Weights {
            random: ChaCha8Rng::seed_from_u64(self.seed),
        };
        self.put_outside(&mut file, &mut weights);
        for layer in 0..self.num_layers {
            self.put_layer(&mut file, &mut weights, layer);
        }
        file
    }

    /// All but the tensors.
    pub fn header(&self) -> GgufWriter {
        let mut file = GgufWriter::default();
        self.put_spec(&mut file);
        put_tokenizer(&mut file, self.vocab);
        file
    }

    fn put_spec(&self, file: &mut GgufWriter) {
        file.set("general.architecture", GgufValue::Str(self.architecture.to_owned()));
        file.set("general.name", GgufValue::Str(format!("tiny {}", self.seed)));
        let counts = [
            ("block_count", self.num_layers),
            ("context_length", self.context_len),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.num_q_heads),
            ("attention.head_count_kv", self.num_kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab),
        ];
        for (key, count) in counts {
            file.set(&self.key(key), GgufValue::U32(count));
        }
        file.set(&self.key("rope.freq_base"), GgufValue::F32(10_000.0));
        file.set(&self.key("attention.layer_norm_rms_epsilon"), GgufValue::F32(1e-5));
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn put_outside(&self, file: &mut GgufWriter, weights: &mut Weights) {
        let hidden = self.hidden as f32;
        // Small beside what the layers add: otherwise a tied head finds the current token in the residual stream
        // and repeats it for ever.
        let embedding_scale = 0.5 / hidden.sqrt();
        let logit_gain = if self.tied { 3.0 / 0.5 } else { 1.0 };
        let embedding = (self.embedding_type, self.vocab, self.hidden);
        weights.put_matrix(file, "token_embd.weight", embedding, embedding_scale);
        weights.put_norm(file, "output_norm.weight", self.hidden, logit_gain);
        if !self.tied {
            weights.put_matrix(file, "output.weight", embedding, 3.0 / hidden.sqrt());
        }
        if self.rope_divisors {
            let divisors: Vec<f32> = (1..=self.head_dim / 2).map(|divisor| divisor as f32).collect();
            put_vector(file, "rope_freqs.weight", &divisors);
        }
    }

    fn put_layer(&self, file: &mut GgufWriter, weights: &mut Weights, layer: u32) {
        let (q_rows, kv_rows) = (self.num_q_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        for norm in ["attn_norm", "ffn_norm"] {
            weights.put_norm(file, &format!("blk.{layer}.{norm}.weight"), self.hidden, 1.0);
        }
        // Gains over 1 / sqrt(columns): q and k above 1 make attention choose, o and down keep the residual near 1.
        let matrices = [
            ("attn_q", q_rows, self.hidden, 1.5),
            ("attn_k", kv_rows, self.hidden, 1.5),
            ("attn_v", kv_rows, self.hidden, 1.0),
            ("attn_output", self.hidden, q_rows, 0.7),
            ("ffn_gate", self.ffn, self.hidden, 1.5),
            ("ffn_up", self.ffn, self.hidden, 1.0),
            ("ffn_down", self.hidden, self.ffn, 0.7),
        ];
        for (part, rows, cols, gain) in matrices {
            let name = format!("blk.{layer}.{part}.weight");
            weights.put_matrix(file, &name, (self.weight_type, rows, cols), gain / (cols as f32).sqrt());
            let is_qkv = ["attn_q", "attn_k", "attn_v"].contains(&part);
            if self.all_biases || is_qkv && self.architecture == "qwen2" {
                weights.put_bias(file, &format!("blk.{layer}.{part}.bias"), rows);
            }
        }
        if self.architecture == "qwen3" {
            for norm in ["attn_q_norm", "attn_k_norm"] {
                weights.put_norm(file, &format!("blk.{layer}.{norm}.weight"), self.head_dim, 1.5);
            }
        }
    }
}

fn put_vector(file: &mut GgufWriter, name: &str, values: &[f32]) {
    file.add_tensor(
        name,
        WeightType::F32,
        &[values.len() as u64],
        quantize(WeightType::F32, values),
    );
}

struct Weights {
    random: ChaCha8Rng,
}

impl Weights {
    fn put_matrix(
        &mut self,
        file: &mut GgufWriter,
        name: &str,
        (weight_type, rows, cols): (WeightType, u32, u32),
        scale: f32,
    ) {
        let values: Vec<f32> = (0..rows as usize * cols as usize)
            .map(|_| self.normal() * scale)
            .collect();
        let dimensions = [u64::from(cols), u64::from(rows)];
        file.add_tensor(name, weight_type, &dimensions, quantize(weight_type, &values));
    }

    fn put_norm(&mut self, file: &mut GgufWriter, name: &str, len: u32, gain: f32) {
        let values: Vec<f32> = (0..len).map(|_| gain * (1.0 + 0.1 * self.normal())).collect();
        put_vector(file, name, &values);
    }

    fn put_bias(&mut self, file: &mut GgufWriter, name: &str, len: u32) {
        let values: Vec<f32> = (0..len).map(|_| 0.2 * self.normal()).collect();
        put_vector(file, name, &values);
    }

    /// Mean 0, variance 1, nearly normal, by additions alone: no library's logarithm decides the bits.
    fn normal(&mut self) -> f32 {
        let uniform = |word: u32| (word >> 8) as f32 * (2.0 / (1 << 24) as f32) - 1.0;
        let sum: f32 = (0..4).map(|_| uniform(self.random.next_u32())).sum();
        sum * 0.75f32.sqrt()
    }
}

fn put_tokenizer(file: &mut GgufWriter, vocab: u32) {
    assert!(
        vocab >= VOCAB_MIN,
        "a vocabulary of {vocab}, at least {VOCAB_MIN} are needed"
    );
    let mut tokens: Vec<String> = SPECIAL_TOKENS.map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
    let merges: Vec<(String, String)> = merges().take((vocab - VOCAB_MIN) as usize).collect();
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    assert_eq!(tokens.len(), vocab as usize, "no more than half a million merges");
    let types = (0..tokens.len())
        .map(|token| if token < SPECIAL_TOKENS.len() { 3 } else { 1 })
        .collect();
    file.set("tokenizer.ggml.model", GgufValue::Str("gpt2".to_owned()));
    file.set("tokenizer.ggml.pre", GgufValue::Str("smollm".to_owned()));
    file.set("tokenizer.ggml.tokens", GgufValue::Strings(tokens));
    file.set("tokenizer.ggml.token_type", GgufValue::I32s(types));
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    file.set("tokenizer.ggml.merges", GgufValue::Strings(merges));
    file.set("tokenizer.ggml.bos_token_id", GgufValue::U32(1));
    file.set("tokenizer.ggml.eos_token_id", GgufValue::U32(2));
    file.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(false));
    file.set("tokenizer.chat_template", GgufValue::Str(CHAT_TEMPLATE.to_owned()));
}

/// The first words of English, then all pairs of letters, then all pairs of those.
fn merges() -> impl Iterator<Item = (String, String)> {
    let words = [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("Ġ", "a"),
        ("Ġa", "n"),
        ("Ġan", "d"),
    ];
    let words = words.map(|(left, right)| (left.to_owned(), right.to_owned()));
    let letters = || (b'a'..=b'z').map(|letter| (letter as char).to_string());
    let pairs = move || letters().flat_map(move |left| letters().map(move |right| (left.clone(), right)));
    let joined = move || pairs().map(|(left, right)| left + &right);
    let quads = joined().flat_map(move |left| joined().map(move |right| (left.clone(), right)));
    // "he" is among the words already.
    words
        .into_iter()
        .chain(pairs().filter(|(left, right)| (left.as_str(), right.as_str()) != ("h", "e")))
        .chain(quads)
}

/// GPT-2's alphabet of bytes, written down a second time: the tokenizer's own is what these files test.
fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(&byte) {
        return byte as char;
    }
    let rank = (0..byte).filter(|other| !printable(other)).count() as u32;
    char::from_u32(256 + rank).expect("68 characters from U+0100")
}
