//! Tokenizers of all families against what their Python references make of the same vocabularies.
//!
//! The vocabularies are small ones, trained in each family's exact pipeline; see `reference/tokenizer_families.py`.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Instant,
};

use kvasir_kv::TokenId;
use kvasir_model::{Checkpoint, IncrementalDetokenizer, TokenRoles, Tokenizer};
use kvasir_tests::{
    gguf_writer::{GgufValue, GgufWriter},
    tiny_model::TinyModel,
};
use proptest::prelude::*;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// What Python makes of one string.
#[derive(Deserialize)]
struct Row {
    ids: Vec<u32>,
    /// With control tokens as plain text; absent if the same.
    plain_ids: Option<Vec<u32>>,
    /// Absent if the string itself.
    decoded: Option<String>,
}

#[derive(Deserialize)]
struct Family {
    tokenizer: Value,
    rows: Vec<Row>,
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("reference/tokenizer_families");
    let path = folder.join(name).with_extension("json");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

impl Family {
    fn read(name: &str) -> Self {
        let family: Self = read(name);
        assert_eq!(family.rows.len(), 2000);
        family
    }

    fn read_json(&self) -> Tokenizer {
        let bytes = serde_json::to_vec(&self.tokenizer).unwrap();
        Tokenizer::from_json(&bytes, &TokenRoles::default()).unwrap()
    }

    fn model(&self) -> &Value {
        &self.tokenizer["model"]
    }

    /// The vocabulary as a converter writes it.
    fn to_gguf(&self, pre_tokenizer: &str) -> GgufWriter {
        let vocab: BTreeMap<String, u32> = serde_json::from_value(self.model()["vocab"].clone()).unwrap();
        let mut tokens = vec![String::new(); vocab.len()];
        vocab
            .into_iter()
            .for_each(|(text, token)| tokens[token as usize] = text);
        let mut types = vec![1; tokens.len()];
        for added in self.tokenizer["added_tokens"].as_array().unwrap() {
            let kind = if added["special"].as_bool().unwrap() { 3 } else { 4 };
            types[added["id"].as_u64().unwrap() as usize] = kind;
        }
        let merges: Vec<(String, String)> = serde_json::from_value(self.model()["merges"].clone()).unwrap();
        let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}"));
        let mut file = gguf(tokens, types);
        file.set("tokenizer.ggml.pre", GgufValue::Str(pre_tokenizer.to_owned()));
        file.set("tokenizer.ggml.merges", GgufValue::Strings(merges.collect()));
        file
    }
}

fn gguf(tokens: Vec<String>, types: Vec<i32>) -> GgufWriter {
    let vocab = tokens.len() as u32;
    let mut file = TinyModel {
        vocab,
        num_layers: 1,
        ..TinyModel::with_heads(2, 1, 32)
    }
    .gguf();
    file.set("tokenizer.ggml.tokens", GgufValue::Strings(tokens));
    file.set("tokenizer.ggml.token_type", GgufValue::I32s(types));
    file
}

fn sentencepiece_gguf() -> (GgufWriter, Vec<Row>) {
    #[derive(Deserialize)]
    struct Vocabulary {
        tokens: Vec<String>,
        scores: Vec<f32>,
        types: Vec<i32>,
    }
    let family = Family::read("sentencepiece");
    let vocabulary: Vocabulary = serde_json::from_value(family.tokenizer).unwrap();
    let mut file = gguf(vocabulary.tokens, vocabulary.types);
    file.set("tokenizer.ggml.model", GgufValue::Str("llama".to_owned()));
    file.set("tokenizer.ggml.scores", GgufValue::F32s(vocabulary.scores));
    file.remove("tokenizer.ggml.merges");
    file.remove("tokenizer.ggml.pre");
    (file, family.rows)
}

fn open(file: &GgufWriter) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    file.write(&path).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn decode_one_by_one(tokenizer: &Arc<Tokenizer>, tokens: &[TokenId], skip_special: bool) -> String {
    let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), skip_special);
    let mut text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
    text += &detokenizer.finish();
    text
}

fn token_ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

