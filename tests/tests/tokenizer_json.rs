//! Files named tokenizer.json that are unsound, not supported, or made to harm: each is an error that names it.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use kvasir_model::{TokenRoles, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

fn small() -> Value {
    json!({
        "added_tokens": [{ "id": 4, "content": "<s>", "special": true }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2, "Ġ": 3 }, "merges": [["a", "b"]] },
    })
}

static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| serde_json::to_vec(&small()).unwrap());

fn read(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json(bytes, &TokenRoles::default())
}

/// Reads a file and uses it; a panic is what the tests look for.
fn use_all(bytes: &[u8]) -> Result<(), TokenizerError> {
    let tokenizer = read(bytes)?;
    let tokens = tokenizer.encode("ab <s> \u{7}é🦀 12", true)?;
    tokenizer.decode(&tokens, false);
    Ok(())
}

#[test]
fn the_small_file_is_sound() {
    let tokenizer = read(&SMALL).unwrap();
    let tokens: Vec<u32> = tokenizer
        .encode("ab ba<s>", true)
        .unwrap()
        .iter()
        .map(|token| token.0)
        .collect();
    assert_eq!(tokens, [2, 3, 1, 0, 4]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (
            "/model/type",
            json!("Unigram"),
            "tokenizer model \"Unigram\" is not supported yet; supported: BPE",
        ),
        (
            "/model/type",
            json!("WordPiece"),
            "tokenizer model \"WordPiece\" is not supported yet",
        ),
        ("/model/type", Value::Null, ""),
        (
            "/normalizer",
            json!({ "type": "Lowercase" }),
            "normalizer {\"type\":\"Lowercase\"} is not supported yet",
        ),
        (
            "/normalizer",
            json!({ "type": "Prepend", "prepend": "▁" }),
            "normalizer",
        ),
        (
            "/pre_tokenizer",
            json!({ "type": "BertPreTokenizer" }),
            "pre_tokenizer {\"type\":\"BertPreTokenizer\"}",
        ),
        (
            "/decoder",
            json!({ "type": "WordPiece" }),
            "decoder {\"type\":\"WordPiece\"} is not supported yet; supported: ByteLevel",
        ),
        (
            "/pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": "(a+)+$" }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }] }),
            "the expressions of GPT-2, Llama 3, Qwen 2, Qwen 3.5 and Tekken",
        ),
        (
            "/model/vocab",
            json!([["a", -1.0], ["b", -2.0]]),
            "merge 0 has a part or a result that is not a token",
        ),
    ];
    for (pointer, value, message) in cases {
        let mut file = small();
        *file.pointer_mut(pointer).unwrap() = value;
        let found = use_all(&serde_json::to_vec(&file).unwrap());
        let found = found.map_or_else(|error| error.to_string(), |()| String::new());
        assert!(
            found.contains(message) && found.is_empty() == message.is_empty(),
            "{pointer}: {found}"
        );
    }
    for (key, value) in [
        ("dropout", json!(0.1)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
    ] {
        let mut file = small();
        file["model"][key] = value;
        let error = use_all(&serde_json::to_vec(&file).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{key} ")) && error.ends_with("supported: none"),
            "{error}"
        );
    }
}

#[test]
fn files_that_contradict_themselves_are_refused() {
    let with = |pointer: &str, value: Value| {
        let mut file = small();
        *file.pointer_mut(pointer).unwrap() = value;
        use_all(&serde_json::to_vec(&file).unwrap()).unwrap_err().to_string()
    };
    let error = with("/model/vocab", json!({ "a": 0, "b": 0, "ab": 1, "Ġ": 2 }));
    assert_eq!(error, "\"a\" and \"b\" are both token 0");
    let error = with("/added_tokens/0/id", json!(2));
    assert_eq!(error, "\"ab\" and \"<s>\" are both token 2");
    let error = with("/added_tokens/0/content", json!("ab"));
    assert_eq!(error, "tokens 2 and 4 are both \"ab\"");
    let error = with("/added_tokens/0/id", json!(4_000_000_000u32));
    assert!(
        error.starts_with("token 4000000000 is beyond 65541, the most that a vocabulary of 5 tokens"),
        "{error}"
    );
    let error = with("/model/merges", json!([["a", "b"], ["x", "b"]]));
    assert_eq!(error, "merge 1 has a part or a result that is not a token: \"x b\"");
    let error = with("/model/merges", json!(["ab"]));
    assert!(
        error.starts_with("merge 0 is not two tokens with a space between them"),
        "{error}"
    );
    let error = with("/model/merges", Value::Array(vec![json!(["a", "b"]); 81]));
    assert_eq!(error, "there are 81 merges, at most 80 are allowed for this vocabulary");
    let mut file = small();
    file["model"]["unk_token"] = json!("?");
    let error = use_all(&serde_json::to_vec(&file).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "the unknown token \"?\" is not in the vocabulary");
    let twice = String::from_utf8(SMALL.clone())
        .unwrap()
        .replacen("\"b\":1", "\"a\":1", 1);
    assert!(
        use_all(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("tokens 0 and 1 are both \"a\"")
    );
    assert_eq!(
        with("/model/vocab", json!({ "": 0 })),
        "merge 0 has a part or a result that is not a token: \"a b\""
    );
}

#[test]
fn json_nested_without_end_is_refused() {
    for (open, close) in [("[", "]"), ("{\"type\":\"Sequence\",\"pretokenizers\":[", "]}")] {
        let nested = open.repeat(100_000) + &close.repeat(100_000);
        let file = format!("{{\"pre_tokenizer\":{nested},\"model\":{{}}}}");
        let error = use_all(file.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("recursion limit exceeded"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_truncation_is_an_error(len in 0..SMALL.len()) {
        prop_assert!(use_all(&SMALL[..len]).is_err());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0..SMALL.len(), 1..=255u8), 1..4)) {
        let mut bytes = SMALL.clone();
        flips.into_iter().for_each(|(i, flip)| bytes[i] ^= flip);
        let _ = use_all(&bytes);
    }
}
