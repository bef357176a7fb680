//! Many streams at once through real processes: each gets the bits that it gets alone.

#![allow(clippy::unwrap_used)]

use kvasir_proto::v1::{self, generate_request::Prompt};
use kvasir_tests::{cluster_sandbox::ClusterSandbox, parity, rank_group::Generation};

fn request(generation: &Generation) -> v1::GenerateRequest {
    let sampling = &generation.sampling;
    v1::GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds {
            ids: generation.prompt.iter().map(|token| token.0).collect(),
        })),
        sampling: Some(v1::SamplingParams {
            temperature: Some(sampling.temperature),
            top_k: Some(sampling.top_k),
            top_p: Some(sampling.top_p),
            seed: Some(sampling.seed),
            choice: sampling.choice,
            top_logprobs: sampling.top_logprobs,
        }),
        max_tokens: Some(generation.max_tokens as u32),
        ignore_eos: true,
        ..Default::default()
    }
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
        let asked = generations
            .iter()
            .map(|generation| sandbox.generate(request(generation)));

        let answers = futures::future::join_all(asked).await;

        let digests: Vec<String> = answers
            .into_iter()
            .map(|answer| parity::digest(&answer.unwrap().to_parity()))
            .collect();
        assert_eq!(
            digests,
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