#[track_caller]
fn check(name: &str, tokenizer: Tokenizer, rows: &[Row]) {
    let tokenizer = Arc::new(tokenizer);
    let strings: Vec<String> = read("strings");
    assert_eq!(strings.len(), rows.len());
    for (text, row) in strings.iter().zip(rows) {
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokens, token_ids(&row.ids), "{name}: {text:?}");
        let plain = row.plain_ids.as_ref().unwrap_or(&row.ids);
        assert_eq!(
            tokenizer.encode(text, false).unwrap(),
            token_ids(plain),
            "{name}, plain: {text:?}"
        );
        let decoded = row.decoded.as_ref().unwrap_or(text);
        assert_eq!(&tokenizer.decode(&tokens, false), decoded, "{name}: {text:?}");
        for skip_special in [false, true] {
            let whole = tokenizer.decode(&tokens, skip_special);
            assert_eq!(
                decode_one_by_one(&tokenizer, &tokens, skip_special),
                whole,
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn byte_level_vocabularies_in_gguf_files_give_the_tokens_of_hugging_face() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "default"] {
        let family = Family::read(name);
        check(name, open(&family.to_gguf(name)).tokenizer().unwrap(), &family.rows);
    }
}

#[test]
fn names_that_mean_the_same_give_the_same_tokens() {
    for (name, alias) in [
        ("llama-bpe", "llama-v3"),
        ("qwen2", "deepseek-r1-qwen"),
        ("gpt-2", "phi-2"),
        ("smollm", "starcoder"),
    ] {
        let family = Family::read(name);
        check(alias, open(&family.to_gguf(alias)).tokenizer().unwrap(), &family.rows);
    }
    let family = Family::read("default");
    let mut file = family.to_gguf("default");
    file.remove("tokenizer.ggml.pre");
    check("no name", open(&file).tokenizer().unwrap(), &family.rows);
}

#[test]
fn vocabularies_in_tokenizer_json_give_the_tokens_of_hugging_face() {
    for name in [
        "gpt-2",
        "gpt-2-prefix",
        "smollm",
        "llama-bpe",
        "qwen2",
        "qwen2-flags",
        "qwen35",
        "tekken",
        "llama-prepend",
        "llama-prepend-flags",
        "metaspace-first",
        "metaspace-always",
        "replace-only",
    ] {
        let family = Family::read(name);
        check(name, family.read_json(), &family.rows);
    }
}

#[test]
fn sentencepiece_vocabularies_in_gguf_files_give_the_tokens_of_sentencepiece() {
    let (file, rows) = sentencepiece_gguf();
    let tokenizer = Arc::new(open(&file).tokenizer().unwrap());
    let strings: Vec<String> = read("strings");
    for (text, row) in strings.iter().zip(&rows) {
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokens, token_ids(&row.ids), "{text:?}");
        let plain = token_ids(row.plain_ids.as_ref().unwrap_or(&row.ids));
        assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "{text:?}");
        // SentencePiece's decoder leaves control tokens out, and here there are none.
        let decoded = row.decoded.as_ref().unwrap_or(text);
        assert_eq!(&tokenizer.decode(&plain, false), decoded, "{text:?}");
        for tokens in [&plain, &tokens] {
            let whole = tokenizer.decode(tokens, true);
            assert_eq!(decode_one_by_one(&tokenizer, tokens, true), whole, "{text:?}");
        }
    }
}

#[test]
fn long_runs_take_seconds_in_every_family() {
    let (file, _) = sentencepiece_gguf();
    let mut tokenizers = vec![("sentencepiece", open(&file).tokenizer().unwrap())];
    for name in [
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "tekken",
        "llama-prepend",
        "metaspace-always",
    ] {
        tokenizers.push((name, Family::read(name).read_json()));
    }
    for (name, tokenizer) in tokenizers {
        for run in [" ", "\n", "a", "9", "漢", "=", " \n", "the ", "▁"] {
            let text = run.repeat(1_000_000 / run.len());
            let start = Instant::now();
            let tokens = tokenizer.encode(&text, false).unwrap();
            assert!(start.elapsed().as_secs() < 5, "{name}, {run:?}: {:?}", start.elapsed());
            assert!(!tokens.is_empty());
        }
    }
}

struct Tokenizers {
    /// Those that give every text back.
    exact: Vec<Arc<Tokenizer>>,
    others: Vec<Arc<Tokenizer>>,
}

static TOKENIZERS: LazyLock<Tokenizers> = LazyLock::new(|| {
    let read = |name: &&str| Arc::new(Family::read(name).read_json());
    let mut exact: Vec<_> = ["gpt-2", "llama-bpe", "tekken", "llama-prepend"]
        .iter()
        .map(read)
        .collect();
    exact.push(Arc::new(open(&sentencepiece_gguf().0).tokenizer().unwrap()));
    let others = ["qwen2-flags", "metaspace-first", "metaspace-always"]
        .iter()
        .map(read)
        .collect();
    Tokenizers { exact, others }
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_comes_back_as_it_was(text in any::<String>(), spaces in " {0,3}") {
        // What stands for a space comes back as one.
        let text = (spaces + &text).replace('▁', "");
        for tokenizer in &TOKENIZERS.exact {
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(&tokenizer.decode(&tokens, false), &text);
        }
    }

    #[test]
    fn tokens_that_come_one_by_one_give_the_text_of_all(tokens in prop::collection::vec(0..1500u32, 0..20)) {
        let tokens = token_ids(&tokens);
        for tokenizer in TOKENIZERS.exact.iter().chain(&TOKENIZERS.others) {
            for skip_special in [false, true] {
                let whole = tokenizer.decode(&tokens, skip_special);
                prop_assert_eq!(decode_one_by_one(tokenizer, &tokens, skip_special), whole);
            }
        }
    }
}
