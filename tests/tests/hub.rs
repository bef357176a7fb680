//! `--model ORGANIZATION/NAME`: repositories are fetched once, found again without a network, and refused with a reason.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
};

use kvasir_tests::{
    cluster_sandbox::kvasir_binary,
    hub_server::{Hub, HubServer},
    reference_models,
};
use tempfile::TempDir;

/// A repository of a folder's files.
fn folder(name: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(reference_models::path(name))
        .unwrap()
        .map(Result::unwrap);
    files
        .map(|file| {
            (
                file.file_name().into_string().unwrap(),
                std::fs::read(file.path()).unwrap(),
            )
        })
        .collect()
}

fn gguf(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let read = |name: &&str| ((*name).to_owned(), std::fs::read(reference_models::path(name)).unwrap());
    let mut files: BTreeMap<_, _> = names.iter().map(read).collect();
    files.insert("README.md".to_owned(), b"a card".to_vec());
    files
}

fn hub() -> Hub {
    let repositories = [
        ("org/sharded", folder("llama-bf16-sharded")),
        ("org/one-GGUF", gguf(&["qwen3-Q4_0.gguf"])),
        ("org/two-GGUF", gguf(&["qwen2-Q4_0.gguf", "qwen2-Q4_K.gguf"])),
        ("org/empty", gguf(&[])),
    ];
    Hub {
        repositories: repositories.map(|(name, files)| (name.to_owned(), files)).into(),
        token: None,
    }
}

/// A user's machine: a cache, and where the hub is.
struct Machine {
    cache: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Machine {
    fn new(endpoint: &str) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let environment = vec![
            ("HF_HOME", cache.path().display().to_string()),
            ("HF_ENDPOINT", endpoint.to_owned()),
        ];
        Self { cache, environment }
    }

    fn plan(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(kvasir_binary());
        command
            .args(["plan", "--workers", "2", "--json", "--model"])
            .args(arguments);
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "KVASIR_MODEL"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned()).output().unwrap()
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.plan(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn assert_planned(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["ranks"].as_array().unwrap().len(), 2, "{plan:#}");
}

#[test]
fn a_repository_is_fetched_once_and_serves_without_the_hub() {
    for model in ["org/sharded", "org/one-GGUF", "org/two-GGUF/qwen2-Q4_K.gguf"] {
        let server = HubServer::start(hub());
        let mut machine = Machine::new(server.endpoint());
        assert_planned(&machine.plan(&[model]));
        let files = |requests: Vec<String>| requests.iter().filter(|path| path.contains("/resolve/")).count();
        let fetched = files(server.requests());
        assert!(fetched > 0, "{model}");

        assert_planned(&machine.plan(&[model]));
        assert_eq!(files(server.requests()), fetched, "{model} was fetched again");

        drop(server);
        let output = machine.plan(&[model]);
        assert_planned(&output);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let asks = model != "org/two-GGUF/qwen2-Q4_K.gguf";
        assert_eq!(said.contains("the hub cannot be reached"), asks, "{said}");
        machine.environment.push(("HF_HUB_OFFLINE", "1".to_owned()));
        assert_planned(&machine.plan(&[model]));
    }
}

#[test]
fn what_cannot_be_fetched_is_refused_with_a_reason() {
    let server = HubServer::start(hub());
    let mut machine = Machine::new(server.endpoint());
    for (arguments, reason) in [
        (
            &["org/nothing"][..],
            "org/nothing is no path here, and the hub says 404",
        ),
        (
            &["org/sharded", "--revision", "v9"],
            "no such repository, revision (v9) or file",
        ),
        (
            &["org/one-GGUF/other.gguf"],
            "org/one-GGUF/other.gguf is no path here, and the hub says 404",
        ),
        (
            &["org/two-GGUF"],
            "has several GGUF files; name one, e.g. org/two-GGUF/qwen2-Q4_0.gguf",
        ),
        (
            &["org/empty"],
            "org/empty has neither a GGUF file nor config.json with safetensors files",
        ),
        (
            &["missing/model.gguf"],
            "missing/model.gguf: cannot open it: No such file",
        ),
    ] {
        let refusal = machine.refusal(arguments);
        assert!(refusal.contains(reason), "{arguments:?}: {refusal}");
    }
    drop(server);
    let refusal = machine.refusal(&["org/sharded"]);
    assert!(refusal.contains("nor in the cache at"), "{refusal}");
    assert!(refusal.contains("the hub cannot be reached"), "{refusal}");
    machine.environment.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let refusal = machine.refusal(&["org/sharded"]);
    assert!(refusal.contains("HF_HUB_OFFLINE forbids to fetch it"), "{refusal}");
}

#[test]
fn a_private_repository_wants_a_token() {
    let server = HubServer::start(Hub {
        token: Some("secret".to_owned()),
        ..hub()
    });
    let mut machine = Machine::new(server.endpoint());
    let refusal = machine.refusal(&["org/one-GGUF"]);
    assert!(
        refusal.contains("the hub says 401") && refusal.contains("HF_TOKEN"),
        "{refusal}"
    );
    machine.environment.push(("HF_TOKEN", "secret".to_owned()));
    assert_planned(&machine.plan(&["org/one-GGUF"]));

    let other = Machine::new(server.endpoint());
    std::fs::write(other.cache.path().join("token"), "secret\n").unwrap();
    assert_planned(&other.plan(&["org/one-GGUF"]));
}

#[test]
fn an_index_that_leaves_the_repository_is_refused() {
    let mut hostile = hub();
    let files = hostile.repositories.get_mut("org/sharded").unwrap();
    let index = r#"{"weight_map": {"x": "../../../../evil"}}"#;
    files.insert("model.safetensors.index.json".to_owned(), index.as_bytes().to_vec());
    let server = HubServer::start(hostile);
    let machine = Machine::new(server.endpoint());
    let refusal = machine.refusal(&["org/sharded"]);
    assert!(
        refusal.contains("\"../../../../evil\", which is not in the repository"),
        "{refusal}"
    );
    assert!(!Path::new("evil").exists());
}
