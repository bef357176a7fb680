//! A config.json that cannot be, or says what is not computed: each is an error that names the key and what would work.

use kvasir_tests::model_folder::{CONFIG, ModelFolder, WHOLE, assert_refused};
use serde_json::{Value, json};

/// Key, value, message.
type BadValue = (&'static str, Value, &'static str);

#[track_caller]
fn assert_values_refused(model: &str, cases: impl IntoIterator<Item = BadValue>) {
    for (key, value, message) in cases {
        assert_refused(model, |folder| folder.configure(key, value), message);
    }
}

#[test]
fn models_that_are_of_another_kind_are_refused() {
    assert_values_refused(
        WHOLE,
        [
            (
                "model_type",
                json!("gpt_bigcode"),
                "architecture \"gpt_bigcode\" is not supported yet; supported: llama, mistral, qwen2, qwen3",
            ),
            ("model_type", Value::Null, "metadata \"model_type\" is missing"),
            (
                "model_type",
                json!(3),
                "metadata \"model_type\" is 3, expected a string",
            ),
            (
                "model_type",
                json!("qwen3"),
                "tensor \"model.layers.0.self_attn.q_norm.weight\" is missing",
            ),
            (
                "hidden_act",
                json!("gelu"),
                "metadata \"hidden_act\" is \"gelu\": this activation is not supported yet; supported: silu",
            ),
            (
                "quantization_config",
                json!({ "quant_method": "gptq", "bits": 4 }),
                "metadata \"quantization_config.quant_method\" is \"gptq\": this quantization is not supported yet; \
                 supported: f32, f16 and bf16 tensors, or a GGUF file",
            ),
            (
                "quantization_config",
                json!({ "quant_method": "awq" }),
                "is \"awq\": this quantization is not supported yet",
            ),
            ("quantization_config", json!({}), "is \"unknown\": this quantization"),
            ("quantization_config", json!("awq"), "is \"awq\", expected an object"),
        ],
    );
}

#[test]
fn sizes_that_cannot_be_are_refused_by_key() {
    assert_values_refused(
        WHOLE,
        [
            (
                "num_attention_heads",
                json!(0),
                "metadata \"num_attention_heads\" is 0, expected at least 1",
            ),
            (
                "num_key_value_heads",
                json!(0),
                "a head count is zero: 4 query heads, 0 KV heads",
            ),
            (
                "num_key_value_heads",
                json!(3),
                "4 query heads do not divide among 3 KV heads",
            ),
            (
                "num_attention_heads",
                json!(1 << 30),
                "expected heads of 32 columns in less than 2^32 columns",
            ),
            (
                "num_attention_heads",
                json!(-4),
                "metadata \"num_attention_heads\" is -4, expected an integer from 0 to 2^32 - 1",
            ),
            ("num_attention_heads", json!(4.0), "is 4.0, expected an integer"),
            ("num_attention_heads", json!("4"), "is \"4\", expected an integer"),
            (
                "num_attention_heads",
                json!(1u64 << 33),
                "is 8589934592, expected an integer",
            ),
            (
                "num_attention_heads",
                Value::Null,
                "metadata \"num_attention_heads\" is missing",
            ),
            (
                "num_hidden_layers",
                json!(0),
                "metadata \"num_hidden_layers\" is 0, expected at least 1",
            ),
            (
                "num_hidden_layers",
                json!(1),
                "tensor \"model.layers.1.input_layernorm.weight\" is not part of",
            ),
            ("hidden_size", json!(65), "is 65, expected a multiple of 32"),
            (
                "hidden_size",
                json!(96),
                "tensor \"model.embed_tokens.weight\" is 264 x 64 (rows x columns), expected 264 x 96",
            ),
            ("intermediate_size", json!(48), "is 48, expected a multiple of 32"),
            (
                "head_dim",
                json!(24),
                "heads of the model: head_dim 24 is not a multiple of 16",
            ),
            (
                "head_dim",
                json!(0),
                "a head count is zero: 4 query heads, 2 KV heads, head_dim 0",
            ),
            (
                "max_position_embeddings",
                json!(1 << 30),
                "is 1073741824, expected at most 16777216",
            ),
            (
                "vocab_size",
                json!(265),
                "metadata \"vocab_size\" is 265, expected the 264 rows of the token embedding",
            ),
            ("tie_word_embeddings", json!("no"), "is \"no\", expected true or false"),
            (
                "sliding_window",
                json!(-1),
                "metadata \"sliding_window\" is -1, expected an integer",
            ),
            (
                "rms_norm_eps",
                json!(0),
                "metadata \"rms_norm_eps\" is 0, expected a finite number above 0",
            ),
            ("rms_norm_eps", json!(-1e-5), "expected a finite number above 0"),
            // Infinite as a float.
            ("rms_norm_eps", json!(1e300), "is inf, expected a finite number above 0"),
            // Zero as a float.
            ("rms_norm_eps", json!(1e-300), "is 0, expected a finite number above 0"),
        ],
    );
}

