//! The doors of the binary and of the gRPC services: bad input gives one clear message and the right code; good input
//! gives the answer, whole or resumed, stopped or aborted.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use kvasir_proto::v1::inference_server::SERVICE_NAME as INFERENCE;
use kvasir_proto::v1::{
    self, FinishReason, GenerateRequest, SamplingParams, TokenIds, generate_request::Prompt, generate_response::Event,
};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, KvasirProcess, kill, kvasir, wait_gone},
    default_model,
    tiny_model::TinyModel,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// A tiny model that lives as long as the test.
struct Model {
    folder: TempDir,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        TinyModel::default().write(folder.path().join("tiny.gguf")).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn other(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Panics unless it ended with `code` and, for a failure at run time, one line of error.
fn assert_refused(output: &Output, code: i32, fragments: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    if code == 1 {
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    for fragment in fragments {
        assert!(stderr.contains(fragment), "`{fragment}` is not in: {stderr}");
    }
}

fn prompt(ids: &[u32]) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: ids.to_vec() })),
        ..Default::default()
    }
}

/// Sampled, with logprobs, and long enough to be disturbed.
fn long_request() -> GenerateRequest {
    GenerateRequest {
        sampling: Some(SamplingParams {
            temperature: Some(0.9),
            seed: Some(11),
            top_logprobs: 3,
            ..Default::default()
        }),
        max_tokens: Some(200),
        ignore_eos: true,
        ..prompt(&[40, 41, 42, 43])
    }
}

fn resume(answer: &GrpcAnswer, received: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Resume(v1::Resume {
            descriptor: Some(answer.descriptor.clone()),
            received_token_ids: answer.ids()[..received].to_vec(),
            // They come before the first token.
            received_prompt_logprobs: match received {
                0 => 0,
                _ => answer.prompt_scores.len() as u32,
            },
        })),
        ..Default::default()
    }
}

