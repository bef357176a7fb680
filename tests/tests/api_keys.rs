//! API keys: who asks is known by a key, may do what the key is for, and no more of it than its limits say.

#![allow(clippy::unwrap_used)]

use std::{io::Write, path::PathBuf};

use kvasir_proto::v1::{
    self, admin_client::AdminClient, generate_request::Prompt, generate_response::Event,
    inference_client::InferenceClient,
};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, kvasir},
    tiny_model::TinyModel,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A tiny model and a file of keys.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        TinyModel::default().write(folder.path().join("tiny.gguf")).unwrap();
        Self { folder }
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn file(&self) -> String {
        self.folder.path().join("keys.jsonl").to_str().unwrap().to_owned()
    }

    /// Makes a key, which the file has from then on.
    fn key(&self, name: &str, flags: &[&str]) -> String {
        let output = kvasir([&["key", name, "--add-to", &self.file(), "--json"], flags].concat());
        assert!(output.status.success(), "{output:?}");
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        made["key"].as_str().unwrap().to_owned()
    }

    fn start(&self, admin_key: &str) -> ClusterSandbox {
        let mut sandbox = ClusterSandbox::start(&self.model(), 1, &["--api-keys", &self.file()]);
        sandbox.show_key(admin_key);
        sandbox
    }
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn with_key<T>(message: T, key: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(key) = key {
        let value = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

fn question(max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds { ids: vec![5, 6, 7] })),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..Default::default()
    }
}

async fn ask(
    client: &InferenceClient<tonic::transport::Channel>,
    request: v1::GenerateRequest,
    key: Option<&str>,
) -> Result<v1::ResumeDescriptor, Status> {
    let mut stream = client.clone().generate(with_key(request, key)).await?.into_inner();
    let mut descriptor = None;
    while let Some(response) = stream.message().await? {
        if let Some(Event::Started(started)) = response.event {
            descriptor = started.descriptor;
        }
    }
    Ok(descriptor.unwrap())
}

#[tokio::test]
async fn a_missing_a_wrong_and_a_plain_key_open_no_more_than_they_should() {
    let bench = Bench::new();
    let (ada, ops) = (bench.key("ada", &[]), bench.key("ops", &["--admin"]));
    let sandbox = bench.start(&ops);
    let client = sandbox.inference().await;

    assert!(ask(&client, question(2), Some(&ada)).await.is_ok());
    let missing = ask(&client, question(2), None).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unauthenticated);
    assert_eq!(missing.metadata().get("kvasir-error").unwrap(), "unauthenticated");
    let wrong = ask(&client, question(2), Some("kvasir-00")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);

    let mut admin = AdminClient::new(sandbox.channel().await);
    let by_ada = admin.status(with_key(v1::StatusRequest {}, Some(&ada))).await;
    assert_eq!(by_ada.unwrap_err().code(), Code::PermissionDenied);
    let by_nobody = admin.status(v1::StatusRequest {}).await;
    assert_eq!(by_nobody.unwrap_err().code(), Code::Unauthenticated);
    let by_ops = admin.status(with_key(v1::StatusRequest {}, Some(&ops))).await;
    assert!(by_ops.is_ok());
    let mut health = HealthClient::new(sandbox.channel().await);
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());

    let status = sandbox.status();
    for (counter, expected) in [
        ("refused_missing_key", 2),
        ("refused_wrong_key", 1),
        ("refused_not_allowed", 1),
    ] {
        assert_eq!(count(&status, counter), expected, "{counter}");
        assert!(sandbox.log().contains(&format!("reason=\"{counter}\"")), "{counter}");
    }
    for secret in [&ada, &ops, "kvasir-00"] {
        assert!(!sandbox.log().contains(secret), "a key is in the log");
    }
}

