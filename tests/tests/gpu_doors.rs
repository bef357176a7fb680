//! The doors to GPUs in a build that has none: each says so at once, in one line, with what would work.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{cluster_sandbox::kvasir, reference_models};

/// A port of its own: another cluster may have the usual one.
const ANYWHERE: &str = "127.0.0.1:0";

/// What a command says when it fails for what was asked, not for how.
fn failure(arguments: &[&str]) -> String {
    let model = reference_models::path("llama-F16.gguf");
    let output = kvasir([arguments, &["--model", model.to_str().unwrap()]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(
        said.starts_with("error: ") && said.lines().count() == 1,
        "{arguments:?}: {said}"
    );
    said
}

#[test]
fn commands_that_compute_say_that_this_build_has_no_cuda() {
    let text = reference_models::path("../../digests/parity.json");
    for arguments in [
        vec!["up", "--grpc", ANYWHERE, "--device", "cuda:0"],
        vec!["worker", "--coordinator", "http://127.0.0.1:1", "--backend", "cuda"],
        vec![
            "up",
            "--grpc",
            ANYWHERE,
            "--backend",
            "candle",
            "--device",
            "cuda:1",
            "--gpu-mode",
            "fast",
        ],
        vec![
            "perplexity",
            "--context",
            "64",
            "--file",
            text.to_str().unwrap(),
            "--device",
            "cuda:0",
        ],
    ] {
        let said = failure(&arguments);
        assert!(
            said.contains("built without CUDA") && said.contains("cargo xtask gpu"),
            "{said}"
        );
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused_by_every_command() {
    for command in [
        vec!["up", "--grpc", ANYWHERE],
        vec!["coordinator"],
        vec!["worker", "--coordinator", "http://127.0.0.1:1"],
    ] {
        let said = failure(&[command.as_slice(), &["--backend", "canonical", "--device", "cuda:0"]].concat());
        assert!(said.contains("--backend cuda"), "{said}");
    }
}