#[test]
fn a_model_that_cannot_be_read_is_one_clear_line_at_every_role() {
    let model = Model::new();
    let whole = std::fs::read(model.path()).unwrap();
    let files = [
        ("/no/such/model.gguf".to_owned(), "No such file"),
        (model.other("text.gguf", b"once upon a time"), "not a GGUF file"),
        (
            model.other("half.gguf", &whole[..whole.len() / 2]),
            "download complete?",
        ),
        (model.other("empty.gguf", b""), "not a GGUF file"),
    ];
    for (path, why) in &files {
        for role in [
            vec!["plan", "--model", path],
            vec!["up", "--grpc", "127.0.0.1:0", "--model", path],
            vec!["coordinator", "--grpc", "127.0.0.1:0", "--model", path],
            vec!["worker", "--coordinator", "127.0.0.1:1", "--model", path],
        ] {
            assert_refused(&kvasir(&role), 1, &[why, path]);
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2_with_a_hint() {
    let model = Model::new();
    let path = model.path();
    let plan = |flags: &[&str]| kvasir([&["plan", "--model", text(&path)], flags].concat());
    assert_refused(&plan(&["--workers", "0"]), 2, &["--workers", "0"]);
    assert_refused(&plan(&["--workres", "2"]), 2, &["--workres", "--workers"]);
    assert_refused(&plan(&["--kv-dtype", "f8"]), 2, &["f8", "f32, f16"]);
    assert_refused(&plan(&["--memory", "8 parsecs"]), 2, &["8 parsecs", "512MiB"]);
    assert_refused(&kvasir(["generate"]), 2, &["--prompt"]);
    assert_refused(
        &kvasir(["up", "--model", text(&path), "--workers", "0"]),
        2,
        &["0 is not in 1.."],
    );
    assert_refused(&kvasir(["frobnicate"]), 2, &["frobnicate"]);
}

#[test]
fn a_cluster_whose_cells_cannot_hold_a_block_ends_with_the_numbers_instead_of_waiting() {
    let model = Model::new();
    let path = model.path();
    let flags = ["--workers", "2", "--grpc", "127.0.0.1:0", "--kv-memory", "12"];
    let output = kvasir([&["up", "--model", text(&path)], &flags[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: the cluster cannot form: worker w"), "{stderr}");
    assert!(last.contains("has 12 bytes for KV cells; one block"), "{stderr}");
}

#[test]
fn addresses_that_do_not_work_are_named() {
    let model = Model::new();
    let path = model.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for role in ["up", "coordinator"] {
        let at = |address: &str| kvasir([role, "--model", text(&path), "--grpc", address]);
        assert_refused(&at(&address), 1, &[&address, "in use"]);
        assert_refused(&at("0.0.0.0:0"), 1, &["0.0.0.0:0", "--insecure"]);
        assert_refused(&at("nonsense"), 1, &["nonsense", "host:port"]);
    }
    for client in [
        vec!["status"],
        vec!["chat", "hello"],
        vec!["generate", "--prompt", "hello"],
    ] {
        let at = |endpoint: &str| kvasir([client.clone(), vec!["--endpoint", endpoint]].concat());
        assert_refused(&at("127.0.0.1:1"), 1, &["http://127.0.0.1:1", "refused"]);
        assert_refused(&at("nonsense"), 1, &["nonsense", "http://host:port"]);
        assert_refused(&at("https://127.0.0.1:1"), 1, &["https://127.0.0.1:1", "--tls-ca"]);
    }
}

#[test]
fn every_worker_count_has_a_plan_that_holds_every_head_once() {
    let tiny = Model::new();
    // The tiny model has too few units to be even. Of the other, whose three KV heads are 17 % of what is read, more ranks
    // than that wait for those with heads.
    let (tiny_max, default_max) = ([4.0; 6], [1.0, 1.06, 1.01, 1.06, 1.15, 1.19]);
    for (model, imbalance_max) in [(tiny.path(), tiny_max), (default_model(), default_max)] {
        for (workers, imbalance_max) in (1..=6).zip(imbalance_max) {
            let output = kvasir([
                "plan",
                "--json",
                "--model",
                text(&model),
                "--workers",
                &workers.to_string(),
            ]);
            let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
            let ranks = plan["ranks"].as_array().unwrap();
            assert_eq!(ranks.len(), workers);
            let heads = ranks.iter().flat_map(|rank| rank["kv_heads"].as_array().unwrap());
            assert_eq!(heads.map(|head| head.as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
            assert!(plan["imbalance"].as_f64().unwrap() <= imbalance_max, "{plan}");
            assert_eq!(plan["wire"]["bytes_per_token"] == 0, workers == 1);
        }
    }
}

#[test]
fn a_plan_that_does_not_fit_names_the_numbers_and_the_nearest_that_does() {
    let model = default_model();
    let plan = |flags: &[&str]| kvasir([&["plan", "--model", text(&model)], flags].concat());
    assert_refused(
        &plan(&["--workers", "500"]),
        1,
        &["500 ranks", "91 units", "--workers 91"],
    );
    let tight = plan(&["--workers", "1", "--memory", "150MiB", "--context", "8192"]);
    assert_refused(&tight, 1, &["157286400", "--workers 3"]);
    assert_refused(
        &plan(&["--memory", "120MiB", "--context", "8192", "--concurrency", "99"]),
        1,
        &["--context"],
    );
    assert_refused(&plan(&["--context", "9000"]), 1, &["9000", "8192"]);
    assert_refused(
        &plan(&["--workers", "3", "--weights", "1,2"]),
        1,
        &["2 values for 3 workers"],
    );
    let workers = plan(&["--workers", "2", "--memory", "150MiB", "--context", "4096", "--json"]);
    let fit: Value = serde_json::from_slice(&workers.stdout).unwrap();
    assert_eq!(fit["fit"]["concurrent_requests"], 1);
}

#[tokio::test]
async fn a_bad_request_gets_the_code_and_the_values_that_are_wrong() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 1, &[]);
    let sampled = |sampling| GenerateRequest {
        sampling: Some(sampling),
        ..prompt(&[40])
    };
    let good = cluster
        .generate(GenerateRequest {
            max_tokens: Some(3),
            ..prompt(&[40])
        })
        .await
        .unwrap();
    let mut foreign = resume(&good, 1);
    if let Some(Prompt::Resume(resume)) = &mut foreign.prompt {
        resume.descriptor.as_mut().unwrap().numerics_id = vec![0xab; 16];
    }
    let mut late = resume(&good, 1);
    if let Some(Prompt::Resume(resume)) = &mut late.prompt {
        resume.descriptor.as_mut().unwrap().deadline_unix_ms = 1;
    }
    let chat = |role: &str| v1::Chat {
        messages: vec![v1::ChatMessage {
            role: role.to_owned(),
            content: "hi".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let cases: Vec<(GenerateRequest, Code, &[&str])> = vec![
        (
            GenerateRequest::default(),
            Code::InvalidArgument,
            &["text, token_ids, chat or resume"],
        ),
        (prompt(&[]), Code::InvalidArgument, &["empty"]),
        (prompt(&[40, 320]), Code::InvalidArgument, &["320", "position 1"]),
        (
            sampled(SamplingParams {
                temperature: Some(-0.5),
                ..Default::default()
            }),
            Code::InvalidArgument,
            &["-0.5"],
        ),
        (
            sampled(SamplingParams {
                temperature: Some(f32::NAN),
                ..Default::default()
            }),
            Code::InvalidArgument,
            &["NaN"],
        ),
        (
            sampled(SamplingParams {
                top_p: Some(1.5),
                ..Default::default()
            }),
            Code::InvalidArgument,
            &["top_p", "1.5"],
        ),
        (
            sampled(SamplingParams {
                top_logprobs: 21,
                ..Default::default()
            }),
            Code::InvalidArgument,
            &["21", "20"],
        ),
        (
            GenerateRequest {
                max_tokens: Some(0),
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["max_tokens is 0"],
        ),
        (
            GenerateRequest {
                max_tokens: Some(1024),
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["1 prompt", "1024 exceed", "context of 1024"],
        ),
        (prompt(&[40; 1024]), Code::InvalidArgument, &["1024 prompt tokens"]),
        (
            GenerateRequest {
                stop: vec!["x".to_owned(); 17],
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["17", "16"],
        ),
        (
            GenerateRequest {
                stop: vec![String::new()],
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["stop string"],
        ),
        (
            GenerateRequest {
                timeout_ms: Some(0),
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["timeout_ms"],
        ),
        (
            GenerateRequest {
                request_id: "x".repeat(129),
                ..prompt(&[40])
            },
            Code::InvalidArgument,
            &["129", "128"],
        ),
        (
            GenerateRequest {
                prompt: Some(Prompt::Chat(chat("robot"))),
                ..Default::default()
            },
            Code::InvalidArgument,
            &["robot"],
        ),
        (foreign, Code::FailedPrecondition, &["abababab", "this cluster has"]),
        (late, Code::DeadlineExceeded, &["deadline"]),
    ];
    for (request, code, fragments) in cases {
        let status = cluster.generate(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        for fragment in fragments {
            assert!(
                status.message().contains(fragment),
                "`{fragment}` is not in: {}",
                status.message()
            );
        }
        assert!(status.metadata().contains_key("kvasir-error"), "{status:?}");
    }
}

#[tokio::test]
async fn a_resumed_answer_is_the_rest_of_the_same_answer() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 2, &[]);
    let whole = cluster.generate(long_request()).await.unwrap();
    assert_eq!(whole.tokens.len(), 200);
    for received in [0, 1, 7, 100, 199] {
        // What a client had when its stream broke there: the text of exactly these tokens.
        let request = GenerateRequest {
            max_tokens: Some(received as u32),
            ..long_request()
        };
        let before = match received {
            0 => GrpcAnswer::default(),
            _ => cluster.generate(request).await.unwrap(),
        };
        assert_eq!(before.ids(), whole.ids()[..received]);
        let rest = cluster.generate(resume(&whole, received)).await.unwrap();
        assert_eq!(rest.tokens, whole.tokens[received..], "after {received}");
        assert!(whole.text.ends_with(&rest.text), "after {received}");
        let [rest, whole] = [&rest, &whole].map(|answer| answer.finished.clone().unwrap().usage.unwrap());
        // What the prefix cache saved differs; what was asked and answered does not.
        assert_eq!(
            (rest.prompt_tokens, rest.completion_tokens),
            (whole.prompt_tokens, whole.completion_tokens)
        );
    }
    let only_the_end = cluster.generate(resume(&whole, 200)).await.unwrap();
    assert_eq!(
        (only_the_end.tokens.len(), only_the_end.reason()),
        (0, FinishReason::Length)
    );
}

#[tokio::test]
async fn an_answer_ends_before_its_stop_string_wherever_tokens_end() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 1, &[]);
    let whole = cluster.generate(long_request()).await.unwrap();
    let letters: Vec<char> = whole.text.chars().collect();
    for (from, len) in [(5, 1), (20, 4), (61, 9)] {
        let stop: String = letters[from..from + len].iter().collect();
        let expected = &whole.text[..whole.text.find(&stop).unwrap()];
        let request = GenerateRequest {
            stop: vec!["never there".to_owned(), stop.clone()],
            ..long_request()
        };
        let stopped = cluster.generate(request).await.unwrap();
        assert_eq!(stopped.text, expected, "{stop:?}");
        assert_eq!(stopped.reason(), FinishReason::Stop);
        assert_eq!(stopped.tokens, whole.tokens[..stopped.tokens.len()]);
        let usage = stopped.finished.clone().unwrap().usage.unwrap();
        assert_eq!(usage.completion_tokens as usize, stopped.tokens.len());
        // A client that has all tokens and missed the end.
        let end = cluster.generate(resume(&stopped, stopped.tokens.len())).await.unwrap();
        assert_eq!(
            (end.tokens.len(), end.reason(), end.text.as_str()),
            (0, FinishReason::Stop, "")
        );
    }
    cluster.wait_for("an empty pool", |status| {
        let blocks = &status["groups"][0]["blocks"];
        blocks["free"]
            .as_u64()
            .zip(blocks["cached"].as_u64())
            .map(|(free, cached)| free + cached)
            == blocks["total"].as_u64()
    });
}

#[tokio::test]
async fn an_aborted_abandoned_or_stopped_request_ends_and_gives_its_blocks_back() {
    // Half a minute of work if nobody stops it.
    let cluster = ClusterSandbox::start(&default_model(), 1, &[]);
    let mut client = cluster.inference().await;
    let named = GenerateRequest {
        request_id: "mine".to_owned(),
        max_tokens: Some(8000),
        ..long_request()
    };
    let mut stream = client.generate(named.clone()).await.unwrap().into_inner();
    assert!(matches!(
        stream.message().await.unwrap().unwrap().event,
        Some(Event::Started(_))
    ));

    let twice = client.generate(named.clone()).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    assert!(twice.message().contains("mine"));
    let abort = |id: &str| v1::AbortRequest {
        request_id: id.to_owned(),
    };
    assert!(!client.abort(abort("other")).await.unwrap().into_inner().found);
    assert!(client.abort(abort("mine")).await.unwrap().into_inner().found);
    let mut answer = GrpcAnswer::default();
    while let Some(response) = stream.message().await.unwrap() {
        answer.add(response);
    }
    assert_eq!(answer.reason(), FinishReason::Cancelled);

    let abandoned = client.generate(named.clone()).await.unwrap();
    drop(abandoned);
    let stopped = GenerateRequest {
        request_id: String::new(),
        stop: vec!["e".to_owned()],
        ..named
    };
    assert_eq!(cluster.generate(stopped).await.unwrap().reason(), FinishReason::Stop);
    let status = cluster.wait_for("no sequences", |status| {
        status["sequences"].as_array().unwrap().is_empty()
    });
    assert_eq!(status["groups"][0]["blocks"]["held"], 0);
    // None was computed to its end.
    assert!(
        status["counters"]["generation_tokens"].as_u64().unwrap() < 900,
        "{status:#}"
    );
}

#[tokio::test]
async fn a_worker_killed_in_mid_answer_changes_nothing() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 3, &[]);
    let request = GenerateRequest {
        max_tokens: Some(900),
        ..long_request()
    };
    let whole = cluster.generate(request.clone()).await.unwrap();
    let mut stream = cluster.open_stream(request).await.unwrap();
    let mut again = GrpcAnswer::default();
    let mut victim = Some(cluster.worker_pids()[0]);
    while let Some(response) = stream.message().await.unwrap() {
        again.add(response);
        if again.tokens.len() > 50
            && let Some(pid) = victim.take()
        {
            kill(pid);
        }
    }
    assert_eq!(again.tokens, whole.tokens);
    assert_eq!(again.text, whole.text);
    let status = cluster.wait_for("the loss", |status| status["counters"]["ranks_lost"] == 1);
    assert_eq!(status["groups"][0]["ranks"].as_array().unwrap().len(), 2);
}

#[test]
fn workers_end_with_the_cluster_that_started_them_also_after_a_crash() {
    let model = Model::new();
    let mut cluster = ClusterSandbox::start(&model.path(), 2, &[]);
    cluster.kill_up();
    for &pid in cluster.worker_pids() {
        assert!(wait_gone(pid), "worker {pid} is left");
    }
}

#[test]
fn a_worker_that_does_not_fit_is_refused_with_the_reason() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 1, &[]);
    let path = model.path();
    let join = ["worker", "--model", text(&path), "--coordinator", cluster.endpoint()];
    let with = |flags: &[&str]| command_without_log(&[&join, flags].concat());
    assert_refused(&with(&["--block-size", "32"]), 1, &["32", "64"]);
    assert_refused(&with(&["--kv-dtype", "f32"]), 1, &["KV cells of f16", "f32"]);
    assert_refused(&with(&["--backend", "candle"]), 1, &["numerics"]);
    assert_refused(&with(&["--weight", "0"]), 1, &["--weight 0"]);
    assert_refused(&with(&["--advertise", "10.0.0.1"]), 1, &["10.0.0.1", "--insecure"]);
}

/// A worker logs what it does; only its last word is looked at here.
fn command_without_log(args: &[&str]) -> Output {
    let mut output = kvasir(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    output.stderr = text.lines().last().unwrap_or_default().into();
    output
}

#[test]
fn an_answer_goes_on_when_its_coordinator_is_replaced() {
    let model = Model::new();
    let (folder, path) = (model.folder.path(), model.path());
    let coordinator = |address: &str, log: &str| {
        let args = [
            "coordinator",
            "--json",
            "--model",
            text(&path),
            "--workers",
            "2",
            "--grpc",
            address,
        ];
        KvasirProcess::start_and_read_line(&args, folder.join(log))
    };
    let (mut first, line) = coordinator("127.0.0.1:0", "first.log");
    let endpoint = serde_json::from_str::<Value>(&line).unwrap()["grpc"]
        .as_str()
        .unwrap()
        .to_owned();
    let worker = |id: &str| {
        let args = ["worker", "--model", text(&path), "--coordinator", &endpoint, "--id", id];
        KvasirProcess::start(&args, folder.join(format!("{id}.log")))
    };
    let _workers = [worker("a"), worker("b")];
    let flags =
        "generate --prompt-ids 40,41,42 --max-tokens 900 --ignore-eos --temperature 0.9 --seed 3 --logprobs 2 --json";
    let ask: Vec<&str> = flags.split(' ').chain(["--endpoint", &endpoint]).collect();
    let read = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).expect("an answer") };
    let undisturbed = read(&kvasir(&ask));
    let (again, _second) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| kvasir(&ask));
        let status = || kvasir(["status", "--json", "--endpoint", &endpoint]);
        while read(&status())["sequences"][0]["tokens"].as_u64().unwrap_or(0) < 50 {
            assert!(
                !asking.is_finished(),
                "the answer ended before its coordinator could be killed"
            );
        }
        first.kill();
        let second = coordinator(endpoint.trim_start_matches("http://"), "second.log");
        (read(&asking.join().unwrap()), second)
    });
    assert!(again["resumes"].as_u64().unwrap() > 0);
    for field in ["token_ids", "logprobs", "text", "finish_reason", "usage"] {
        assert_eq!(again[field], undisturbed[field], "{field}");
    }
}

async fn connect(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn health_is_green_only_while_a_group_serves() {
    let model = Model::new();
    let path = model.path();
    let args = ["coordinator", "--json", "--model", text(&path), "--grpc", "127.0.0.1:0"];
    let (_coordinator, line) = KvasirProcess::start_and_read_line(&args, model.folder.path().join("c.log"));
    let endpoint = serde_json::from_str::<Value>(&line).unwrap()["grpc"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut health = HealthClient::new(connect(&endpoint).await);
    let service = INFERENCE.to_owned();
    let mut watch = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    let mut next = async || watch.message().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::NotServing);
    let args = ["worker", "--model", text(&path), "--coordinator", &endpoint];
    let mut worker = KvasirProcess::start(&args, model.folder.path().join("w.log"));
    assert_eq!(next().await, ServingStatus::Serving);
    let whole = HealthCheckRequest::default();
    assert_eq!(
        health.check(whole).await.unwrap().into_inner().status(),
        ServingStatus::Serving
    );
    worker.kill();
    assert_eq!(next().await, ServingStatus::NotServing);
}

#[test]
fn without_workers_a_request_fails_in_time_and_says_what_is_missing() {
    let model = Model::new();
    let path = model.path();
    let mut args = vec!["coordinator", "--json", "--model", text(&path), "--grpc", "127.0.0.1:0"];
    args.extend(["--workers", "2", "--unavailable-wait", "1"]);
    let (_coordinator, line) = KvasirProcess::start_and_read_line(&args, model.folder.path().join("c.log"));
    let endpoint = serde_json::from_str::<Value>(&line).unwrap()["grpc"]
        .as_str()
        .unwrap()
        .to_owned();
    let ask = ["generate", "--prompt-ids", "40", "--endpoint", &endpoint];
    assert_refused(&kvasir(ask), 1, &["unavailable", "0 of 2 workers", "waited 1"]);
    // Its own deadline is sooner.
    let hurried = kvasir(ask.iter().copied().chain(["--timeout", "0.2"]));
    assert_refused(&hurried, 1, &["unavailable", "waited"]);
    assert!(
        !String::from_utf8_lossy(&hurried.stderr).contains("waited 1"),
        "{hurried:?}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let model = Model::new();
    let cluster = ClusterSandbox::start(&model.path(), 1, &[]);
    let mut wordy = GenerateRequest {
        max_tokens: Some(900),
        ..long_request()
    };
    wordy.sampling.as_mut().unwrap().top_logprobs = 20;
    let mut unread = cluster
        .inference()
        .await
        .generate(wordy.clone())
        .await
        .unwrap()
        .into_inner();
    let whole = cluster.generate(wordy).await.unwrap();
    cluster.wait_for("both answers", |status| status["counters"]["finished"] == 2);
    let mut late = GrpcAnswer::default();
    while let Some(response) = unread.message().await.unwrap() {
        late.add(response);
    }
    assert_eq!(late.tokens, whole.tokens);
}
