//! Many streams at once through real processes: each gets the bits that it gets alone.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, request},
    parity,
    rank_group::Generation,
};

async fn ask_all(sandbox: &ClusterSandbox, generations: &[Generation]) -> Vec<GrpcAnswer> {
    let asked = generations
        .iter()
        .map(|generation| sandbox.generate(request(generation)));
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().map(Result::unwrap).collect()
}

fn digests(answers: &[GrpcAnswer]) -> Vec<String> {
    let digests = answers.iter().map(|answer| parity::digest(&answer.to_parity()));
    digests.collect()
}

fn cached_tokens(answers: &[GrpcAnswer]) -> u64 {
    let usage = |answer: &GrpcAnswer| answer.finished.as_ref().unwrap().usage.unwrap();
    answers
        .iter()
        .map(|answer| u64::from(usage(answer).cached_tokens))
        .sum()
}

/// Prompts begin after what earlier requests with the same beginning left in the cells of all ranks.
#[tokio::test]
async fn answers_that_start_from_cached_blocks_have_the_same_bits() {
    for (workers, flags) in [(1, &["--threads", "2"][..]), (3, &[]), (4, &["--transport", "tcp"])] {
        let flags = [&["--block-size", "16"], flags].concat();
        let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), workers, &flags);
        let generations = parity::generations(49_152);
        let first = ask_all(&sandbox, &generations).await;
        let before = cached_tokens(&first);

        for again in 1..=2 {
            let answers = ask_all(&sandbox, &generations).await;

            let expected = &parity::read_digests()["smollm2-135m"];
            assert_eq!(
                &digests(&answers),
                expected,
                "{workers} workers {flags:?}, again {again}"
            );
            let reusable = |generation: &Generation| (generation.prompt.len() as u64 - 1) / 16 * 16;
            assert_eq!(cached_tokens(&answers), generations.iter().map(reusable).sum::<u64>());
        }
        let status = sandbox.status();
        let hits = status["counters"]["prefix_hits_tokens"].as_u64().unwrap();
        assert!(hits > before && hits > 100, "{status:#}");
        assert_eq!(status["groups"][0]["blocks"]["held"], 0, "{status:#}");
        assert!(status["groups"][0]["blocks"]["cached"].as_u64() > Some(0), "{status:#}");
    }
}

#[tokio::test]
async fn without_the_prefix_cache_every_prompt_is_computed_whole() {
    let flags = ["--block-size", "16", "--no-prefix-cache"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &flags);
    let generations = parity::generations(49_152);
    for _ in 0..2 {
        assert_eq!(cached_tokens(&ask_all(&sandbox, &generations).await), 0);
    }
    assert_eq!(sandbox.status()["groups"][0]["blocks"]["cached"], 0);
}

#[tokio::test]
async fn sixteen_streams_at_once_get_the_bits_that_each_gets_alone() {
    for (workers, flags) in [
        (1, &["--threads", "2"][..]),
        (2, &[]),
        (3, &["--transport", "tcp"]),
        (5, &["--block-size", "16"]),
    ] {
        let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), workers, flags);
        let generations = parity::generations(49_152);
        let answers = ask_all(&sandbox, &generations).await;

        assert_eq!(
            digests(&answers),
            parity::read_digests()["smollm2-135m"],
            "{workers} workers {flags:?}"
        );
        let status = sandbox.status();
        let counters = &status["counters"];
        // Fewer steps than tokens: the streams did share steps.
        let tokens: u64 = generations.iter().map(|generation| generation.max_tokens as u64).sum();
        assert_eq!(counters["generation_tokens"], tokens, "{status:#}");
        assert!(counters["steps"].as_u64().unwrap() < tokens / 2, "{status:#}");
        assert_eq!(status["groups"][0]["blocks"]["held"], 0, "{status:#}");
        assert_eq!(status["groups"][0]["ranks"].as_array().unwrap().len(), workers as usize);
    }
}
