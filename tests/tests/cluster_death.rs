//! Death: a worker of a three-rank group is killed, or frozen, in mid-answer, and the client gets the same answer.
//!
//! `KVASIR_TEST_SEED` draws other token indexes and workers.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use kvasir_proto::v1::generate_response::Event;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, freeze, kill, resume},
    story,
};
use serde_json::Value;

/// Deaths of each kind.
const DEATHS: u64 = 8;

/// Streams the answer and strikes once `at` tokens have come. Returns it with the longest wait between two tokens.
async fn answer_with_a_death(sandbox: &ClusterSandbox, at: usize, strike: impl Fn()) -> (GrpcAnswer, Duration) {
    let mut stream = sandbox.open_stream(story::request()).await.unwrap();
    let (mut answer, mut stall, mut last) = (GrpcAnswer::default(), Duration::ZERO, None::<Instant>);
    let mut struck = false;
    while let Some(response) = stream.message().await.unwrap() {
        if matches!(response.event, Some(Event::Chunk(_))) {
            stall = stall.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
            last = Some(Instant::now());
        }
        answer.add(response);
        if !struck && answer.tokens.len() >= at {
            strike();
            struck = true;
        }
    }
    assert!(struck, "the answer ended before token {at}");
    (answer, stall)
}

fn kv_heads(status: &Value) -> Vec<(u64, Vec<u64>)> {
    let ranks = status["groups"][0]["ranks"].as_array().unwrap();
    let heads = |rank: &Value| {
        rank["kv_heads"]
            .as_array()
            .unwrap()
            .iter()
            .map(|head| head.as_u64().unwrap())
            .collect()
    };
    ranks
        .iter()
        .map(|rank| (rank["pid"].as_u64().unwrap(), heads(rank)))
        .collect()
}

fn epoch(status: &Value) -> (u64, u64) {
    let epoch = &status["groups"][0]["epoch"];
    (epoch["term"].as_u64().unwrap(), epoch["number"].as_u64().unwrap())
}

/// One death by `strike` on a fresh cluster. Returns the cluster and its status afterwards.
async fn die(seed: u64, name: &str, strike: fn(u32)) -> (ClusterSandbox, Value, u32) {
    let random = blake3::hash(format!("{name} {seed}").as_bytes());
    let (at, worker) = (
        1 + usize::from(random.as_bytes()[0]) % 56,
        usize::from(random.as_bytes()[1]) % 3,
    );
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 3, &[]);
    let before = sandbox.status();
    let victim = sandbox.worker_pids()[worker];

    let (answer, stall) = answer_with_a_death(&sandbox, at, || strike(victim)).await;

    story::assert_undisturbed(
        &answer,
        &format!("{name} of worker {worker} at token {at}, seed {seed}"),
    );
    let after = sandbox.wait_for("the loss to be recovered", |status| {
        status["counters"]["recoveries"] == 1
    });
    assert!(epoch(&after) > epoch(&before), "{after:#}");
    let mut heads: Vec<u64> = Vec::new();
    for (pid, held) in kv_heads(&after) {
        assert_ne!(pid, u64::from(victim));
        heads.extend(held);
    }
    heads.sort_unstable();
    assert_eq!(heads, [0, 1, 2], "survivors hold every head: {after:#}");
    assert_eq!(kv_heads(&after).len(), 2);
    let recomputed = after["counters"]["tokens_recomputed"].as_u64().unwrap();
    assert!(
        recomputed > at as u64,
        "the prompt and {at} tokens were computed again, counted {recomputed}"
    );
    let detection = sandbox
        .log()
        .lines()
        .filter_map(detection_ms)
        .next()
        .expect("the loss is logged");
    println!("{name} at token {at}: detected in {detection} ms, stall {stall:.0?}, {recomputed} tokens recomputed");
    (sandbox, after, victim)
}

/// From a log line like `… rank lost … detection_ms=2040 …`.
fn detection_ms(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("detection_ms=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn seed() -> u64 {
    let seed = std::env::var("KVASIR_TEST_SEED").map_or(u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("KVASIR_TEST_SEED={seed}");
    seed
}

#[tokio::test]
async fn a_killed_worker_changes_no_bit_of_the_answer() {
    let seed = seed();
    for death in 0..DEATHS {
        die(seed + death, "SIGKILL", kill).await;
    }
}

#[tokio::test]
async fn a_frozen_worker_changes_no_bit_of_the_answer_and_is_taken_in_again_when_it_returns() {
    let seed = seed();
    for death in 0..DEATHS {
        let (sandbox, after, victim) = die(seed + death, "SIGSTOP", freeze).await;
        let recomputed = after["counters"]["tokens_recomputed"].as_u64();
        resume(victim);
        // It finds its session gone and joins again; the group lacks a rank and takes it in without a pause for anybody.
        let back = sandbox.wait_for("the frozen worker to be a rank again", |status| {
            let ranks = status["groups"][0]["ranks"].as_array().unwrap();
            ranks.iter().any(|rank| rank["pid"] == u64::from(victim))
                && status["reshards"].as_array().unwrap().is_empty()
        });
        let again = sandbox.generate(story::request()).await.unwrap();
        story::assert_undisturbed(&again, "after its return");
        assert!(epoch(&back) > epoch(&after), "a change of ranks is another epoch");
        let status = sandbox.status();
        assert_eq!(status["counters"]["reshards_switched"], 1, "{status:#}");
        assert_eq!(
            status["counters"]["tokens_recomputed"].as_u64(),
            recomputed,
            "its return cost nothing"
        );
    }
}
