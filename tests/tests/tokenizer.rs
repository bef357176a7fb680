//! The tokenizer of the default model against what others make of the same vocabulary.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, sync::Arc, time::Instant};

use kvasir_kv::TokenId;
use kvasir_model::{ChatMessage, Checkpoint, CheckpointError, IncrementalDetokenizer, Tokenizer, TokenizerError};
use kvasir_tests::{
    default_model,
    gguf_writer::GgufValue,
    tiny_model::{CHAT_TEMPLATE, TinyModel},
};
use proptest::prelude::*;
use serde::Deserialize;

fn file(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn default_tokenizer() -> Arc<Tokenizer> {
    Arc::new(Checkpoint::open(default_model()).unwrap().tokenizer().unwrap())
}

fn tiny_tokenizer(
    change: impl FnOnce(&mut kvasir_tests::gguf_writer::GgufWriter),
) -> Result<Tokenizer, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut model = TinyModel::default().gguf();
    change(&mut model);
    model.write(&path).unwrap();
    Checkpoint::open(&path).unwrap().tokenizer()
}

fn token_ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn decode_one_by_one(tokenizer: &Arc<Tokenizer>, tokens: &[TokenId]) -> String {
    let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), false);
    let mut text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
    text += &detokenizer.finish();
    text
}

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    prompt: String,
    prompt_ids: Vec<u32>,
}

#[test]
fn golden_prompts_have_the_tokens_that_llama_cpp_gives_them() {
    let tokenizer = default_tokenizer();
    let golden: Golden = serde_json::from_slice(&file("golden/smollm2-135m.json")).unwrap();
    assert!(!golden.prompts.is_empty());
    for prompt in golden.prompts {
        assert_eq!(
            tokenizer.encode(&prompt.prompt, true).unwrap(),
            token_ids(&prompt.prompt_ids),
            "{}",
            prompt.prompt
        );
    }
}

#[derive(Deserialize)]
struct ReferenceString {
    text: String,
    ids: Vec<u32>,
    /// Without special tokens; absent if the same.
    plain_ids: Option<Vec<u32>>,
    /// Absent if the text itself.
    decoded: Option<String>,
}

#[test]
fn strings_of_all_kinds_have_the_tokens_that_hugging_face_gives_them() {
    let tokenizer = default_tokenizer();
    let strings: Vec<ReferenceString> = serde_json::from_slice(&file("reference/tokenizer_strings.json")).unwrap();
    assert_eq!(strings.len(), 2000);
    for string in strings {
        let ReferenceString {
            text,
            ids,
            plain_ids,
            decoded,
        } = string;
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokens, token_ids(&ids), "{text:?}");
        assert_eq!(
            tokenizer.encode(&text, false).unwrap(),
            token_ids(&plain_ids.unwrap_or(ids)),
            "{text:?}"
        );
        let decoded = decoded.unwrap_or_else(|| text.clone());
        assert_eq!(tokenizer.decode(&tokens, false), decoded);
        assert_eq!(decode_one_by_one(&tokenizer, &tokens), decoded);
    }
}

#[test]
fn the_tokenizer_of_49152_tokens_is_built_in_300_ms() {
    let checkpoint = Checkpoint::open(default_model()).unwrap();
    let best = (0..3).map(|_| {
        let start = Instant::now();
        checkpoint.tokenizer().unwrap();
        start.elapsed()
    });
    let best = best.min().unwrap();
    assert!(best.as_millis() < 300, "{best:?}");
}

#[test]
fn long_runs_of_one_character_are_encoded_in_seconds() {
    let tokenizer = default_tokenizer();
    for text in [" ", "a", "\n", "9", "漢", "=", " \u{85}", "a ", "  a"] {
        let text = text.repeat(2_000_000 / text.len());
        let start = Instant::now();
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert!(start.elapsed().as_secs() < 5, "{:?}: {:?}", &text[..4], start.elapsed());
        assert_eq!(tokenizer.decode(&tokens, false), text);
    }
}

#[test]
fn words_are_the_same_however_long_a_run_is() {
    let tokenizer = default_tokenizer();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    for len in [1000, 10_000] {
        for space in [" ", "\n", "\u{3000}"] {
            let (run, shorter) = (space.repeat(len), space.repeat(len - 1));
            for tail in ["x", "=", "'s", "é"] {
                let expected = [encode("y"), encode(&shorter), encode(&format!("{space}{tail} z"))].concat();
                assert_eq!(
                    encode(&format!("y{run}{tail} z")),
                    expected,
                    "{len} x {space:?}, {tail:?}"
                );
            }
            let expected = [encode(&run), encode("9x")].concat();
            assert_eq!(encode(&format!("{run}9x")), expected, "{len} x {space:?}");
        }
        for (run, tail) in [("q", " x"), ("=", "x"), ("é", "'"), ("'", " x"), ("ab", "\n")] {
            let run = run.repeat(len);
            assert_eq!(
                encode(&format!("{run}{tail}")),
                [encode(&run), encode(tail)].concat(),
                "{len} x {run:?}"
            );
        }
    }
}

#[test]
fn a_run_beyond_what_the_regular_expression_can_do_is_split_like_any_other() {
    let tokenizer = default_tokenizer();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    let len = 1_200_000;
    let expected = [encode(&"\n".repeat(len - 1)), encode("\nx y")].concat();
    assert_eq!(encode(&("\n".repeat(len) + "x y")), expected);
}