#[test]
fn rotations_that_are_not_computed_are_refused_by_key() {
    let scaled = |name: &str, factor: Value| json!({ "rope_type": name, "factor": factor });
    let llama3 = |key: &str, value: Value| {
        let mut part = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 });
        part[key] = value;
        part
    };
    let cases = |key: &'static str| -> Vec<BadValue> {
        vec![
            (
                key,
                scaled("yarn", json!(4.0)),
                "\"yarn\": this rope scaling is not supported yet",
            ),
            (key, scaled("dynamic", json!(4.0)), "\"dynamic\": this rope scaling"),
            (
                key,
                scaled("longrope", json!(4.0)),
                "supported: default, linear, llama3",
            ),
            (key, json!({ "type": "su" }), ".type\" is \"su\": this rope scaling"),
            (
                key,
                scaled("linear", json!(0)),
                ".factor\" is 0, expected a finite number above 0",
            ),
            (
                key,
                scaled("linear", json!(-2)),
                ".factor\" is -2, expected a finite number",
            ),
            (
                key,
                scaled("linear", json!("NaN")),
                ".factor\" is \"NaN\", expected a number",
            ),
            (key, scaled("linear", Value::Null), ".factor\" is missing"),
            (
                key,
                scaled("linear", json!(1e300)),
                ".factor\" is inf, expected a finite number",
            ),
            (key, json!({ "rope_type": 3 }), ".rope_type\" is 3, expected a string"),
            (key, json!([]), "is [], expected an object"),
            (
                key,
                json!({ "rope_theta": 0 }),
                ".rope_theta\" is 0, expected a finite number above 0",
            ),
            (
                key,
                json!({ "partial_rotary_factor": 0.25 }),
                "expected a multiple of 16",
            ),
            (
                key,
                json!({ "partial_rotary_factor": 2 }),
                "up to the head's dimension 32",
            ),
            (
                key,
                json!({ "partial_rotary_factor": 1e30 }),
                "up to the head's dimension 32",
            ),
            (key, llama3("factor", json!(0)), ".factor\" is 0, expected"),
            (
                key,
                llama3("low_freq_factor", Value::Null),
                ".low_freq_factor\" is missing",
            ),
            (
                key,
                llama3("high_freq_factor", json!(-1)),
                ".high_freq_factor\" is -1, expected",
            ),
            (
                key,
                llama3("original_max_position_embeddings", json!(0)),
                ".original_max_position_embeddings\" is 0, expected",
            ),
        ]
    };
    assert_values_refused(WHOLE, cases("rope_parameters"));
    for (key, value, message) in cases("rope_scaling") {
        let older = |folder: &mut ModelFolder| {
            folder.configure("rope_parameters", Value::Null);
            folder.configure(key, value);
        };
        assert_refused(WHOLE, older, message);
    }
}

#[test]
fn texts_that_are_no_json_are_refused_by_file() {
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{",
        b"{\"a\": 1e999}",
        &[b'['; 4096],
    ] {
        let message = "config.json is not the JSON that it should be: ";
        assert_refused(WHOLE, |folder| folder.put(CONFIG, bytes), message);
    }
    let twice = r#"{"model_type": "llama", "model_type": "qwen9"}"#;
    assert_refused(
        WHOLE,
        |folder| folder.put(CONFIG, twice),
        "architecture \"qwen9\" is not supported yet",
    );
}
