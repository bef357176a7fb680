//! Who is let in, when, and at whose cost: queue bounds, tenants and priorities through real processes.

#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use futures::{StreamExt, stream};
use kvasir_proto::v1;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer},
    story,
};
use serde_json::Value;
use tonic::{Code, Status};

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn waiting(status: &Value) -> u64 {
    status["groups"][0]["waiting"].as_u64().unwrap()
}

fn cached_tokens(answer: &GrpcAnswer) -> u32 {
    answer.finished.as_ref().unwrap().usage.unwrap().cached_tokens
}

fn story_of(tenant: &str, priority: i32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        tenant: tenant.to_owned(),
        priority,
        ..story::request()
    }
}

/// Long enough to hold its place until it is dropped.
fn endless() -> v1::GenerateRequest {
    v1::GenerateRequest {
        max_tokens: Some(8000),
        ..story::request()
    }
}

fn assert_refused(status: &Status, fragments: &[&str]) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    for fragment in fragments {
        assert!(status.message().contains(fragment), "{status} without `{fragment}`");
    }
    let hint = status
        .metadata()
        .get("retry-after-ms")
        .map(|hint| hint.to_str().unwrap().parse::<u64>());
    assert!(matches!(hint, Some(Ok(1..))), "no retry hint: {status:?}");
}

/// A cluster of one place, taken by a request that does not end by itself.
async fn full_house(flags: &[&str]) -> (ClusterSandbox, tonic::Streaming<v1::GenerateResponse>) {
    let flags = [&["--sequences", "1"], flags].concat();
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &flags);
    let mut stream = sandbox.open_stream(endless()).await.unwrap();
    // The descriptor, then a token: it runs.
    for _ in 0..2 {
        stream.message().await.unwrap().unwrap();
    }
    (sandbox, stream)
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_hint_and_serves_whoever_waits() {
    let (sandbox, running) = full_house(&["--queue", "2"]).await;
    let stories = futures::future::join_all((0..2).map(|_| sandbox.generate(story::request())));
    let meanwhile = async {
        sandbox.until("two in the queue", |status| waiting(status) == 2).await;
        for _ in 0..3 {
            let refused = sandbox.generate(story::request()).await.unwrap_err();
            assert_refused(&refused, &["2 requests wait, at most 2 may"]);
        }
        drop(running);
    };
    let (answers, ()) = tokio::join!(stories, meanwhile);
    for answer in answers {
        story::assert_undisturbed(&answer.unwrap(), "from the queue");
    }
    let status = sandbox.status();
    assert_eq!((count(&status, "rejected"), waiting(&status)), (3, 0), "{status:#}");
}

#[tokio::test]
async fn whoever_waits_too_long_is_refused_and_a_queue_is_bounded_by_tokens_too() {
    let (sandbox, _running) = full_house(&["--queue-wait", "0.2", "--queue-tokens", "20"]).await;
    let mut patient = sandbox.open_stream(story::request()).await.unwrap();
    patient.message().await.unwrap().unwrap();
    let wide = sandbox.generate(story::request()).await.unwrap_err();
    assert_refused(&wide, &["would exceed 20"]);
    let late = patient.message().await.unwrap_err();
    assert_refused(&late, &["waited", "the longest wait is 200 ms"]);
}

#[tokio::test]
async fn a_request_larger_than_the_cache_is_refused_at_once_with_the_numbers() {
    // 30 layers of 3 KV heads of 64 f16, keys and values: 23,040 bytes a token, 368,640 a block of 16.
    let flags = ["--block-size", "16", "--kv-memory", "2MiB"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 1, &flags);
    let refused = sandbox.generate(endless()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused
            .message()
            .contains("blocks of 16 tokens needed alone, the group has 5"),
        "{refused}"
    );
    assert!(
        refused.metadata().get("retry-after-ms").is_none(),
        "it would be refused again"
    );
    let answer = sandbox.generate(story::request()).await.unwrap();
    story::assert_undisturbed(&answer, "what fits is served");
}