#[test]
fn control_tokens_can_be_left_out_of_text() {
    let tokenizer = default_tokenizer();
    let tokens = tokenizer.encode("<|im_start|>user\nhi<|im_end|>", true).unwrap();
    assert_eq!(tokens[0], TokenId(1));
    assert_eq!(tokenizer.decode(&tokens, true), "user\nhi");
    assert_eq!(tokenizer.eos_ids(), [TokenId(0), TokenId(2), TokenId(4)]);
    assert!(tokenizer.is_control(TokenId(1)) && !tokenizer.is_control(TokenId(504)));
}

#[test]
fn tokens_outside_the_vocabulary_stand_for_nothing() {
    let tokenizer = Arc::new(tiny_tokenizer(|_| {}).unwrap());
    assert_eq!(tokenizer.vocab_size(), 320);
    assert_eq!(tokenizer.token_bytes(TokenId(320)), None);
    assert_eq!(tokenizer.token_bytes(TokenId(3)), Some(&[0][..]));
    assert_eq!(decode_one_by_one(&tokenizer, &token_ids(&[320, u32::MAX])), "");
}

#[test]
fn user_defined_tokens_are_found_in_any_text() {
    let user_defined = |model: &mut kvasir_tests::gguf_writer::GgufWriter| {
        let mut types = vec![3; 3];
        types.resize(319, 1);
        types.push(4);
        model.set("tokenizer.ggml.token_type", GgufValue::I32s(types));
    };
    let tokenizer = tiny_tokenizer(user_defined).unwrap();
    let text = String::from_utf8(tokenizer.token_bytes(TokenId(319)).unwrap().to_vec()).unwrap();
    for parse_special in [false, true] {
        let tokens = tokenizer.encode(&format!("<{text}>"), parse_special).unwrap();
        assert_eq!(
            tokens,
            [TokenId(3 + u32::from(b'<')), TokenId(319), TokenId(3 + u32::from(b'>'))]
        );
    }
}

#[test]
fn tokenizers_that_are_not_supported_are_refused_by_name() {
    let string = |text: &str| GgufValue::Str(text.to_owned());
    let strings = |texts: &[&str]| GgufValue::Strings(texts.iter().map(|text| text.to_string()).collect());
    let cases = [
        (
            "tokenizer.ggml.pre",
            string("viking"),
            "pre-tokenizer \"viking\" is not supported yet; supported: default, gpt-2, ",
        ),
        (
            "tokenizer.ggml.model",
            string("bert"),
            "tokenizer model \"bert\" is not supported yet; supported: gpt2, llama",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&["a b", "ab"]),
            "merge 1 is not two tokens with a space between them: \"ab\"",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&["a zz"]),
            "merge 0 has a part or a result that is not a token: \"a zz\"",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&["Ġthe and"]),
            "merge 0 has a part or a result that is not a token: \"Ġthe and\"",
        ),
        (
            "tokenizer.ggml.merges",
            strings(&vec!["t h"; 6000]),
            "there are 6000 merges, at most 5120 are allowed",
        ),
        (
            "tokenizer.ggml.token_type",
            GgufValue::I32s(vec![1; 319]),
            "319 items, expected one for each of 320 tokens",
        ),
        (
            "tokenizer.ggml.tokens",
            strings(&vec!["x"; 320]),
            "tokens 0 and 1 are both \"x\"",
        ),
        (
            "tokenizer.ggml.merges",
            GgufValue::U32(1),
            "is another integer, expected an array of strings",
        ),
    ];
    for (key, value, message) in cases {
        let error = tiny_tokenizer(|model| model.set(key, value)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let error = tiny_tokenizer(|model| model.remove("tokenizer.ggml.model")).unwrap_err();
    assert_eq!(error.to_string(), "metadata \"tokenizer.ggml.model\" is missing");
    assert!(matches!(
        tiny_tokenizer(|model| model.set("tokenizer.ggml.pre", string("x"))),
        Err(CheckpointError::Tokenizer(TokenizerError::PreTokenizer { .. }))
    ));
}

#[test]
fn the_default_models_chat_template_renders_as_it_was_trained() {
    let template = Checkpoint::open(default_model()).unwrap().chat_template().unwrap();
    let prompt = template.render(&[ChatMessage::new("user", "Hi")], true).unwrap();
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
        <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt, expected);
}

#[test]
fn a_model_without_a_chat_template_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut model = TinyModel::default().gguf();
    model.remove("tokenizer.chat_template");
    model.write(&path).unwrap();
    let error = Checkpoint::open(&path)
        .unwrap()
        .chat_template()
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("the model file has no chat template"), "{error}");
    model.set("tokenizer.chat_template", GgufValue::Str(CHAT_TEMPLATE.to_owned()));
    model.write(&path).unwrap();
    let template = Checkpoint::open(&path).unwrap().chat_template().unwrap();
    assert_eq!(
        template.render(&[ChatMessage::new("user", "x")], false).unwrap(),
        "<|im_start|>user\nx<|im_end|>\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_survives_a_vocabulary_with_all_bytes(texts in prop::collection::vec(any::<String>(), 20)) {
        let tokenizer = Arc::new(tiny_tokenizer(|_| {}).unwrap());
        for text in texts {
            let tokens = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(&tokenizer.decode(&tokens, false), &text);
            prop_assert_eq!(&decode_one_by_one(&tokenizer, &tokens), &text);
        }
    }
}
