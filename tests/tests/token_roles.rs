//! Which tokens begin prompts and end answers, by what files say of them.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use kvasir_kv::TokenId;
use kvasir_model::{Checkpoint, ModelSpec, TokenRoles, TokenizerFiles};
use kvasir_tests::{
    gguf_writer::{GgufValue, GgufWriter},
    tiny_model::TinyModel,
};

const CONTROL: i32 = 3;
const TEXT: i32 = 1;

fn open(file: &GgufWriter) -> Result<ModelSpec, kvasir_model::CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    file.write(&path).unwrap();
    Ok(Checkpoint::open(&path)?.spec().clone())
}

/// A file whose first tokens are these, without keys that give them roles.
fn file(first: &[(&str, i32)]) -> GgufWriter {
    let mut file = TinyModel::default().gguf();
    let mut tokens: Vec<String> = (0..320).map(|i| format!("[{i}]")).collect();
    let mut types = vec![TEXT; 320];
    for (i, (text, kind)) in first.iter().enumerate() {
        tokens[i] = text.to_string();
        types[i] = *kind;
    }
    file.set("tokenizer.ggml.tokens", GgufValue::Strings(tokens));
    file.set("tokenizer.ggml.token_type", GgufValue::I32s(types));
    for key in ["bos_token_id", "eos_token_id", "add_bos_token"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    file
}

fn end_tokens(first: &[(&str, i32)]) -> Vec<u32> {
    let spec = open(&file(first)).unwrap();
    spec.end_tokens.iter().map(|token| token.0).collect()
}

#[test]
fn control_tokens_end_answers_by_what_they_say_and_text_never_does() {
    let texts = [
        "<|eot_id|>",
        "<|im_end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "</s>",
        "<|end|>",
    ];
    let first: Vec<_> = texts.iter().map(|text| (*text, CONTROL)).collect();
    assert_eq!(end_tokens(&first), [0, 1, 2, 3, 4, 5, 6]);
    for kind in [TEXT, 4, 5, 6] {
        let first: Vec<_> = texts.iter().map(|text| (*text, kind)).collect();
        assert_eq!(end_tokens(&first), [0; 0], "type {kind}");
    }
    assert_eq!(
        end_tokens(&[("<|im_start|>", CONTROL), ("<|eot_id|>!", CONTROL)]),
        [0; 0]
    );
}

#[test]
fn some_ends_are_none_in_the_company_of_others() {
    let parts = [("<|end|>", CONTROL), ("<|return|>", CONTROL), ("<|call|>", CONTROL)];
    assert_eq!(end_tokens(&parts), [1, 2]);
    assert_eq!(end_tokens(&parts[..2]), [0, 1]);
    assert_eq!(end_tokens(&[("</s>", CONTROL), ("<|tool_response>", CONTROL)]), [1]);
}

#[test]
fn every_key_that_names_an_end_counts() {
    for key in ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
        let mut file = file(&[]);
        file.set(&format!("tokenizer.ggml.{key}_token_id"), GgufValue::U32(7));
        assert_eq!(open(&file).unwrap().end_tokens, [TokenId(7)], "{key}");
        file.set(&format!("tokenizer.ggml.{key}_token_id"), GgufValue::U32(320));
        let error = open(&file).unwrap_err().to_string();
        assert!(
            error.contains("is 320, expected a token below the vocabulary's size 320"),
            "{error}"
        );
    }
}

#[test]
fn whether_prompts_begin_with_a_token_depends_on_the_vocabulary_unless_the_file_says() {
    for (model, pre, expected) in [
        ("gpt2", "smollm", false),
        ("gpt2", "qwen2", false),
        ("gpt2", "gpt-2", false),
        ("gpt2", "llama-bpe", true),
        ("gpt2", "tekken", true),
        ("llama", "default", true),
    ] {
        let mut file = file(&[("<unk>", 2), ("<s>", CONTROL), ("</s>", CONTROL)]);
        file.set("tokenizer.ggml.model", GgufValue::Str(model.to_owned()));
        file.set("tokenizer.ggml.pre", GgufValue::Str(pre.to_owned()));
        file.set("tokenizer.ggml.bos_token_id", GgufValue::U32(1));
        assert_eq!(open(&file).unwrap().add_bos, expected, "{model} {pre}");
        for told in [true, false] {
            file.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(told));
            assert_eq!(open(&file).unwrap().add_bos, told, "{model} {pre}");
        }
    }
}

