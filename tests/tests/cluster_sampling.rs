//! Knobs of the sampling, several choices and scored prompts through real processes: the checked-in bits through a death,
//! the rest of an answer after a resume, and clear words for what cannot be.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use kvasir_proto::v1::{
    self, FinishReason, GenerateRequest, LogitBias, SamplingParams, TokenIds, generate_request::Prompt,
    generate_response::Event,
};
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, kill, request_of},
    parity::{self, Questions},
    rank_group::Generation,
    tiny_model::TinyModel,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

/// A tiny model that lives as long as the test.
fn tiny() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    (folder, path)
}

/// Every knob at once, on a prompt whose tokens come up again.
fn knobs() -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds {
            ids: (0..30).map(|index| 40 + index % 7).collect(),
        })),
        sampling: Some(SamplingParams {
            temperature: Some(1.2),
            top_k: Some(50),
            top_p: Some(0.95),
            min_p: Some(0.01),
            repetition_penalty: Some(1.3),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.4),
            logit_bias: vec![LogitBias { id: 41, bias: 2.5 }, LogitBias { id: 7, bias: -100.0 }],
            seed: Some(5),
            top_logprobs: 2,
            ..Default::default()
        }),
        max_tokens: Some(60),
        ignore_eos: true,
        prompt_logprobs: Some(3),
        ..Default::default()
    }
}

fn resume(answer: &GrpcAnswer, tokens: usize, scores: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Resume(v1::Resume {
            descriptor: Some(answer.descriptor.clone()),
            received_token_ids: answer.ids()[..tokens].to_vec(),
            received_prompt_logprobs: scores as u32,
        })),
        ..Default::default()
    }
}

fn cached_tokens(answer: &GrpcAnswer) -> u32 {
    answer.finished.as_ref().unwrap().usage.unwrap().cached_tokens
}

/// Asks, and kills a worker when the third token comes.
async fn ask_and_kill(cluster: &ClusterSandbox, generation: &Generation, victim: u32) -> GrpcAnswer {
    let mut stream = cluster.open_stream(request_of(generation)).await.unwrap();
    let (mut answer, mut victim) = (GrpcAnswer::default(), Some(victim));
    while let Some(response) = stream.message().await.unwrap() {
        answer.add(response);
        if answer.tokens.len() >= 3 {
            victim.take().into_iter().for_each(kill);
        }
    }
    answer
}

#[tokio::test]
async fn a_death_in_mid_answer_changes_no_bit_of_penalized_answers_and_scored_prompts() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 3, &["--block-size", "16"]);
    let generations = Questions::Knobs.generations(49_152);
    let expected = &Questions::Knobs.read_digests()["smollm2-135m"];
    // Once in peace: the second time there are cached blocks, which those that are scored leave alone.
    let ask = |generation: &Generation| cluster.generate(request_of(generation));
    for answer in futures::future::join_all(generations.iter().map(ask)).await {
        answer.unwrap();
    }
    let victim = cluster.worker_pids()[1];
    // Greedy and penalized, and so long that it can be disturbed.
    let (disturbed, others) = futures::future::join(
        ask_and_kill(&cluster, &generations[3], victim),
        futures::future::join_all(generations.iter().map(ask)),
    )
    .await;
    assert_eq!(parity::digest(&disturbed.to_parity()), expected[3]);
    for (index, answer) in others.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(parity::digest(&answer.to_parity()), expected[index], "{index}");
        if generations[index].prompt_logprobs.is_some() {
            assert_eq!(cached_tokens(&answer), 0, "{index}");
        }
    }
    let status = cluster.wait_for("the loss to be recovered", |status| {
        status["counters"]["recoveries"] == 1
    });
    let counters = &status["counters"];
    assert_eq!(counters["ranks_lost"], 1, "{status:#}");
    assert!(counters["tokens_recomputed"].as_u64() > Some(0), "{status:#}");
}

#[tokio::test]
async fn a_resumed_answer_with_every_knob_is_the_rest_of_the_same_answer() {
    let (_folder, path) = tiny();
    let cluster = ClusterSandbox::start(&path, 2, &["--block-size", "16"]);
    let whole = cluster.generate(knobs()).await.unwrap();
    assert_eq!((whole.tokens.len(), whole.prompt_scores.len()), (60, 29));
    assert_eq!((whole.scored_from, cached_tokens(&whole)), (Some(1), 0));
    let bans = whole.tokens.iter().any(|token| token.id == 7);
    assert!(!bans, "a token of bias -100 came");
    for (tokens, scores) in [(0, 0), (0, 17), (0, 29), (1, 29), (23, 29), (59, 29)] {
        let rest = cluster.generate(resume(&whole, tokens, scores)).await.unwrap();
        assert_eq!(rest.descriptor, whole.descriptor);
        assert_eq!(
            rest.prompt_scores,
            whole.prompt_scores[scores..],
            "after {tokens} and {scores}"
        );
        assert_eq!(rest.tokens, whole.tokens[tokens..], "after {tokens} and {scores}");
        // What it has to score again, it computes.
        assert!(scores == 29 || cached_tokens(&rest) <= scores as u32);
    }
    for (tokens, scores, fragment) in [(1, 28, "29 to 29"), (0, 30, "0 to 29")] {
        let status = cluster.generate(resume(&whole, tokens, scores)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(fragment), "{}", status.message());
    }
}