#[tokio::test]
async fn a_tenant_never_starts_from_what_another_computed() {
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &["--block-size", "16"]);
    let mut longer = story_of("a", 0);
    longer.max_tokens = Some(story::TOKENS);
    let first = sandbox.generate(longer.clone()).await.unwrap();
    // The beginning of the answer is now part of the prompt: more than one block.
    let ids = first
        .descriptor
        .prompt_token_ids
        .iter()
        .copied()
        .chain(first.ids())
        .collect();
    longer.prompt = Some(v1::generate_request::Prompt::TokenIds(v1::TokenIds { ids }));
    longer.max_tokens = Some(4);
    let of = |tenant: &str| v1::GenerateRequest {
        tenant: tenant.to_owned(),
        ..longer.clone()
    };
    let other = sandbox.generate(of("b")).await.unwrap();
    let own = sandbox.generate(of("a")).await.unwrap();
    assert_eq!(cached_tokens(&other), 0);
    assert!(cached_tokens(&own) >= 48, "{}", cached_tokens(&own));
    assert_eq!(other.tokens, own.tokens, "and the bits are the same");
}

#[tokio::test]
async fn an_urgent_request_takes_the_place_of_another_whose_bits_stay_the_same() {
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &["--sequences", "1"]);
    let usual = sandbox.generate(story_of("a", 0));
    let urgent = async {
        let telling = |status: &Value| status["sequences"][0]["tokens"].as_u64() > Some(20);
        sandbox.until("the usual one to be told", telling).await;
        let answer = sandbox.generate(story_of("b", -1)).await;
        (answer, sandbox.status())
    };
    let (usual, (urgent, status)) = tokio::join!(usual, urgent);
    story::assert_undisturbed(&usual.unwrap(), "preempted in mid-answer");
    story::assert_undisturbed(&urgent.unwrap(), "urgent");
    assert_eq!(
        status["sequences"][0]["preemptions"], 1,
        "the other was not done before: {status:#}"
    );
    let counters = sandbox.status();
    assert_eq!(count(&counters, "preemptions_for_others"), 1, "{counters:#}");
    assert!(count(&counters, "tokens_recomputed") > 0, "{counters:#}");
}

/// Resident memory of a process, bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Ten times as many clients as there are places and seats in the queue, each coming back as soon as it is refused or
/// served.
#[tokio::test]
async fn an_overload_is_refused_in_bounded_memory_and_ends_in_normal_service() {
    const CLIENTS: usize = 40;
    let flags = ["--sequences", "2", "--queue", "2", "--kv-memory", "32MiB"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &flags);
    story::assert_undisturbed(&sandbox.generate(story::request()).await.unwrap(), "before");
    let pids: Vec<u32> = sandbox.worker_pids().iter().copied().chain([sandbox.pid()]).collect();
    let before: Vec<u64> = pids.iter().map(|pid| resident(*pid)).collect();

    // Each client asks until it is served.
    let client = |_| async {
        let mut refusals = 0;
        loop {
            match sandbox.generate(story::request()).await {
                Ok(answer) => return (answer, refusals),
                Err(refused) => assert_refused(&refused, &["requests wait, at most 2 may"]),
            }
            refusals += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let served: Vec<_> = stream::iter(0..CLIENTS)
        .map(client)
        .buffer_unordered(CLIENTS)
        .collect()
        .await;

    let refusals: u64 = served.iter().map(|(_, refusals)| *refusals).sum();
    for (answer, _) in &served {
        story::assert_undisturbed(answer, "in the overload");
    }
    assert!(refusals > 100, "{refusals} refusals are no overload");
    for (pid, before) in pids.iter().zip(before) {
        let after = resident(*pid);
        assert!(
            after < before + (64 << 20),
            "process {pid} grew from {before} to {after} bytes"
        );
    }
    let status = sandbox.wait_for("every block to come back", |status| {
        let blocks = &status["groups"][0]["blocks"];
        blocks["held"] == 0 && blocks["in_flight"] == 0
    });
    assert_eq!(count(&status, "rejected"), refusals);
    assert_eq!((waiting(&status), count(&status, "conservation_violations")), (0, 0));
    story::assert_undisturbed(&sandbox.generate(story::request()).await.unwrap(), "after");
}