#[test]
fn sentencepiece_has_numbers_of_its_own_where_the_file_has_none() {
    let mut named = file(&[("<unk>", 2), ("<s>", CONTROL), ("</s>", CONTROL)]);
    named.set("tokenizer.ggml.model", GgufValue::Str("llama".to_owned()));
    let spec = open(&named).unwrap();
    assert_eq!(
        (spec.bos_token, spec.eos_token, spec.add_bos),
        (Some(TokenId(1)), Some(TokenId(2)), true)
    );
    let mut unnamed = file(&[]);
    unnamed.set("tokenizer.ggml.model", GgufValue::Str("llama".to_owned()));
    let spec = open(&unnamed).unwrap();
    assert_eq!((spec.bos_token, spec.eos_token, spec.add_bos), (None, None, false));
}

fn folder() -> TokenizerFiles {
    let tokenizer = r#"{"added_tokens": [{"id": 5, "content": "<s>"}, {"id": 6, "content": "</s>"}],
        "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}]}}"#;
    TokenizerFiles {
        tokenizer: tokenizer.into(),
        tokenizer_config: Some(r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#.into()),
        config: Some(r#"{"bos_token_id": 1, "eos_token_id": 7}"#.into()),
        generation_config: Some(r#"{"eos_token_id": [9, 7, 8]}"#.into()),
        ..TokenizerFiles::default()
    }
}

#[test]
fn a_folder_names_its_ends_in_three_files() {
    let roles = TokenRoles::from_files(&folder(), 10).unwrap();
    assert_eq!((roles.bos_token, roles.eos_token), (Some(TokenId(5)), Some(TokenId(6))));
    assert_eq!(roles.end_tokens, [6, 7, 8, 9].map(TokenId));
    assert!(roles.add_bos && !roles.add_eos);
    let bare = TokenizerFiles {
        tokenizer: "{}".into(),
        config: Some(r#"{"bos_token_id": 1, "eos_token_id": null}"#.into()),
        ..TokenizerFiles::default()
    };
    let roles = TokenRoles::from_files(&bare, 10).unwrap();
    assert_eq!(
        (roles.bos_token, roles.end_tokens.as_slice(), roles.add_bos),
        (Some(TokenId(1)), &[][..], false)
    );
}

#[test]
fn a_folder_may_say_that_nothing_is_added() {
    let mut files = folder();
    files.tokenizer_config = Some(r#"{"add_bos_token": false, "bos_token": "<s>", "eos_token": null}"#.into());
    let roles = TokenRoles::from_files(&files, 10).unwrap();
    assert_eq!((roles.add_bos, roles.eos_token), (false, Some(TokenId(7))));
}

#[test]
fn tokens_that_a_model_does_not_have_are_refused_by_name() {
    for (config, message) in [
        (
            r#"{"eos_token_id": 10}"#,
            "eos_token_id in config.json is token 10, expected one below the vocabulary's size 10",
        ),
        (
            r#"{"eos_token_id": [1, "x"]}"#,
            "config.json cannot be read: eos_token_id is \"x\", expected a token or a list",
        ),
        (r#"{"bos_token_id": -1}"#, "bos_token_id is -1"),
        ("[", "config.json cannot be read: EOF"),
    ] {
        let files = TokenizerFiles {
            config: Some(config.into()),
            ..folder()
        };
        let error = TokenRoles::from_files(&files, 10).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn the_token_at_the_start_is_one_that_the_model_has() {
    let bare = TokenizerFiles {
        tokenizer: folder().tokenizer,
        ..TokenizerFiles::default()
    };
    assert_eq!(TokenRoles::from_files(&bare, 6).unwrap().bos_token, Some(TokenId(5)));
    let error = TokenRoles::from_files(&bare, 5).unwrap_err().to_string();
    assert_eq!(
        error,
        "the token at the start in tokenizer.json is token 5, expected one below the vocabulary's size 5"
    );
}
