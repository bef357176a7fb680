//! Other checkpoints than the default one through real processes: a safetensors folder, q8_0 cells, weights quantized at load.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use kvasir_kv::TokenId;
use kvasir_model::Checkpoint;
use kvasir_proto::v1::{self, generate_request::Prompt};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, kvasir, request_of},
    parity, reference_models,
    tiny_model::TinyModel,
};
use serde_json::Value;
use tempfile::TempDir;

/// Rows of the reference models' embeddings.
const VOCAB: usize = 264;

/// The folder of a reference model with the tokenizer that its vocabulary has room for: bytes and the first merges.
fn folder_with_tokenizer(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(reference_models::path(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/tokenizer_families");
    let family: Value = serde_json::from_slice(&fs::read(families.join("gpt-2.json")).unwrap()).unwrap();
    let mut tokenizer = family["tokenizer"].clone();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64() < Some(VOCAB as u64));
    let merges = VOCAB - 256 - tokenizer["added_tokens"].as_array().unwrap().len();
    tokenizer["model"]["merges"].as_array_mut().unwrap().truncate(merges);
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = r#"{"bos_token": null, "eos_token": "<|im_end|>", "add_bos_token": false}"#;
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

/// Asks the questions of a digest file one after the other, and compares.
async fn check(sandbox: &ClusterSandbox, name: &str, vocab_size: u32) {
    for (index, generation) in parity::generations(vocab_size).iter().enumerate() {
        let answer = sandbox.generate(request_of(generation)).await.unwrap();
        let expected = &parity::read_digests()[name][index];
        assert_eq!(
            &parity::digest(&answer.to_parity()),
            expected,
            "{name}, question {index}"
        );
    }
}

#[tokio::test]
async fn a_folder_is_served_with_the_bits_of_its_digests_and_its_own_tokenizer() {
    let folder = folder_with_tokenizer("qwen3-bf16");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let end = checkpoint.spec().eos_token.unwrap();
    assert_eq!(end, TokenId(2));
    for (workers, flags) in [(2, &[][..]), (3, &["--transport", "tcp"])] {
        let sandbox = ClusterSandbox::start(folder.path(), workers, flags);
        check(&sandbox, "reference/qwen3-bf16", VOCAB as u32).await;

        let mut request = v1::GenerateRequest {
            prompt: Some(Prompt::Text("<|im_start|>say the thing".to_owned())),
            max_tokens: Some(4),
            ignore_eos: true,
            ..v1::GenerateRequest::default()
        };
        let said = sandbox.generate(request.clone()).await.unwrap();
        let tokens = checkpoint
            .tokenizer()
            .unwrap()
            .encode("<|im_start|>say the thing", true)
            .unwrap();
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        assert_eq!(said.descriptor.prompt_token_ids, ids);
        assert_eq!(ids[0], 1);

        let message = v1::ChatMessage {
            role: "user".to_owned(),
            content: "hi".to_owned(),
            ..Default::default()
        };
        request.prompt = Some(Prompt::Chat(v1::Chat {
            messages: vec![message],
            ..Default::default()
        }));
        let chat = sandbox.generate(request).await.unwrap();
        let rendered = "<|im_start|>user\nhi<|im_end|>\n";
        let tokens = checkpoint.tokenizer().unwrap().encode(rendered, true).unwrap();
        assert_eq!(chat.descriptor.prompt_token_ids.len(), tokens.len());
        assert_eq!(
            sandbox.status()["groups"][0]["ranks"].as_array().unwrap().len(),
            workers as usize
        );
    }
}

#[tokio::test]
async fn q8_0_cells_and_weights_have_the_bits_of_their_digests() {
    let model = kvasir_tests::default_model();
    for (workers, flags, name) in [
        (2, ["--kv-dtype", "q8_0"], "q8_0 cells of smollm2-135m"),
        (3, ["--weights-dtype", "q8_0"], "q8_0 weights of smollm2-135m"),
    ] {
        let sandbox = ClusterSandbox::start(&model, workers, &flags);
        check(&sandbox, name, 49_152).await;
    }
}

#[test]
fn heads_that_q8_0_cells_cannot_hold_are_refused_with_what_would_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("narrow.gguf");
    TinyModel::with_heads(4, 2, 16).write(&path).unwrap();
    for command in ["plan", "up", "perplexity"] {
        let mut args = vec![command, "--model", path.to_str().unwrap(), "--kv-dtype", "q8_0"];
        if command == "perplexity" {
            args.extend(["--file", concat!(env!("CARGO_MANIFEST_DIR"), "/../LICENSE")]);
        }
        let output = kvasir(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        let refusal = "KV dtype q8_0 stores 32 dimensions together, this model's heads have 16: use f16 or f32";
        assert!(stderr.contains(refusal), "{command}: {stderr}");
    }
}