#[tokio::test]
async fn each_of_many_choices_is_what_it_is_alone() {
    let (_folder, path) = tiny();
    let cluster = ClusterSandbox::start(&path, 2, &["--sequences", "3"]);
    let many = GenerateRequest { n: Some(5), ..knobs() };
    let choices = cluster.generate_choices(many).await.unwrap();
    assert_eq!(choices.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (choice, answer) in &choices {
        assert_eq!(answer.descriptor.choice, *choice);
        let mut alone = knobs();
        alone.sampling.as_mut().unwrap().choice = *choice;
        let mut alone = cluster.generate_choices(alone).await.unwrap();
        let alone = alone.remove(choice).expect("a response names its choice");
        assert_eq!((&answer.tokens, &answer.text), (&alone.tokens, &alone.text), "{choice}");
        let scores = if *choice == 0 { &alone.prompt_scores[..] } else { &[] };
        assert_eq!(answer.prompt_scores, scores, "the first choice reports them");
    }
    assert_ne!(choices[&1].tokens, choices[&2].tokens);
    let scores = choices[&3].prompt_scores.len();
    let mut rest = cluster
        .generate_choices(resume(&choices[&3], 20, scores))
        .await
        .unwrap();
    assert_eq!(rest.remove(&3).unwrap().tokens, choices[&3].tokens[20..]);
    assert!(rest.is_empty());
}

#[tokio::test]
async fn choices_end_each_for_itself_and_go_together() {
    let (_folder, path) = tiny();
    let cluster = ClusterSandbox::start(&path, 1, &["--queue", "4", "--sequences", "2"]);
    let alone = cluster.generate(knobs()).await.unwrap();
    // A token that ends some of them early.
    let mut early = GenerateRequest { n: Some(4), ..knobs() };
    early.sampling.as_mut().unwrap().stop_token_ids = vec![alone.ids()[5]];
    let choices = cluster.generate_choices(early).await.unwrap();
    let first = alone.ids().iter().position(|id| *id == alone.ids()[5]).unwrap();
    assert_eq!(
        choices[&0].tokens,
        alone.tokens[..=first],
        "the stop token is part of the answer"
    );
    assert_eq!(choices[&0].reason(), FinishReason::Stop);
    assert!(choices.values().all(|answer| answer.finished.is_some()));
    let lengths: std::collections::BTreeSet<_> = choices.values().map(|answer| answer.tokens.len()).collect();
    assert!(lengths.len() > 1, "{lengths:?}");

    let full = cluster
        .generate_choices(GenerateRequest { n: Some(7), ..knobs() })
        .await;
    let full = full.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(
        full.message().contains("the 7 choices of this one"),
        "{}",
        full.message()
    );

    let endless = |id: &str| GenerateRequest {
        request_id: id.to_owned(),
        n: Some(3),
        max_tokens: Some(900),
        ..knobs()
    };
    let mut stream = cluster.open_stream(endless("mine")).await.unwrap();
    let started = stream.message().await.unwrap().unwrap();
    assert!(matches!(started.event, Some(Event::Started(_))));
    let request_id = "mine".to_owned();
    let aborted = cluster.inference().await.abort(v1::AbortRequest { request_id }).await;
    assert!(aborted.unwrap().into_inner().found);
    let mut reasons = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(Event::Finished(finished)) = response.event {
            reasons.push(finished.reason());
        }
    }
    assert_eq!(reasons, [FinishReason::Cancelled; 3]);

    let mut dropped = cluster.open_stream(endless("mine")).await.unwrap();
    dropped.message().await.unwrap();
    drop(dropped);
    let status = cluster.wait_for("no sequences", |status| {
        status["sequences"].as_array().unwrap().is_empty()
    });
    assert_eq!(status["groups"][0]["blocks"]["held"], 0, "{status:#}");
    assert_eq!(status["counters"]["rejected"], 7, "{status:#}");
}

