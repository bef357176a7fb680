//! A prompt whose beginning another group has in its cache: the blocks are copied, the answer does not change by a bit, and
//! what cannot be copied is computed.

#![allow(clippy::unwrap_used)]

use kvasir_kv::TokenId;
use kvasir_proto::v1::{self, generate_response::Event};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, freeze, request_of, resume},
    moving, parity,
    rank_group::Generation,
};
use serde_json::Value;
use tonic::Streaming;

const BLOCK_SIZE: u64 = 16;

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

/// Four of the sixteen; the first two begin with the same tokens.
fn asked() -> Vec<(Generation, String)> {
    let all: Vec<_> = moving::generations().into_iter().zip(moving::digests()).collect();
    [0, 4, 1, 2].map(|index| all[index].clone()).to_vec()
}

fn cached_tokens(answer: &GrpcAnswer) -> u64 {
    let usage = answer.finished.as_ref().unwrap().usage.as_ref();
    u64::from(usage.unwrap().cached_tokens)
}

/// A cluster of two groups with one place each.
fn start(groups: &str, policy: &str) -> ClusterSandbox {
    let workers = groups.split(',').map(|size| size.parse::<u32>().unwrap()).sum();
    let flags = [
        "--groups",
        groups,
        "--prefix-copy",
        policy,
        "--sequences",
        "1",
        "--block-size",
        "16",
    ];
    ClusterSandbox::start(&kvasir_tests::default_model(), workers, &flags)
}

/// Asks one after the other: all go to the same group, and are cached there. Then somebody takes its only place.
async fn fill(sandbox: &ClusterSandbox) -> (Streaming<v1::GenerateResponse>, u64) {
    for (generation, digest) in asked() {
        assert_eq!(digest_of(sandbox, &generation).await.1, digest);
    }
    let mut long = asked().remove(0).0;
    long.prompt = (1000..1040).map(TokenId).collect();
    long.max_tokens = 1900;
    let mut holder = sandbox.open_stream(request_of(&long)).await.unwrap();
    while !matches!(holder.message().await.unwrap().unwrap().event, Some(Event::Chunk(_))) {}
    let status = sandbox.status();
    let cached = |group: &Value| group["blocks"]["cached"].as_u64().unwrap() > 0;
    let held = status["sequences"][0]["group"].as_u64().unwrap();
    for group in status["groups"].as_array().unwrap() {
        assert_eq!(cached(group), group["id"].as_u64() == Some(held), "{status:#}");
    }
    (holder, held)
}

async fn digest_of(sandbox: &ClusterSandbox, generation: &Generation) -> (GrpcAnswer, String) {
    let answer = sandbox.generate(request_of(generation)).await.unwrap();
    let digest = parity::digest(&answer.to_parity());
    (answer, digest)
}

#[tokio::test]
async fn a_prompt_goes_on_from_what_another_group_of_any_size_has_of_it() {
    for groups in ["1,2", "3,1"] {
        let sandbox = start(groups, "always");
        let (_holder, _) = fill(&sandbox).await;
        let mut cached = 0;
        for (generation, digest) in asked() {
            let (answer, found) = digest_of(&sandbox, &generation).await;
            assert_eq!(found, digest, "{groups}");
            let blocks = (generation.prompt.len() as u64 - 1) / BLOCK_SIZE;
            assert_eq!(
                cached_tokens(&answer),
                blocks * BLOCK_SIZE,
                "{groups}: all but the last block"
            );
            cached += cached_tokens(&answer);
        }
        let status = sandbox.status();
        let copied = count(&status, "prefix_copied_tokens");
        // What the first ones have in common was copied once.
        assert!(copied > 0 && copied < cached, "{copied} of {cached}: {status:#}");
        assert_eq!(
            count(&status, "prefix_copies_adopted"),
            asked().len() as u64,
            "{status:#}"
        );
        assert!(count(&status, "prefix_copy_bytes") > 0, "{status:#}");
        assert_eq!(
            count(&status, "cells_adopted"),
            count(&status, "cells_planned"),
            "{status:#}"
        );
        let bad = [
            "prefix_copies_failed",
            "tokens_recomputed",
            "conservation_violations",
            "cells_corrupt",
        ];
        assert_eq!(bad.map(|name| count(&status, name)), [0; 4], "{status:#}");
        assert_eq!(status["transfers"].as_array().map(Vec::len), Some(0), "{status:#}");
    }
}

#[tokio::test]
async fn nothing_is_copied_where_that_is_not_wanted() {
    let sandbox = start("1,2", "never");
    let (_holder, _) = fill(&sandbox).await;
    let (generation, digest) = asked().remove(0);
    let (answer, found) = digest_of(&sandbox, &generation).await;
    assert_eq!(found, digest);
    assert_eq!(
        (cached_tokens(&answer), count(&sandbox.status(), "prefix_copies_begun")),
        (0, 0)
    );
}

#[tokio::test]
async fn what_a_group_that_stands_still_does_not_send_is_computed() {
    let sandbox = start("1,2", "always");
    let (_holder, held) = fill(&sandbox).await;
    let status = sandbox.status();
    let pid = status["groups"][held as usize]["ranks"][0]["pid"].as_u64().unwrap() as u32;
    freeze(pid);
    let (generation, digest) = asked().remove(0);
    let (answer, found) = digest_of(&sandbox, &generation).await;
    assert_eq!(found, digest);
    assert_eq!(cached_tokens(&answer), 0);
    let status = sandbox.status();
    assert_eq!(count(&status, "prefix_copies_begun"), 1, "{status:#}");
    assert_eq!(count(&status, "prefix_copies_failed"), 1, "{status:#}");
    assert!(sandbox.log().contains("cached prompt not copied"));
    resume(pid);
}
