//! Answers that follow JSON schemas: two hundred of them, which all end by themselves and are what their schemas describe,
//! the same through preemptions, migrations and the death of a worker.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::{StreamExt as _, stream};
use kvasir_proto::v1::{self, FinishReason, constraint::Kind, generate_request::Prompt};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, kill},
    cluster_watch::{ClusterWatch, count},
    parity,
    schemas::Shape,
    sim::dice::Dice,
};

const SCHEMAS: usize = 200;
const SEED: u64 = 2026;
/// More than the longest value takes.
const MAX_TOKENS: u32 = 400;
const AT_A_TIME: usize = 24;
/// Sequences that have been moved to another group.
const MOVES: u64 = 10;

fn shapes() -> Vec<Shape> {
    let mut dice = Dice::new(SEED);
    (0..SCHEMAS).map(|_| Shape::draw(&mut dice)).collect()
}

fn request(index: usize, shape: &Shape) -> v1::GenerateRequest {
    let schema = shape.schema().to_string();
    v1::GenerateRequest {
        request_id: format!("schema-{index}"),
        prompt: Some(Prompt::Text(format!("JSON, number {index}:\n"))),
        sampling: Some(v1::SamplingParams {
            temperature: Some([0.0, 0.7, 1.3][index % 3]),
            seed: Some(index as u64),
            top_logprobs: 2,
            ..Default::default()
        }),
        max_tokens: Some(MAX_TOKENS),
        constraint: Some(v1::Constraint {
            kind: Some(Kind::JsonSchema(schema)),
        }),
        ..Default::default()
    }
}

/// # Panics
/// If the answer is cut off, or is no value of its schema.
fn check(index: usize, shape: &Shape, answer: &GrpcAnswer) -> String {
    let schema = shape.schema();
    assert_eq!(answer.reason(), FinishReason::Stop, "{index} {schema}: {}", answer.text);
    let value = serde_json::from_str(&answer.text);
    let value = value.unwrap_or_else(|error| panic!("{index} {schema}: {error}: {}", answer.text));
    assert!(shape.accepts(&value), "{index} {schema}: {value}");
    parity::digest(&answer.to_parity())
}

/// All answers, so many at a time. `told` counts those that are complete.
async fn digests(sandbox: &ClusterSandbox, at_a_time: usize, told: &AtomicU64) -> Vec<String> {
    let shapes = shapes();
    let asked = shapes.iter().enumerate().map(|(index, shape)| async move {
        let answer = sandbox.generate(request(index, shape)).await.unwrap();
        told.fetch_add(1, Ordering::Relaxed);
        check(index, shape, &answer)
    });
    stream::iter(asked).buffered(at_a_time).collect().await
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("digests/structured.json")
}

/// Of answers that were told alone, by one rank. With `KVASIR_WRITE_DIGESTS` set, they are told anew first.
async fn expected() -> Vec<String> {
    if std::env::var_os("KVASIR_WRITE_DIGESTS").is_some() {
        let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 1, &[]);
        let digests = digests(&sandbox, 1, &AtomicU64::new(0)).await;
        std::fs::write(file(), serde_json::to_string_pretty(&digests).unwrap() + "\n").unwrap();
    }
    let text = std::fs::read_to_string(file()).expect("tests/digests/structured.json is checked in");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn two_hundred_schemas_are_followed_to_their_end_through_preemptions() {
    let expected = expected().await;
    let flags = ["--block-size", "16", "--kv-memory", "10MiB"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 1, &flags);
    assert_eq!(digests(&sandbox, AT_A_TIME, &AtomicU64::new(0)).await, expected);
    let counters = &sandbox.status()["counters"];
    println!("{} preemptions", counters["preemptions"]);
    assert!(counters["preemptions"].as_u64().unwrap() > 0, "{counters:#}");
}

/// Moves whatever runs to the other group, one after the other.
async fn stir(watch: &ClusterWatch, done: &AtomicBool) -> u64 {
    let mut moved = 0;
    while !done.load(Ordering::Relaxed) {
        let running = watch.status().await.sequences;
        for sequence in running.iter().filter(|sequence| sequence.state == "running") {
            let order = v1::MigrateRequest {
                request_id: sequence.request_id.clone(),
                target_group: Some(1 - sequence.group),
            };
            // It may have ended meanwhile.
            if let Ok(done) = watch.admin.clone().migrate(order).await {
                let migrations = done.into_inner().migrations;
                moved += migrations.iter().filter(|one| one.outcome == "moved").count() as u64;
            }
        }
        tokio::task::yield_now().await;
    }
    moved
}

#[tokio::test]
async fn schemas_are_followed_through_migrations() {
    let expected = expected().await;
    let flags = ["--groups", "1,2", "--no-rebalance", "--prefix-copy", "never"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 3, &flags);
    let watch = ClusterWatch::of(&sandbox).await;
    let done = AtomicBool::new(false);
    let told = async {
        let told = digests(&sandbox, AT_A_TIME, &AtomicU64::new(0)).await;
        done.store(true, Ordering::Relaxed);
        told
    };
    let (told, moved) = tokio::join!(told, stir(&watch, &done));
    assert_eq!(told, expected);
    let status = watch.status().await;
    println!("{moved} migrations");
    assert!(moved >= MOVES, "{moved} migrations");
    assert_eq!(count(&status, "migrations_moved"), moved);
    assert_eq!(count(&status, "cells_adopted"), count(&status, "cells_planned"));
    assert_eq!(count(&status, "tokens_recomputed"), 0);
}

#[tokio::test]
async fn schemas_are_followed_through_the_death_of_a_worker() {
    let expected = expected().await;
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 3, &[]);
    let watch = ClusterWatch::of(&sandbox).await;
    let epoch = watch.status().await.groups[0].epoch;
    let told = AtomicU64::new(0);
    let strike = async {
        while told.load(Ordering::Relaxed) < SCHEMAS as u64 / 4 {
            tokio::task::yield_now().await;
            watch.status().await;
        }
        kill(sandbox.worker_pids()[1]);
    };
    let (digests, ()) = tokio::join!(digests(&sandbox, AT_A_TIME, &told), strike);
    assert_eq!(digests, expected);
    let status = watch.status().await;
    assert_eq!(count(&status, "recoveries"), 1);
    assert!(count(&status, "tokens_recomputed") > 0);
    assert!(status.groups[0].epoch > epoch && status.groups[0].ranks.len() == 2);
}