#[tokio::test]
async fn a_value_out_of_range_is_named_with_what_would_work() {
    let (_folder, path) = tiny();
    let cluster = ClusterSandbox::start(&path, 1, &[]);
    let sampled = |change: fn(&mut SamplingParams)| {
        let mut request = knobs();
        change(request.sampling.as_mut().unwrap());
        request
    };
    let asked = |change: fn(&mut GenerateRequest)| {
        let mut request = knobs();
        change(&mut request);
        request
    };
    let good = cluster.generate(knobs()).await.unwrap();
    let mut together = resume(&good, 1, 29);
    together.n = Some(2);
    let cases: Vec<(GenerateRequest, &[&str])> = vec![
        (sampled(|s| s.min_p = Some(1.5)), &["min_p is 1.5", "0 to 1"]),
        (sampled(|s| s.min_p = Some(f32::NAN)), &["min_p is NaN"]),
        (
            sampled(|s| s.repetition_penalty = Some(0.0)),
            &["repetition_penalty is 0", "above 0"],
        ),
        (
            sampled(|s| s.repetition_penalty = Some(f32::INFINITY)),
            &["repetition_penalty is inf"],
        ),
        (
            sampled(|s| s.repetition_penalty = Some(f32::NAN)),
            &["repetition_penalty is NaN"],
        ),
        (
            sampled(|s| s.presence_penalty = Some(2.1)),
            &["presence_penalty is 2.1", "-2 to 2"],
        ),
        (
            sampled(|s| s.frequency_penalty = Some(-2.1)),
            &["frequency_penalty is -2.1", "-2 to 2"],
        ),
        (
            sampled(|s| s.frequency_penalty = Some(f32::NAN)),
            &["frequency_penalty is NaN"],
        ),
        (
            sampled(|s| s.logit_bias[0].bias = 100.5),
            &["logit bias is 100.5", "-100 to 100"],
        ),
        (sampled(|s| s.logit_bias[0].bias = f32::NAN), &["logit bias is NaN"]),
        (
            sampled(|s| s.logit_bias[0].id = 320),
            &["token 320 of logit_bias", "320"],
        ),
        (sampled(|s| s.logit_bias[0].id = 7), &["token 7 has two logit biases"]),
        (
            sampled(|s| s.logit_bias = vec![LogitBias::default(); 1025]),
            &["logit biases is 1025", "1024"],
        ),
        (
            sampled(|s| s.stop_token_ids = vec![3, 320]),
            &["token 320 of stop_token_ids"],
        ),
        (sampled(|s| s.stop_token_ids = vec![3; 129]), &["129", "128"]),
        (asked(|r| r.n = Some(0)), &["n is 0", "1 to 128"]),
        (asked(|r| r.n = Some(129)), &["n is 129", "1 to 128"]),
        (
            asked(|r| {
                r.n = Some(2);
                r.sampling.as_mut().unwrap().choice = 3;
            }),
            &["n is 2", "choice is 3"],
        ),
        (together, &["n is 2", "resumed alone"]),
        (
            asked(|r| r.prompt_logprobs = Some(21)),
            &["prompt_logprobs is 21", "20"],
        ),
        (
            asked(|r| (r.max_tokens, r.prompt_logprobs) = (Some(0), None)),
            &["max_tokens is 0", "prompt_logprobs"],
        ),
        (
            asked(|r| (r.max_tokens, r.n) = (Some(0), Some(2))),
            &["max_tokens is 0", "one choice"],
        ),
    ];
    for (request, fragments) in cases {
        let status = cluster.generate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        for fragment in fragments {
            assert!(
                status.message().contains(fragment),
                "`{fragment}` is not in: {}",
                status.message()
            );
        }
    }
    // At the edges of what works.
    let mut edge = asked(|r| (r.max_tokens, r.prompt_logprobs) = (Some(0), Some(20)));
    let sampling = edge.sampling.as_mut().unwrap();
    (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) = (Some(1.0), Some(-2.0), Some(2.0));
    let answer = cluster.generate(edge).await.unwrap();
    assert_eq!((answer.tokens.len(), answer.reason()), (0, FinishReason::Length));
    let ids: Vec<u32> = answer.prompt_scores.iter().map(|score| score.id).collect();
    assert_eq!(ids, answer.descriptor.prompt_token_ids[1..]);
    assert!(answer.prompt_scores.iter().all(|score| score.top_logprobs.len() == 20));
}

#[test]
fn the_command_line_shows_each_choice_and_takes_every_knob() {
    let (_folder, path) = tiny();
    let cluster = ClusterSandbox::start(&path, 1, &[]);
    let flags = "generate --prompt-ids 40,41,42,40 --max-tokens 9 --ignore-eos --temperature 0.9 --seed 3 --min-p 0.02 \
                 --repetition-penalty 1.2 --presence-penalty -0.5 --frequency-penalty 0.5 --logit-bias 41:-3.5 \
                 --logit-bias 44:2 --stop-token-id 5 --prompt-logprobs 2 --n 3";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let json = cluster.kvasir(&[&flags[..], &["--json"]].concat());
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let choices = json["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_eq!(choices[0]["prompt_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(choices[0]["prompt_logprobs"][2]["top"].as_array().unwrap().len(), 2);
    assert_ne!(choices[1]["token_ids"], choices[2]["token_ids"]);
    let shown = cluster.kvasir(&flags);
    let shown = String::from_utf8(shown.stdout).unwrap();
    for choice in choices {
        let text = choice["text"].as_str().unwrap();
        assert!(
            shown.contains(&format!("[choice {}]\n{text}\n", choice["choice"])),
            "{shown}"
        );
    }
    let bad = cluster.kvasir(&["generate", "--prompt-ids", "1", "--logit-bias", "7=3"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("42:-1.5"), "{bad:?}");
}