#[tokio::test]
async fn who_asks_is_the_tenant_and_nobody_resumes_or_aborts_what_another_asked() {
    let bench = Bench::new();
    let (ada, bob) = (bench.key("ada", &[]), bench.key("bob", &[]));
    let sandbox = bench.start(&bench.key("ops", &["--admin"]));
    let client = sandbox.inference().await;

    let descriptor = ask(&client, question(2), Some(&ada)).await.unwrap();
    assert_eq!(descriptor.tenant, "ada");
    let as_team = v1::GenerateRequest {
        tenant: "bob".to_owned(),
        ..question(2)
    };
    let of_team = ask(&client, as_team, Some(&ada)).await.unwrap();
    assert_eq!(of_team.tenant, "ada/bob");

    let resume = |descriptor: &v1::ResumeDescriptor| v1::GenerateRequest {
        prompt: Some(Prompt::Resume(v1::Resume {
            descriptor: Some(descriptor.clone()),
            ..Default::default()
        })),
        ..Default::default()
    };
    let stolen = ask(&client, resume(&descriptor), Some(&bob)).await.unwrap_err();
    assert_eq!(stolen.code(), Code::PermissionDenied, "{stolen}");
    assert!(ask(&client, resume(&descriptor), Some(&ada)).await.is_ok());

    // Both call their request the same, and each has one.
    let named = v1::GenerateRequest {
        request_id: "mine".to_owned(),
        ..question(100)
    };
    let mut stream = client
        .clone()
        .generate(with_key(named.clone(), Some(&ada)))
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap();
    let abort = v1::AbortRequest {
        request_id: "mine".to_owned(),
    };
    let by_bob = client.clone().abort(with_key(abort.clone(), Some(&bob))).await.unwrap();
    assert!(!by_bob.into_inner().found);
    let by_ada = client.clone().abort(with_key(abort, Some(&ada))).await.unwrap();
    assert!(by_ada.into_inner().found);
}

#[tokio::test]
async fn limits_hold_until_an_answer_has_ended_and_say_when_to_come_again() {
    let bench = Bench::new();
    let one = bench.key("one", &["--concurrent-requests", "1"]);
    let few = bench.key("few", &["--requests-per-minute", "2"]);
    let sandbox = bench.start(&bench.key("ops", &["--admin"]));
    let client = sandbox.inference().await;

    let mut first = client
        .clone()
        .generate(with_key(question(100), Some(&one)))
        .await
        .unwrap()
        .into_inner();
    first.message().await.unwrap().unwrap();
    let second = ask(&client, question(2), Some(&one)).await.unwrap_err();
    assert_eq!(second.code(), Code::ResourceExhausted);
    assert_eq!(second.metadata().get("kvasir-error").unwrap(), "over_limit");
    assert!(second.metadata().get("retry-after-ms").is_some());
    while first.message().await.unwrap().is_some() {}
    drop(first);
    assert!(ask(&client, question(2), Some(&one)).await.is_ok());

    for _ in 0..2 {
        assert!(ask(&client, question(1), Some(&few)).await.is_ok());
    }
    let third = ask(&client, question(1), Some(&few)).await.unwrap_err();
    let wait = third
        .metadata()
        .get("retry-after-ms")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert!((1..=30_000).contains(&wait.parse::<u64>().unwrap()), "{wait}");
    assert!(
        ask(&client, question(1), Some(&one)).await.is_ok(),
        "the limits are each one's own"
    );
    assert_eq!(count(&sandbox.status(), "refused_over_limit"), 2);
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart_and_a_broken_file_changes_nothing() {
    let bench = Bench::new();
    let ops = bench.key("ops", &["--admin"]);
    let sandbox = bench.start(&ops);
    let client = sandbox.inference().await;
    let late = bench.key("late", &[]);
    assert!(ask(&client, question(1), Some(&late)).await.is_ok());

    let whole = std::fs::read_to_string(bench.file()).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(bench.file()).unwrap();
    writeln!(file, "{{\"name\":\"typo\",\"sha256\":\"00\"}}").unwrap();
    assert!(ask(&client, question(1), Some(&late)).await.is_ok());
    assert!(
        sandbox.log().contains("what was read before stays"),
        "{}",
        sandbox.log()
    );

    let without: String = whole.lines().filter(|line| !line.contains("late")).collect();
    std::fs::write(bench.file(), without).unwrap();
    let gone = ask(&client, question(1), Some(&late)).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unauthenticated);

    let generate = |flags: &[&str]| {
        let args = [
            "generate",
            "--prompt-ids",
            "5,6",
            "--max-tokens",
            "1",
            "--endpoint",
            sandbox.endpoint(),
        ];
        kvasir([&args, flags].concat())
    };
    let refused = generate(&[]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.starts_with("error: refused: this needs an API key"), "{stderr}");
    assert!(generate(&["--api-key", &ops]).status.success());
}
